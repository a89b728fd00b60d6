"""Rotary position embedding, in place."""

import torch
from torch import Tensor

from trioserve._speedups import elementwise as native
from trioserve.kernels.cpu import ISA, is_native
from trioserve.kernels.shapes import ShapeError, Shapes


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
    for x in (q[..., :rotated], k[..., :rotated]):
        if is_native(x.dtype) and rotated == sizes["head_dim"]:
            _run(x, positions, table, interleaved)
        else:
            x.copy_(rope_ref(x, positions, table, interleaved=interleaved))


def _run(x: Tensor, positions: Tensor, table: Tensor, interleaved: bool, *, isa: str = ISA) -> None:
    num_tokens, num_heads, head_dim = x.shape
    assert x.stride(2) == 1 and x.stride(1) == head_dim, "heads are not contiguous"
    assert positions.is_contiguous() and table.is_contiguous(), "positions or table are not contiguous"
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
