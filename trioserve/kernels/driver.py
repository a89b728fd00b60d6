"""A real GPU: cubins for its architecture, loaded by CuPy, launched on torch's current stream."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final, NoReturn

import torch
from torch import Tensor

from trioserve._speedups.launcher import Driver, Launcher
from trioserve.errors import KernelError
from trioserve.kernels.build import Builder, Built
from trioserve.kernels.gpu import ELEMENTS
from trioserve.kernels.loader import Loaded, Loader
from trioserve.kernels.source import Argument, Kernel, signature

LETTERS: Final = {"f32": "f", "i32": "i", "i64": "l", "u32": "u"}
"""Of values, for a ``Launcher``; tensors are p."""
DTYPES: Final = {name.replace("float", "f32"): dtype for dtype, name in ELEMENTS.items()} | {
    "i32": torch.int32,
    "i64": torch.int64,
    "u32": torch.uint32,
    "u16": torch.uint16,
    "u8": torch.uint8,
}
"""Of the tensors that an argument like this may be."""
_OLDEST: Final = (8, 0)
_NO_MARK: Final = frozenset({(8, 0), (8, 6), (8, 7), (8, 9)})
"""Capabilities whose architecture has no features of its own; later ones are asked for with theirs, as sm_90a."""


class CudaGpu:
    """A ``Gpu``. Kernels are built and loaded when they are first launched."""

    def __init__(
        self,
        driver: Driver,
        builder: Builder,
        load: Callable[[Built, int], Loaded],
        *,
        device: torch.device,
        num_multiprocessors: int,
        stream: Callable[[], int],
    ) -> None:
        self.num_multiprocessors = num_multiprocessors
        self._driver = driver
        self._builder = builder
        self._load = load
        self._device = device
        self._stream = stream
        self._bound: dict[tuple[str, tuple[int, ...], int], _Bound] = {}

    @property
    def architecture(self) -> str:
        """What its kernels are compiled for, such as ``"sm_90a"``."""
        return self._builder.architecture

    def launch(
        self,
        kernel: Kernel,
        *arguments: Tensor | float,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared_bytes: int = 0,
    ) -> None:
        """Start ``kernel`` on the current stream; an empty grid starts nothing.

        A tensor may be the host's if it is pinned: its address is the same on the device.

        Raises:
            KernelError: It cannot be had, or the device refuses it.
            TypeError, OverflowError: The arguments are not those of the kernel.
        """
        if 0 in grid:
            return
        bound = self._bound.get((kernel.name, block, shared_bytes))
        if bound is None:
            bound = self._bind(kernel, block, shared_bytes)
        if len(arguments) != len(bound.dtypes):
            raise TypeError(f"{kernel.name} takes {len(bound.dtypes)} arguments, not {len(arguments)}")
        values: list[float] = []
        for number, dtype in enumerate(bound.dtypes):
            given = arguments[number]
            if not isinstance(given, Tensor):
                if dtype is not None:
                    raise TypeError(f"{_name(kernel, number)} is a tensor, not {given}")
                values.append(given)
            elif given.dtype == dtype and (given.device == self._device or given.is_pinned()):
                values.append(given.data_ptr())
            else:
                self._refuse(kernel, number, given)
        bound.launcher(self._stream(), *grid, *(1,) * (3 - len(grid)), *values)

    def bind(self, kernel: Kernel, *, block: tuple[int, ...], shared_bytes: int = 0) -> Launcher:
        """``kernel``, built and loaded, for callers who launch it often with addresses of their own."""
        bound = self._bound.get((kernel.name, block, shared_bytes))
        return (bound or self._bind(kernel, block, shared_bytes)).launcher

    def _bind(self, kernel: Kernel, block: tuple[int, ...], shared_bytes: int) -> "_Bound":
        built = self._builder.get(kernel)
        loaded = self._load(built, shared_bytes)
        x, y, z = (*block, *(1,) * (3 - len(block)))
        arguments = signature(kernel)
        launcher = Launcher(
            self._driver, loaded.function, kernel.name, letters(arguments), (x, y, z), shared_bytes
        )
        dtypes = tuple(DTYPES[of.kind.split()[1]] if of.is_tensor else None for of in arguments)
        bound = self._bound[kernel.name, block, shared_bytes] = _Bound(launcher, dtypes, loaded)
        return bound

    def _refuse(self, kernel: Kernel, number: int, given: Tensor) -> NoReturn:
        want = signature(kernel)[number]
        if want.is_tensor and given.dtype == DTYPES[want.kind.split()[1]]:
            raise TypeError(f"{_name(kernel, number)} is on {given.device}, not on {self._device}")
        raise TypeError(f"{_name(kernel, number)} is {want.kind}, not a tensor of {given.dtype}")


@dataclass(frozen=True, slots=True)
class _Bound:
    """A launcher, of which type each argument is that is a tensor, None of the others, and what stays loaded for it."""

    launcher: Launcher
    dtypes: tuple[torch.dtype | None, ...]
    loaded: Loaded


def _name(kernel: Kernel, number: int) -> str:
    return f"{signature(kernel)[number].name} of {kernel.name}"


def letters(arguments: tuple[Argument, ...]) -> str:
    """The kinds of a ``Launcher``'s arguments."""
    return "".join("p" if argument.is_tensor else LETTERS[argument.kind] for argument in arguments)


def architecture_of(capability: tuple[int, int]) -> str:
    """What to compile for, ``"sm_90a"`` for (9, 0).

    Raises:
        KernelError: The kernels need more than such a GPU has.
    """
    if capability < _OLDEST:
        raise KernelError(
            f"this GPU is sm_{capability[0]}{capability[1]} and the kernels need sm_80: use a newer GPU or a CPU"
        )
    return f"sm_{capability[0]}{capability[1]}{'' if capability in _NO_MARK or capability[0] >= 12 else 'a'}"


@cache
def gpu_of(device: torch.device) -> CudaGpu:
    """The GPU that torch calls ``device``, which is said with its number.

    Raises:
        KernelError: It is too old, or its driver or CuPy is not there or too old.
    """
    assert device.index is not None, "a device is named with its number, cuda:0"
    driver = Driver()
    loader = Loader(device.index, driver.version)
    properties = torch.cuda.get_device_properties(device)

    def load(built: Built, shared_bytes: int) -> Loaded:
        with torch.cuda.device(device):
            return loader(built, shared_bytes)

    return CudaGpu(
        driver,
        Builder(architecture_of((properties.major, properties.minor))),
        load,
        device=device,
        num_multiprocessors=properties.multi_processor_count,
        stream=lambda: torch.cuda.current_stream(device).cuda_stream,
    )
