"""Writes the keys and values of a step into their blocks."""

import functools
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from trioserve._speedups import elementwise as native
from trioserve.kernels.driver import gpu_of
from trioserve.kernels.gpu import ELEMENTS_AND_WIDTHS, Gpu, element_of, width_of
from trioserve.kernels.shapes import Shapes
from trioserve.kernels.source import Kernel

THREADS: Final = 256
"""Of a block in ``store_kv.cu``."""


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
    if k.is_cuda:
        store_kv_gpu(gpu_of(k.device), k, v, k_cache, v_cache, slot_mapping)
        return
    for states, cache in ((k, k_cache), (v, v_cache)):
        _run(states, cache, slot_mapping)


def store_kv_gpu(
    gpu: Gpu, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
) -> None:
    """``store_kv`` by ``store_kv.cu``."""
    for states, cache in ((k, k_cache), (v, v_cache)):
        _check_heads(states, cache, slot_mapping)
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    width = width_of(k.dtype, head_dim, k.stride(0), v.stride(0))
    gpu.launch(
        kernel(element_of(k.dtype), width),
        *(k, v, k_cache, v_cache, slot_mapping, num_kv_heads, block_size, head_dim, k.stride(0), v.stride(0)),
        grid=(k.shape[0],),
        block=(THREADS,),
    )


@functools.cache
def kernel(element: str, width: int) -> Kernel:
    """``store_kv``."""
    return Kernel("store_kv.cu", f"store_kv<{element}, {width}, {THREADS}>")


def instances() -> Iterator[Kernel]:
    """Every kernel there is."""
    yield from (kernel(element, width) for element, width in ELEMENTS_AND_WIDTHS)


def _check_heads(states: Tensor, cache: Tensor, slot_mapping: Tensor) -> None:
    assert states.stride(2) == 1 and states.stride(1) == states.shape[2], "heads are not contiguous"
    assert cache.is_contiguous() and slot_mapping.is_contiguous(), "cache or slot_mapping are not contiguous"
    assert states.dtype == cache.dtype, f"{states.dtype} does not go into a cache of {cache.dtype}"


def _run(states: Tensor, cache: Tensor, slot_mapping: Tensor) -> None:
    num_tokens, num_heads, head_dim = states.shape
    _check_heads(states, cache, slot_mapping)
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
