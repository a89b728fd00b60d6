"""Copies whole KV blocks: forks of a prefix, and moves between a device and the host."""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from trioserve.kernels.gpu import VECTOR_BYTES, Gpu
from trioserve.kernels.shapes import ShapeError, Shapes
from trioserve.kernels.source import Kernel

THREADS: Final = 256
TURNS: Final = 4
"""Loads of a thread that are on their way at once."""
KERNEL: Final = Kernel("copy_blocks.cu", f"copy_blocks<{THREADS}, {TURNS}>")


def instances() -> Iterator[Kernel]:
    """Every kernel there is."""
    yield KERNEL


def copy_blocks_gpu(gpu: Gpu, to: Tensor, source: Tensor, block_ids: Tensor) -> None:
    """Copy blocks of ``source`` to blocks of ``to``, bit for bit.

    Shapes:
        source, to: [num_blocks, num_kv_heads, block_size, head_dim] of one type, contiguous; one of them may be the
            host's, pinned. They may be the same where no block is copied from and to.
        block_ids: [num_pairs, 2] int64, a block of ``source`` and one of ``to``
    Raises:
        ShapeError: They do not fit each other.
    """
    block_bytes = _block_bytes(to, source, block_ids)
    bytes_at_once = VECTOR_BYTES * THREADS * TURNS
    gpu.launch(
        KERNEL,
        *(to.view(torch.uint8), source.view(torch.uint8), block_ids, block_bytes),
        grid=(block_ids.shape[0], -(-block_bytes // bytes_at_once)),
        block=(THREADS,),
    )


def copy_blocks_ref(to: Tensor, source: Tensor, block_ids: Tensor) -> None:
    """The truth for ``copy_blocks_gpu``."""
    to[block_ids[:, 1]] = source[block_ids[:, 0]]


def _block_bytes(to: Tensor, source: Tensor, block_ids: Tensor) -> int:
    spec = "num_kv_heads block_size head_dim"
    sizes = Shapes(
        to=(to, f"num_to {spec}"), source=(source, f"num_from {spec}"), block_ids=(block_ids, "num_pairs two")
    )
    sizes.expect("two", 2)
    block_bytes = source[0].numel() * source.element_size()
    if block_bytes % VECTOR_BYTES:
        raise ShapeError(f"a block of {block_bytes} bytes is no multiple of {VECTOR_BYTES}")
    assert to.is_contiguous() and source.is_contiguous(), "the caches are not contiguous"
    assert to.dtype == source.dtype, f"{source.dtype} does not go into a cache of {to.dtype}"
    return block_bytes
