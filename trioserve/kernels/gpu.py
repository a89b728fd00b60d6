"""What the launch functions ask of a GPU, and how they choose among a kernel's instantiations."""

from collections.abc import Mapping
from typing import Final, Protocol

import torch
from torch import Tensor

from trioserve.errors import KernelError
from trioserve.kernels.source import Kernel

VECTOR_BYTES: Final = 16
"""That one load or store instruction moves."""
ELEMENTS: Final[Mapping[torch.dtype, str]] = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "float",
    torch.float8_e4m3fn: "e4m3",
}
"""How the sources call the types of tensors."""


class Gpu(Protocol):
    """Where kernels run: a device, or in the tests the emulator."""

    @property
    def num_multiprocessors(self) -> int:
        """How many blocks run at a time, or a multiple of that."""
        ...

    @property
    def architecture(self) -> str:
        """What its kernels are compiled for, such as ``"sm_90a"``."""
        ...

    def launch(
        self,
        kernel: Kernel,
        *arguments: Tensor | float,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared_bytes: int = 0,
    ) -> None:
        """Start ``kernel`` on the current stream; an empty grid starts nothing.

        Raises:
            KernelError: It cannot be had, or the device refuses it.
            TypeError: The arguments are not those of the kernel.
        """
        ...


ELEMENTS_AND_WIDTHS: Final = tuple(
    (name, 1 << bits)
    for dtype, name in ELEMENTS.items()
    if dtype.itemsize > 1
    for bits in range(4)
    if dtype.itemsize << bits <= VECTOR_BYTES
)
"""What kernels of single elements are made for: each type with each number that travels together."""


def width_of(dtype: torch.dtype, *sizes: int) -> int:
    """``kWidth``, elements that travel together: the largest power of two up to 16 bytes that divides all ``sizes``.

    Sizes alone decide, never an address: what a kernel computes does not depend on where its tensors lie.
    """
    width = VECTOR_BYTES // dtype.itemsize
    while any(size % width for size in sizes):
        width //= 2
    return width


def element_of(dtype: torch.dtype, *allowed: str) -> str:
    """How the sources call ``dtype``, which must be one of ``allowed``, by default bf16, fp16 or float.

    Raises:
        KernelError: The kernels have no such type.
    """
    name = ELEMENTS.get(dtype, str(dtype))
    allowed = allowed or ("bf16", "fp16", "float")
    if name not in allowed:
        raise KernelError(f"the kernel takes {', '.join(allowed)}, not {name}: choose another dtype")
    return name
