"""A GPU that is the emulator: what launch functions start runs here, on tensors of the CPU."""

import threading
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Final, Self

from torch import Tensor

from tests.emu.build import CUDA, FORWARD, Library
from trioserve.kernels.source import Kernel, signature

SMALLEST_SHARED_BYTES: Final = 99 << 10
"""What a block may have on sm_86, sm_89 and sm_120, the least of all that kernels are made for."""
SHARED_BYTES: Final = {"sm_80": SMALLEST_SHARED_BYTES, "sm_90a": 227 << 10}
"""Of the architectures that are emulated; what runs on sm_80 is to run on all."""
_ONE_AT_A_TIME: Final = threading.Lock()
"""A library has one machine, whose threads are fibers of whoever launches; ranks may be threads of one process."""


class EmulatedGpu:
    """Runs the kernels that it was built with; a launch of any other is an error."""

    num_multiprocessors = 4

    def __init__(self, libraries: dict[str, Library]) -> None:
        self._libraries = libraries
        self.architecture = "sm_80"
        self.order = FORWARD
        """In which threads take turns."""
        self.launched: list[tuple[Kernel, tuple[int, ...]]] = []
        """Kernels and their grids, in order."""

    def taking(self, order: int) -> Self:
        """The same GPU, its threads taking turns in ``order``."""
        other = copy(self)
        other.order = order
        return other

    def of(self, architecture: str) -> Self:
        """The same GPU as one of ``architecture``."""
        other = copy(self)
        other.architecture = architecture
        return other

    def launch(
        self,
        kernel: Kernel,
        *arguments: Tensor | float,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared_bytes: int = 0,
    ) -> None:
        """Run ``kernel`` to its end, if its arguments are what its source says and the GPU has it and room for it."""
        assert shared_bytes <= SHARED_BYTES[self.architecture], f"{kernel.name} wants {shared_bytes} bytes"
        assert kernel.architecture in ("", self.architecture), f"{kernel.name} is not for {self.architecture}"
        library = self._libraries[kernel.file]
        assert [argument.kind for argument in signature(kernel)] == library.signature(kernel.name)
        self.launched.append((kernel, grid))
        if 0 in grid:
            return
        with _ONE_AT_A_TIME:
            library.launch(
                kernel.name, *arguments, grid=grid, block=block, shared_bytes=shared_bytes, order=self.order
            )


def emulated(
    kernels: Iterable[Kernel], *, emulate: Callable[..., Library], defines: Sequence[str] = ()
) -> EmulatedGpu:
    """A GPU that has ``kernels``."""
    names: dict[str, list[str]] = {}
    for kernel in kernels:
        names.setdefault(kernel.file, []).append(kernel.name)
    return EmulatedGpu({file: emulate(CUDA / file, names[file], defines=defines) for file in names})
