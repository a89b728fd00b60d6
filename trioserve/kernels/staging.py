"""Pinned memory through which the numbers of a step get to a device, and its results back."""

from collections import deque
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trioserve.kernels.device import Device

_ALIGNMENT: Final = 64
_FIRST_BYTES: Final = 1 << 20
_DTYPES: Final = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.uint16): torch.uint16,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}


class Region:
    """What one step writes for the device and reads of it; copies on their way keep to it, so nothing of it is written
    twice before all of the step is done."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory = device.pinned(_FIRST_BYTES, dtype=torch.uint8)
        self._outgrown: list[Tensor] = []
        self._taken_bytes = 0

    def room(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Pinned, its contents arbitrary."""
        num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        start = -(-self._taken_bytes // _ALIGNMENT) * _ALIGNMENT
        if start + num_bytes > self._memory.numel():
            self._outgrown.append(self._memory)
            size = max(num_bytes, 2 * self._memory.numel())
            self._memory, start = self._device.pinned(size, dtype=torch.uint8), 0
        self._taken_bytes = start + num_bytes
        return self._memory[start : start + num_bytes].view(dtype).view(shape)

    def put(self, values: NDArray[np.generic]) -> Tensor:
        """``values``, pinned; what becomes of the array later does not matter."""
        place = self.room(*values.shape, dtype=_DTYPES[values.dtype])
        # by numpy and not by torch: this is the host's work, done now, and not the device's
        place.numpy()[...] = values
        return place

    def send(self, values: NDArray[np.generic]) -> Tensor:
        """``values`` on the device, once it gets there."""
        pinned = self.put(values)
        target = torch.empty(pinned.shape, dtype=pinned.dtype, device=self._device.torch_device)
        return target.copy_(pinned, non_blocking=True)

    def clear(self) -> None:
        """Nothing of it is on its way any more."""
        self._outgrown.clear()
        self._taken_bytes = 0


class Staging:
    """Regions of steps, used in turns; as many as there are steps under way at a time. Two threads may use it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._free = deque[Region]()

    def take(self) -> Region:
        """An empty region."""
        try:
            return self._free.popleft()
        except IndexError:
            return Region(self._device)

    def give_back(self, region: Region) -> None:
        """The step that had ``region`` is done and its results are read."""
        region.clear()
        self._free.append(region)


class Packed:
    """Arrays that lie together on the host and on the device, so that one copy moves them all."""

    def __init__(
        self, device: Device, fields: Mapping[str, tuple[type[np.generic], tuple[int, ...]]]
    ) -> None:
        """``fields``: the type and the shape of each by its name; all begin as zeros."""
        ends, places = 0, dict[str, tuple[int, int]]()
        for name, (kind, shape) in fields.items():
            start = -(-ends // _ALIGNMENT) * _ALIGNMENT
            ends = start + int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
            places[name] = start, ends
        self._host = np.zeros(ends, np.uint8)
        self._device = torch.zeros(ends, dtype=torch.uint8, device=device.torch_device)
        self.host: dict[str, NDArray[np.generic]] = {}
        """By name, the host's, written by whoever likes."""
        self.device: dict[str, Tensor] = {}
        """By name, the device's, as they were when they were sent last."""
        for name, (kind, shape) in fields.items():
            start, end = places[name]
            self.host[name] = self._host[start:end].view(kind).reshape(shape)
            self.device[name] = self._device[start:end].view(_DTYPES[np.dtype(kind)]).view(shape)

    def send(self, region: Region) -> None:
        """Let the device have what the host's are now."""
        self._device.copy_(region.put(self._host), non_blocking=True)
