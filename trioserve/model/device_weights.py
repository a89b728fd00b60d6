"""Weights on their way to a GPU: out of the files or the host's memory, piece by piece through pinned memory.

The host never holds more of a model than what a checkpoint's loader left in its memory, and that is freed as it is
carried over; what was borrowed lies in mapped files, whose pages the system takes back when it needs them. So a model
may be larger than the memory of the host.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from trioserve.kernels.device import Device, Event
from trioserve.kernels.quantized_linear import PackedWeight
from trioserve.model.decoder import Decoder
from trioserve.model.layers import Linear
from trioserve.model.progress import Progress

_BUFFER_BYTES: Final = 32 << 20
"""Some milliseconds of the bus; the next one is filled meanwhile."""


class Carrier:
    """Copies tensors to a device, one buffer being filled while another is on its way."""

    def __init__(self, device: Device, progress: Progress, total_bytes: int) -> None:
        """``total_bytes``: of all that will be carried, for ``progress``."""
        self._device = device
        self._progress, self._total, self._carried = progress, total_bytes, 0
        self._buffers = [device.pinned(_BUFFER_BYTES, dtype=torch.uint8) for _ in range(2)]
        self._events: list[Event | None] = [None, None]

    def matrix(self, pieces: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
        """``pieces``, one below the other, as a matrix of ``dtype`` on the device; they may be freed then."""
        pieces = list(pieces)
        num_rows, num_columns = sum(len(piece) for piece in pieces), pieces[0].shape[1]
        target = torch.empty((num_rows, num_columns), dtype=dtype, device=self._device.torch_device)
        start = 0
        for piece in pieces:
            self._copy(target[start : start + len(piece)], piece)
            start += len(piece)
        return target

    def vector(self, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """A tensor of its own on the device; of a few kilobytes, which are worth no buffer."""
        target = torch.empty(numbers.shape, dtype=dtype, device=self._device.torch_device)
        target.copy_(numbers)
        return target

    def packed(self, packed: PackedWeight) -> PackedWeight:
        """A weight of few bits, as it is."""
        tiles = packed.weight.view(torch.uint8).flatten(1)
        weight = self.matrix([tiles], torch.uint8).view(packed.weight.dtype).view(packed.weight.shape)
        return replace(packed, weight=weight, scales=self.vector(packed.scales, packed.scales.dtype))

    def count(self, num_bytes: int) -> None:
        """Tell that what took so many bytes on the host, or in the files, is over."""
        self._carried += num_bytes
        self._progress(self._carried, self._total)

    def finish(self) -> None:
        """Return once all of it is there.

        Raises:
            KernelError: A copy failed.
        """
        for event in self._events:
            if event is not None:
                event.wait()

    def _copy(self, target: Tensor, source: Tensor) -> None:
        row_bytes = target.shape[1] * target.itemsize
        assert row_bytes <= _BUFFER_BYTES, f"a row of {row_bytes} bytes does not fit the buffer"
        step = _BUFFER_BYTES // max(row_bytes, 1)
        for start in range(0, len(source), step):
            rows = source[start : start + step]
            staged = self._free_buffer()[: rows.numel() * target.itemsize].view(target.dtype).view(rows.shape)
            staged.copy_(rows)  # also from another type, and of a part of each row
            target[start : start + step].copy_(staged, non_blocking=True)
            self._events.append(self._device.record())

    def _free_buffer(self) -> Tensor:
        """The buffer that was filled longest ago, once it has been read."""
        event = self._events.pop(0)
        if event is not None:
            event.wait()
        self._buffers.reverse()
        return self._buffers[0]


def bytes_of(linear: Linear) -> int:
    """What is carried over of a product: its weight or, about, the codes that there are instead, and its bias."""
    codes = 0 if linear.quantized is None else linear.quantized.num_bytes
    return linear.weight.nbytes + codes + (0 if linear.bias is None else linear.bias.nbytes)


def carried_bytes(model: Decoder) -> int:
    """What all weights of a model take that is neither packed nor freed, in the type that it computes in."""
    shared = {id(parameter): parameter.nbytes for parameter in model.parameters()}
    codes = [
        layer.quantized.num_bytes
        for layer in model.modules()
        if isinstance(layer, Linear) and layer.quantized
    ]
    tables = {id(table): table.nbytes for table in model.model.rope_tables if table is not None}
    return sum(shared.values()) + sum(codes) + sum(tables.values())
