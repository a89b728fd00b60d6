"""A device that has every kernel which a model's steps need, compiled when the first of its source is launched."""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.emu.build import CUDA, Library, build
from tests.emu.device import EmulatedGpu
from tests.emu.emulated_device import EmulatedDevice
from trioserve.kernels.catalogue import kernels
from trioserve.kernels.source import Kernel


class LazyGpu(EmulatedGpu):
    """An ``EmulatedGpu`` that compiles as it goes, all that it might need of a source together."""

    def __init__(
        self, compile_kernels: Callable[[Path, list[str]], Library], *types: str, head_dim: int
    ) -> None:
        super().__init__({})
        self._compile = compile_kernels
        self._types = types
        self._head_dim = str(head_dim)
        self._launching = threading.Lock()  # the emulator runs one kernel at a time

    def launch(self, kernel: Kernel, *arguments: object, **shape: object) -> None:
        with self._launching:
            if kernel.file not in self._libraries:
                wanted = [each for each in kernels() if each.file == kernel.file and self._may_need(each)]
                self._libraries[kernel.file] = self._compile(
                    CUDA / kernel.file, [each.name for each in wanted]
                )
            super().launch(kernel, *arguments, **shape)  # type: ignore[arg-type] # as they came

    def _may_need(self, kernel: Kernel) -> bool:
        """Whether its types are ours, and its heads where it is made for some size of them."""
        types = [choice for choice in kernel.choices if choice in ("bf16", "fp16", "e4m3", "float")]
        is_of_heads = kernel.base.startswith("paged")
        return set(types) <= {*self._types, "float"} and (
            not is_of_heads or kernel.choices[2] == self._head_dim
        )


def make_device(folder: Path, *types: str, head_dim: int = 64) -> EmulatedDevice:
    """A device for models of these types, such as ``"bf16"``, with such heads; libraries are kept in ``folder``."""
    return EmulatedDevice(LazyGpu(partial(build, folder=folder), *types, head_dim=head_dim))
