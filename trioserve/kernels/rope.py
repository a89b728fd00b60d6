"""Rotary position embedding, in place."""

from collections.abc import Iterator
from functools import cache
from typing import Final

import torch
from torch import Tensor

from trioserve._speedups import elementwise as native
from trioserve.kernels.cpu import ISA, is_native
from trioserve.kernels.driver import gpu_of
from trioserve.kernels.gpu import ELEMENTS_AND_WIDTHS, Gpu, element_of, width_of
from trioserve.kernels.shapes import ShapeError, Shapes
from trioserve.kernels.source import Kernel

THREADS: Final = 256
"""Of a block in ``rope.cu``."""


def apply_rope(q: Tensor, k: Tensor, positions: Tensor, table: Tensor, *, interleaved: bool) -> None:
    """Rotate ``q`` and ``k`` in place by their positions.

    Shapes:
        q: [num_tokens, num_heads, head_dim], heads contiguous
        k: [num_tokens, num_kv_heads, head_dim], heads contiguous
        positions: [num_tokens] int64, absolute, from 0
        table: [num_positions, 2, num_pairs] float32, cos then sin; what follows the first 2 * num_pairs elements of a
            head stays as it is
    Raises:
        ShapeError: They do not fit each other.
    Source:
        arXiv:2104.09864; halves rotated as in the HF checkpoints, or interleaved pairs as in the paper.
    """
    sizes = Shapes(
        q=(q, "num_tokens num_heads head_dim"),
        k=(k, "num_tokens num_kv_heads head_dim"),
        positions=(positions, "num_tokens"),
        table=(table, "num_positions cos_sin num_pairs"),
    )
    sizes.expect("cos_sin", 2)
    rotated = 2 * sizes["num_pairs"]
    if rotated > sizes["head_dim"]:
        raise ShapeError(f"{sizes['num_pairs']} pairs are more than head_dim {sizes['head_dim']} has")
    if q.is_cuda:
        if rotated != sizes["head_dim"]:
            raise ShapeError(f"{rotated} of {sizes['head_dim']} elements of a head: on a GPU all are rotated")
        apply_rope_gpu(gpu_of(q.device), q, k, positions, table, interleaved=interleaved)
        return
    for x in (q[..., :rotated], k[..., :rotated]):
        if is_native(x.dtype) and rotated == sizes["head_dim"]:
            _run(x, positions, table, interleaved)
        else:
            x.copy_(rope_ref(x, positions, table, interleaved=interleaved))


def apply_rope_gpu(
    gpu: Gpu, q: Tensor, k: Tensor, positions: Tensor, table: Tensor, *, interleaved: bool
) -> None:
    """``apply_rope`` by ``rope.cu``."""
    for x in (q, k):
        _check_heads(x, positions, table)
    num_tokens, num_heads, head_dim = q.shape
    width = width_of(q.dtype, head_dim // 2, q.stride(0), k.stride(0))
    gpu.launch(
        kernel(element_of(q.dtype), interleaved, width),
        *(q, k, positions, table, num_heads, k.shape[1], head_dim, q.stride(0), k.stride(0)),
        grid=(num_tokens,),
        block=(THREADS,),
    )


@cache
def kernel(element: str, interleaved: bool, width: int) -> Kernel:
    """``apply_rope``."""
    return Kernel("rope.cu", f"apply_rope<{element}, {str(interleaved).lower()}, {width}, {THREADS}>")


def instances() -> Iterator[Kernel]:
    """Every kernel there is."""
    for interleaved in (False, True):
        yield from (kernel(element, interleaved, width) for element, width in ELEMENTS_AND_WIDTHS)


def _check_heads(x: Tensor, positions: Tensor, table: Tensor) -> None:
    assert x.stride(2) == 1 and x.stride(1) == x.shape[2], "heads are not contiguous"
    assert positions.is_contiguous() and table.is_contiguous(), "positions or table are not contiguous"


def _run(x: Tensor, positions: Tensor, table: Tensor, interleaved: bool, *, isa: str = ISA) -> None:
    num_tokens, num_heads, head_dim = x.shape
    _check_heads(x, positions, table)
    native.rope(
        x.data_ptr(),
        positions.data_ptr(),
        table.data_ptr(),
        num_tokens=num_tokens,
        stride=x.stride(0),
        num_heads=num_heads,
        half=head_dim // 2,
        interleaved=interleaved,
        is_bf16=x.dtype == torch.bfloat16,
        num_threads=torch.get_num_threads(),
        isa=isa,
    )


def rope_ref(x: Tensor, positions: Tensor, table: Tensor, *, interleaved: bool) -> Tensor:
    """The truth for ``apply_rope``, for q or for k: float32, rounded once.

    Shapes:
        x, result: [num_tokens, num_heads, head_dim]
    """
    cos, sin = table[positions][:, None].unbind(2)
    wide = x.float()
    first, second = (wide[..., ::2], wide[..., 1::2]) if interleaved else wide.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return (torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)).to(x.dtype)
