"""Writes the keys and values of a step into their blocks."""

import torch
from torch import Tensor

from trioserve._speedups import elementwise as native
from trioserve.kernels.shapes import Shapes


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Copy each token's key and value to its place in the cache.

    Shapes:
        k, v: [num_tokens, num_kv_heads, head_dim], heads contiguous
        k_cache, v_cache: [num_blocks, num_kv_heads, block_size, head_dim], written in place
        slot_mapping: [num_tokens] int64, block_id * block_size + offset, all different
    Raises:
        ShapeError: They do not fit each other.
    """
    Shapes(
        k=(k, "num_tokens num_kv_heads head_dim"),
        v=(v, "num_tokens num_kv_heads head_dim"),
        k_cache=(k_cache, "num_blocks num_kv_heads block_size head_dim"),
        v_cache=(v_cache, "num_blocks num_kv_heads block_size head_dim"),
        slot_mapping=(slot_mapping, "num_tokens"),
    )
    for states, cache in ((k, k_cache), (v, v_cache)):
        _run(states, cache, slot_mapping)


def _run(states: Tensor, cache: Tensor, slot_mapping: Tensor) -> None:
    num_tokens, num_heads, head_dim = states.shape
    assert states.stride(2) == 1 and states.stride(1) == head_dim, "heads are not contiguous"
    assert cache.is_contiguous() and slot_mapping.is_contiguous(), "cache or slot_mapping are not contiguous"
    assert states.dtype == cache.dtype, f"{states.dtype} does not go into a cache of {cache.dtype}"
    native.store_kv(
        cache.data_ptr(),
        states.data_ptr(),
        slot_mapping.data_ptr(),
        num_tokens=num_tokens,
        stride_bytes=states.stride(0) * states.element_size(),
        num_heads=num_heads,
        block_size=cache.shape[2],
        head_bytes=head_dim * states.element_size(),
        num_threads=torch.get_num_threads(),
    )


def store_kv_ref(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """The truth for ``store_kv``."""
    block_size = k_cache.shape[2]
    block_ids, offsets = slot_mapping // block_size, slot_mapping % block_size
    k_cache[block_ids, :, offsets] = k
    v_cache[block_ids, :, offsets] = v
