"""A quantized weight as a dense matrix on a GPU, for products of more tokens than those of its codes take."""

from collections.abc import Iterator
from functools import cache
from typing import Final

from torch import Tensor

from trioserve.kernels.gpu import Gpu, element_of
from trioserve.kernels.quantized_linear import FP8, PackedWeight
from trioserve.kernels.shapes import ShapeError, Shapes
from trioserve.kernels.source import Kernel

WARPS: Final = 4
"""Of a block, which share the slabs of a tile."""
_ELEMENTS: Final = ("bf16", "fp16")


def unpack_weight_gpu(gpu: Gpu, packed: PackedWeight, out: Tensor) -> Tensor:
    """``out``, which becomes what the codes stand for; ``quantized_linear.unpack`` is the truth, rounded once.

    Shapes:
        out: [out_size, in_size] bfloat16 or float16, contiguous
    Raises:
        ShapeError: ``out`` does not fit the weight.
    """
    shapes, element = Shapes(out=(out, "out_size in_size")), element_of(out.dtype, *_ELEMENTS)
    shapes.expect("out_size", packed.out_size)
    shapes.expect("in_size", packed.in_size)
    if packed.group_size and packed.scales.dtype != out.dtype:
        raise ShapeError(f"out is {out.dtype}, the weight was packed for {packed.scales.dtype}")
    assert out.is_contiguous(), "out is not contiguous"
    groups = (packed.group_size, int(packed.has_zero_points)) if packed.group_size else ()
    gpu.launch(
        _kernel_for(element, packed),
        *(out, packed.weight, packed.scales, packed.in_size, packed.out_size, *groups),
        grid=(len(packed.weight),),
        block=(WARPS * 32,),
    )
    return out


def _kernel_for(element: str, packed: PackedWeight) -> Kernel:
    if packed.group_size:
        return group_kernel(element, packed.group_size == 32)
    return channel_kernel(element, "e4m3" if packed.weight.dtype == FP8 else "u8")


@cache
def channel_kernel(element: str, code: str) -> Kernel:
    """``unpack_channel``."""
    return Kernel("unpack_weight.cu", f"unpack_channel<{element}, {code}, {WARPS}>")


@cache
def group_kernel(element: str, is_fine: bool) -> Kernel:
    """``unpack_group``."""
    return Kernel("unpack_weight.cu", f"unpack_group<{element}, {str(is_fine).lower()}, {WARPS}>")


def instances() -> Iterator[Kernel]:
    """Every kernel there is."""
    for element in _ELEMENTS:
        yield from (channel_kernel(element, code) for code in ("u8", "e4m3"))
        yield from (group_kernel(element, is_fine) for is_fine in (True, False))
