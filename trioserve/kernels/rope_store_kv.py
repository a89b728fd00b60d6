"""From a projection to attention in one pass: norms of heads, rotary positions, keys and values into their blocks."""

import functools
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from trioserve.kernels.gpu import Gpu, element_of
from trioserve.kernels.paged_attention_gpu import HEAD_DIMS, check_scales
from trioserve.kernels.rms_norm import rms_norm_ref
from trioserve.kernels.rope import rope_ref
from trioserve.kernels.shapes import ShapeError, Shapes
from trioserve.kernels.source import Kernel

WARPS: Final = 4
"""Of a block, each with a head."""
_LARGEST: Final = 448.0
"""Of e4m3."""


@functools.cache
def kernel(query: str, kv: str, head_dim: int) -> Kernel:
    """``rope_store_kv``."""
    return Kernel("rope_store_kv.cu", f"rope_store_kv<{query}, {kv}, {head_dim}, {WARPS}>")


def instances() -> Iterator[Kernel]:
    """Every kernel there is."""
    for query in ("bf16", "fp16"):
        yield from (kernel(query, kv, head_dim) for kv in (query, "e4m3") for head_dim in HEAD_DIMS)


def can_turn(head_dim: int, num_pairs: int) -> bool:
    """Whether so many pairs of a head can be turned: those that travel together are turned together."""
    half = head_dim // 2
    width = next(width for width in (4, 2, 1) if half % (32 * width) == 0 or width == 1)
    return num_pairs <= half and num_pairs % width == 0


def rope_store_kv_gpu(
    gpu: Gpu,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    interleaved: bool,
    offset: float = 0.0,
    eps: float = 0.0,
) -> None:
    """Normalise and turn ``q`` in place, and put ``k``, treated alike, and ``v`` into the cache.

    Shapes:
        q: [num_tokens, num_heads, head_dim] bf16 or fp16, heads contiguous
        k, v: [num_tokens, num_kv_heads, head_dim], heads contiguous
        positions: [num_tokens] int64, absolute, from 0
        table: [num_positions, 2, num_pairs] float32, cos then sin; what follows the first 2 * num_pairs elements of a
            head stays as it is, and all of it where there are no pairs
        k_cache, v_cache: [num_blocks, num_kv_heads, block_size, head_dim], of q's type or float8_e4m3fn
        slot_mapping: [num_tokens] int64, block_id * block_size + offset, all different; below 0: not stored
        q_weight, k_weight: [head_dim], of the norms of a model that has them, to which ``offset`` is added
        k_scales, v_scales: [num_blocks, num_kv_heads, block_size] float32, of float8_e4m3fn
    Raises:
        ShapeError: They do not fit each other.
        KernelError: No kernel takes heads or types like these.
    """
    sizes = _checked(q, k, v, positions, table, k_cache, v_cache, slot_mapping, q_weight, k_weight)
    check_scales(k_cache, k_scales, v_scales)
    normed = q_weight is not None
    query = element_of(q.dtype, "bf16", "fp16")
    names = (query, element_of(k_cache.dtype, query, "e4m3"))
    num_heads, num_kv_heads = sizes["num_heads"], sizes["num_kv_heads"]
    none, unscaled = q.new_empty(0), torch.empty(0, dtype=torch.float32, device=q.device)
    weights = [none if weight is None else weight for weight in (q_weight, k_weight)]
    scales = [unscaled if scale is None else scale for scale in (k_scales, v_scales)]
    gpu.launch(
        kernel(*names, sizes["head_dim"]),
        *(q, k, v, *weights, positions, table, k_cache, v_cache, *scales, slot_mapping),
        *(num_heads, num_kv_heads, sizes["block_size"], sizes["num_pairs"]),
        *(q.stride(0), k.stride(0), v.stride(0), int(interleaved), int(normed), offset, eps),
        grid=(sizes["num_tokens"], -(-(num_heads + 2 * num_kv_heads) // WARPS)),
        block=(WARPS * 32,),
    )


def _checked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
) -> Shapes:
    tensors = {
        "q": (q, "num_tokens num_heads head_dim"),
        "k": (k, "num_tokens num_kv_heads head_dim"),
        "v": (v, "num_tokens num_kv_heads head_dim"),
        "positions": (positions, "num_tokens"),
        "table": (table, "num_positions cos_sin num_pairs"),
        "k_cache": (k_cache, "num_blocks num_kv_heads block_size head_dim"),
        "v_cache": (v_cache, "num_blocks num_kv_heads block_size head_dim"),
        "slot_mapping": (slot_mapping, "num_tokens"),
    }
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None:
            tensors[name] = (weight, "head_dim")
    sizes = Shapes(**tensors)
    sizes.expect("cos_sin", 2)
    if not can_turn(sizes["head_dim"], sizes["num_pairs"]):
        raise ShapeError(f"{sizes['num_pairs']} pairs of head_dim {sizes['head_dim']} cannot be turned")
    assert (q_weight is None) == (k_weight is None), "queries and keys are normalised, or neither"
    for x in (q, k, v):
        assert x.stride(2) == 1 and x.stride(1) == sizes["head_dim"], "heads are not contiguous"
        assert x.stride(0) % 8 == 0, "rows are not aligned"
    assert k_cache.is_contiguous() and v_cache.is_contiguous(), "the cache is not contiguous"
    return sizes


def rope_store_kv_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    interleaved: bool,
    offset: float = 0.0,
    eps: float = 0.0,
) -> None:
    """The truth for ``rope_store_kv_gpu``: one step after the other, each rounded."""
    turned = []
    for x, weight in ((q, q_weight), (k, k_weight)):
        states = x.clone() if weight is None else rms_norm_ref(x, weight, eps=eps, offset=offset)
        rotated = states[..., : 2 * table.shape[2]]
        rotated.copy_(rope_ref(rotated, positions, table, interleaved=interleaved))
        turned.append(states)
    q.copy_(turned[0])
    stored = slot_mapping >= 0
    block_ids, offsets = slot_mapping[stored] // k_cache.shape[2], slot_mapping[stored] % k_cache.shape[2]
    for states, cache, scales in ((turned[1], k_cache, k_scales), (v, v_cache, v_scales)):
        kept = states[stored]
        if scales is not None:
            scale = kept.float().abs().amax(-1) / _LARGEST
            scales[block_ids, :, offsets] = scale
            kept = torch.where(scale > 0, 1 / scale, 0.0)[..., None] * kept.float()
        cache[block_ids, :, offsets] = kept.to(cache.dtype)
