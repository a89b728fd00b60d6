"""Batches over a paged cache, for the attention kernels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from tests.emu.device import EmulatedGpu
from trioserve.kernels.attention_plan import AttentionPlan, plan_attention
from trioserve.kernels.paged_attention_gpu import paged_attention_gpu, paged_attention_gpu_ref

BF16, FP16, FP8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
TOLERANCE: Final = {BF16: 3e-3, FP16: 5e-4}
"""Of the whole result, relative: half a last bit of weights and of results."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a batch attends."""

    soft_cap: float = 0.0
    sliding_window: int | None = None


@dataclass(slots=True)
class Batch:
    """Sequences of (query tokens, tokens in all) in blocks that lie about; what nobody may read is no number."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    k_scales: Tensor | None
    v_scales: Tensor | None
    cu_seqlens_q: Tensor
    seq_lens: Tensor
    block_tables: Tensor

    def plan(self, *, num_multiprocessors: int = 4, batch_invariant: bool = False) -> AttentionPlan:
        return plan_attention(
            self.cu_seqlens_q,
            self.seq_lens,
            self.block_tables,
            num_kv_heads=self.k_cache.shape[1],
            num_multiprocessors=num_multiprocessors,
            device=torch.device("cpu"),
            batch_invariant=batch_invariant,
        )

    def run(self, gpu: EmulatedGpu, plan: AttentionPlan, options: Options) -> Tensor:
        return paged_attention_gpu(
            gpu,
            self.q,
            self.k_cache,
            self.v_cache,
            plan,
            k_scales=self.k_scales,
            v_scales=self.v_scales,
            scale=self.q.shape[2] ** -0.5,
            soft_cap=options.soft_cap,
            sliding_window=options.sliding_window,
        )

    def expected(self, plan: AttentionPlan, options: Options) -> Tensor:
        return paged_attention_gpu_ref(
            self.q,
            self.k_cache,
            self.v_cache,
            plan,
            k_scales=self.k_scales,
            v_scales=self.v_scales,
            scale=self.q.shape[2] ** -0.5,
            soft_cap=options.soft_cap,
            sliding_window=options.sliding_window,
        )


def make_batch(
    lengths: Sequence[tuple[int, int]],
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    seed: int = 0,
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    blocks = [-(-total // block_size) for _, total in lengths]
    num_blocks = sum(blocks) + 2
    ids = iter((torch.randperm(num_blocks - 1, generator=generator) + 1).tolist())
    block_tables = torch.full((len(lengths), max([1, *blocks])), num_blocks + 7, dtype=torch.int32)
    for row, count in enumerate(blocks):
        block_tables[row, :count] = torch.tensor([next(ids) for _ in range(count)], dtype=torch.int32)
    states = torch.randn(2, num_blocks, num_kv_heads, block_size, head_dim, generator=generator)
    scales: list[Tensor | None] = [None, None]
    if kv_dtype == FP8:
        factors = states.abs().amax(-1) / 448
        states /= factors[..., None]
        scales = list(factors)
    caches = [cache.contiguous() for cache in states.to(kv_dtype)]
    unused = set(range(num_blocks)) - {
        int(block) for row, count in enumerate(blocks) for block in block_tables[row, :count]
    }
    for cache, factor in zip(caches, scales, strict=True):
        for place, offset in _behind(lengths, block_tables, block_size):
            _spoil(cache, factor, place, offset)
        for block in unused:
            _spoil(cache, factor, block, 0)
    counts = torch.tensor([0, *(count for count, _ in lengths)])
    rows = torch.randn(int(counts.sum()), num_heads + 3, head_dim, generator=generator).to(dtype)
    return Batch(
        rows[:, 1 : num_heads + 1],
        caches[0],
        caches[1],
        scales[0],
        scales[1],
        counts.cumsum(0).int(),
        torch.tensor([total for _, total in lengths], dtype=torch.int32),
        block_tables,
    )


def _behind(
    lengths: Sequence[tuple[int, int]], block_tables: Tensor, block_size: int
) -> Iterator[tuple[int, int]]:
    """The last block of each sequence, and where in it nothing has been written."""
    for row, (_, total) in enumerate(lengths):
        if total % block_size:
            yield int(block_tables[row, total // block_size]), total % block_size


def _spoil(cache: Tensor, scales: Tensor | None, block: int, offset: int) -> None:
    cache[block, :, offset:] = torch.nan
    if scales is not None:
        scales[block, :, offset:] = torch.nan


def error(found: Tensor, expected: Tensor) -> float:
    """Of the whole, relative; not a number where any element is none."""
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))
