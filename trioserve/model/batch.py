"""The tensors of one step, as the model reads them."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from trioserve.kernels.attention_plan import AttentionPlan

_DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_SCALE_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The tokens of all sequences of a step, one after the other, and where their KV lies."""

    token_ids: Tensor
    """[num_tokens] int64"""
    positions: Tensor
    """[num_tokens] int64, absolute, from 0"""
    slot_mapping: Tensor
    """[num_tokens] int64, block_id * block_size + offset: where each token's KV goes"""
    cu_seqlens_q: Tensor
    """[num_seqs + 1] int32, cumulative query lengths"""
    seq_lens: Tensor
    """[num_seqs] int32, KV length of each sequence, this step included"""
    block_tables: Tensor
    """[num_seqs, max_blocks] int32; past a sequence's blocks anything"""
    sample_rows: Tensor
    """[num_samples] int64, tokens whose hidden states are wanted: one is sampled after them, or the next scored"""


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """A ``ForwardBatch`` on a GPU. A graph that was captured with one is replayed with what its tensors hold then."""

    token_ids: Tensor
    """[num_tokens] int64"""
    positions: Tensor
    """[num_tokens] int64"""
    slot_mapping: Tensor
    """[num_tokens] int64; below 0: the token's KV is not stored, as that of rows that only fill a graph's batch"""
    sample_rows: Tensor
    """[num_samples] int64"""
    attention: AttentionPlan


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The KV cache of one layer, written in place; how it is laid out is ``CacheLayout``'s.

    Both are [num_blocks, num_kv_heads, block_size, width].
    """

    k: Tensor
    v: Tensor


@dataclass(frozen=True, slots=True)
class DeviceCache:
    """The KV cache of one layer on a GPU, written in place."""

    k: Tensor
    v: Tensor
    """[num_blocks, num_kv_heads, block_size, head_dim], of the model's type or float8_e4m3fn"""
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None
    """[num_blocks, num_kv_heads, block_size] float32, of float8_e4m3fn; None: of numbers of the model's type"""


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """What the KV cache holds of a token in one KV head."""

    name: str
    """bfloat16, float16, float32, int8 or fp8."""
    head_dim: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors: codes and scales are bytes."""
        return _DTYPES.get(self.name, torch.uint8)

    @property
    def width(self) -> int:
        """Elements a token takes in a tensor: a number each, or a code each and the bytes of a float32 scale.

        They are its own, but need not lie together: torch's layers keep rows of numbers, the native decoder keeps what
        ``_speedups/kv_cache.h`` says.
        """
        return self.head_dim if self.name in _DTYPES else self.head_dim + _SCALE_BYTES

    def empty(self, num_blocks: int, num_kv_heads: int, block_size: int) -> LayerCache:
        """A layer's cache; its memory becomes resident as it is first written.

        Raises:
            RuntimeError: The memory is not there.
        """
        shape = (num_blocks, num_kv_heads, block_size, self.width)
        return LayerCache(torch.empty(shape, dtype=self.dtype), torch.empty(shape, dtype=self.dtype))
