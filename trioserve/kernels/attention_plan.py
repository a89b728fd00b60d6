"""How a step's attention is cut for a GPU: once on the host, for all layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

GROUP_KEYS: Final = 16
"""That a KV block has a multiple of."""
_BLOCKS_PER_MULTIPROCESSOR: Final = 4
"""That all split their keys for: with fewer there is not enough on its way, with more the merge costs."""
_MIN_SPLIT: Final = 128
"""Keys below which another split costs more than it saves."""
_MAX_SPLITS: Final = 64
_FEWEST_GRAPH_SPLITS: Final = 4
_INVARIANT_SPLIT: Final = 2048
"""Keys of every split where batches must not matter."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What all layers of a step share. A graph that was captured with one may be replayed with other contents."""

    cu_seqlens_q: Tensor
    """[num_seqs + 1] int32"""
    seq_lens: Tensor
    """[num_seqs] int32"""
    block_tables: Tensor
    """[num_seqs, max_blocks] int32"""
    split_size: Tensor
    """[1] int32: keys of a split."""
    num_splits: int
    has_decodes: bool
    """Whether there are sequences with one query token, or there may be in a replay."""
    has_prefills: bool

    @property
    def num_seqs(self) -> int:
        """Of the batch."""
        return self.seq_lens.shape[0]


def split_keys(
    seq_lens: Sequence[int],
    num_kv_heads: int,
    num_multiprocessors: int,
    *,
    batch_invariant: bool = False,
    most_splits: int = _MAX_SPLITS,
) -> tuple[int, int]:
    """The keys of a split, and how many splits reach the end of the longest of ``seq_lens``, which decode.

    So many that the device is full, and no more; a long sequence among short ones is cut into pieces of their size.
    ``batch_invariant`` cuts all batches alike, so that a row's sums have one order whoever is beside it; else there are
    at most ``most_splits``, what a graph has a grid for.
    """
    longest = max(seq_lens, default=0)
    if batch_invariant:
        return _INVARIANT_SPLIT, max(1, -(-longest // _INVARIANT_SPLIT))
    blocks = _BLOCKS_PER_MULTIPROCESSOR * num_multiprocessors
    even = -(-sum(seq_lens) * num_kv_heads // blocks)
    size = max(even, -(-longest // most_splits), _MIN_SPLIT)
    size = -(-size // GROUP_KEYS) * GROUP_KEYS
    return size, max(1, -(-longest // size))


def graph_splits(
    num_seqs: int,
    longest: int,
    num_kv_heads: int,
    num_multiprocessors: int,
    *,
    batch_invariant: bool = False,
) -> int:
    """The splits that the graph of a batch of ``num_seqs`` has a grid for, none longer than ``longest``.

    Twice what fills the device where all are of one length, and always some, for a long sequence among short ones.
    Blocks without keys end at once, but they are started, and the merge looks at them: with as many splits as there may
    ever be a batch of 256 would start 131,072 blocks in each layer for some thousand that have something to do.
    """
    if batch_invariant:
        return max(1, -(-longest // _INVARIANT_SPLIT))
    full = -(-2 * _BLOCKS_PER_MULTIPROCESSOR * num_multiprocessors // (num_seqs * num_kv_heads))
    return min(max(full, _FEWEST_GRAPH_SPLITS), _MAX_SPLITS, -(-longest // _MIN_SPLIT))


def plan_attention(
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    *,
    num_kv_heads: int,
    num_multiprocessors: int,
    device: torch.device,
    batch_invariant: bool = False,
) -> AttentionPlan:
    """A plan from the host's tensors, which are copied to ``device``.

    Shapes:
        cu_seqlens_q: [num_seqs + 1] int32, cumulative query lengths
        seq_lens: [num_seqs] int32, KV lengths, this step included
        block_tables: [num_seqs, max_blocks] int32
    """
    bounds, lengths = cu_seqlens_q.tolist(), seq_lens.tolist()
    queries = [behind - first for first, behind in pairwise(bounds)]
    decoding = [length for length, count in zip(lengths, queries, strict=True) if count == 1]
    size, num_splits = split_keys(
        decoding, num_kv_heads, num_multiprocessors, batch_invariant=batch_invariant
    )

    def there(table: Tensor) -> Tensor:
        return table.to(device=device, dtype=torch.int32, non_blocking=True).contiguous()

    return AttentionPlan(
        there(cu_seqlens_q),
        there(seq_lens),
        there(block_tables),
        there(torch.tensor([size])),
        num_splits,
        has_decodes=bool(decoding),
        has_prefills=any(count > 1 for count in queries),
    )
