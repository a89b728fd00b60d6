"""A real GPU in the place of the emulator: ``pytest tests/emu --gpu`` runs the same tests on it."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from tests.emu.device import EmulatedGpu
from trioserve.kernels.driver import gpu_of
from trioserve.kernels.gpu import Gpu
from trioserve.kernels.source import Kernel, signature


class MirroredGpu(EmulatedGpu):
    """Takes tensors of the CPU as the emulator does, and runs kernels elsewhere; in which order is not ours to say.

    A launch takes whole storages to the device, so that strides, slices and tensors that share memory are there as they
    are here, and brings back those that the kernel may write. So outputs begin on the device as they do here: as NaN.
    """

    def __init__(self, gpu: Gpu, device: torch.device, wait: Callable[[], None]) -> None:
        """``wait``: returns when the device has done all that was launched."""
        super().__init__({})
        self._gpu = gpu
        self._device = device
        self._wait = wait

    @classmethod
    def here(cls) -> Self:
        """This machine's first GPU."""
        device = torch.device("cuda", 0)
        return cls(gpu_of(device), device, lambda: torch.cuda.synchronize(device))

    def launch(
        self,
        kernel: Kernel,
        *arguments: Tensor | float,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared_bytes: int = 0,
    ) -> None:
        """Run ``kernel`` to its end."""
        self.launched.append((kernel, grid))
        moved: dict[int, Tensor] = {}
        there = [
            self._moved(argument, moved) if isinstance(argument, Tensor) else argument
            for argument in arguments
        ]
        self._gpu.launch(kernel, *there, grid=grid, block=block, shared_bytes=shared_bytes)
        self._wait()
        for of, argument in zip(signature(kernel), arguments, strict=True):
            if of.kind.startswith("out") and isinstance(argument, Tensor) and argument.numel():
                _bytes_of(argument).copy_(moved[argument.untyped_storage().data_ptr()])

    def _moved(self, argument: Tensor, moved: dict[int, Tensor]) -> Tensor:
        """``argument`` on the device, with all of its storage."""
        if not argument.numel():
            return torch.empty(argument.shape, dtype=argument.dtype, device=self._device)
        address = argument.untyped_storage().data_ptr()
        if address not in moved:
            source = _bytes_of(argument)
            moved[address] = torch.empty(source.shape, dtype=torch.uint8, device=self._device).copy_(source)
        there = torch.empty(0, dtype=argument.dtype, device=self._device)
        storage = moved[address].untyped_storage()
        return there.set_(storage, argument.storage_offset(), argument.shape, argument.stride())


def _bytes_of(tensor: Tensor) -> Tensor:
    """All bytes of its storage."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
