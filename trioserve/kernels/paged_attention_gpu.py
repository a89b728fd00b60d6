"""Paged attention on a GPU: which kernels run for a batch, in which grids; ``attention.py`` has the truth."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from torch import Tensor

from trioserve.errors import KernelError
from trioserve.kernels.attention import gather_blocks, visible_mask
from trioserve.kernels.attention_plan import GROUP_KEYS, AttentionPlan
from trioserve.kernels.gpu import Gpu, element_of
from trioserve.kernels.shapes import ShapeError, Shapes
from trioserve.kernels.source import Kernel

HEAD_DIMS: Final = (64, 80, 96, 128, 192, 256)
ROWS: Final = 16
"""Of a warp."""
MERGE_THREADS: Final = 128
_WARP: Final = 32


@dataclass(frozen=True, slots=True)
class Variant:
    """How attention is cut for one size of heads, so that no block needs more than the 99 KB of sm_86 and sm_120."""

    head_dim: int
    decode_warps: int
    decode_stages: int
    prefill_keys: int
    prefill_warps: int = 4

    def row_bytes(self, kv_bytes: int) -> int:
        """Of a key in shared memory."""
        return self.head_dim * kv_bytes + 16

    def tile_bytes(self, keys: int, kv_bytes: int) -> int:
        """Of ``keys`` keys, values and scales: ``Tile::kBytes``."""
        return 2 * keys * (self.row_bytes(kv_bytes) + (4 if kv_bytes == 1 else 0))

    def decode_bytes(self, kv_bytes: int) -> int:
        """Shared memory of ``paged_decode``."""
        rings = self.decode_warps * self.decode_stages * self.tile_bytes(GROUP_KEYS, kv_bytes)
        return max(rings, self.decode_warps * ROWS * (self.head_dim + 2) * 4)

    def single_bytes(self, kv_bytes: int) -> int:
        """Shared memory of ``paged_decode_single``."""
        lanes = next(lanes for lanes in (4, 8, 16, 32) if lanes * 16 >= self.head_dim * kv_bytes)
        return SINGLE_WARPS * (_WARP // lanes) * (self.head_dim + 2) * 4

    def prefill_bytes(self, kv_bytes: int) -> int:
        """Shared memory of ``paged_prefill``."""
        return 2 * self.tile_bytes(self.prefill_keys, kv_bytes)


SINGLE_WARPS: Final = 4
SM90_STAGES: Final = {64: 4, 128: 3}
"""Of ``paged_prefill_sm90``, by size of heads; it has no others."""
SM90_ROWS: Final = 128
"""Of one of its blocks."""
_SM90_KEYS: Final = 128
_SM90_THREADS: Final = 384
_WITHOUT_SM90: Final = "TRIOSERVE_WITHOUT_WGMMA"
"""A variable of the environment: where it is set, an sm_90a has no other kernels than the rest."""
_VARIANTS: Final = {
    64: Variant(64, 4, 3, 64),
    80: Variant(80, 4, 3, 64),
    96: Variant(96, 4, 3, 64),
    128: Variant(128, 4, 2, 64),
    192: Variant(192, 2, 3, 32),
    256: Variant(256, 2, 2, 32),
}


def variant_of(head_dim: int) -> Variant:
    """How attention is cut for heads of ``head_dim``.

    Raises:
        KernelError: No kernel takes them.
    """
    if head_dim not in _VARIANTS:
        raise KernelError(f"head_dim {head_dim} has no attention kernel, those of {HEAD_DIMS} have")
    return _VARIANTS[head_dim]


@cache
def decode_kernel(query: str, kv: str, head_dim: int) -> Kernel:
    """``paged_decode`` for groups of 2 heads and more."""
    variant = variant_of(head_dim)
    sizes = f"{head_dim}, {variant.decode_warps}, {variant.decode_stages}"
    return Kernel("paged_decode.cu", f"paged_decode<{query}, {kv}, {sizes}>")


@cache
def single_kernel(query: str, kv: str, head_dim: int) -> Kernel:
    """``paged_decode`` where every query head has a KV head of its own."""
    return Kernel("paged_decode.cu", f"paged_decode_single<{query}, {kv}, {head_dim}, {SINGLE_WARPS}>")


@cache
def prefill_kernel(query: str, kv: str, head_dim: int) -> Kernel:
    """``paged_prefill``."""
    variant = variant_of(head_dim)
    sizes = f"{head_dim}, {variant.prefill_keys}, {variant.prefill_warps}"
    return Kernel("paged_prefill.cu", f"paged_prefill<{query}, {kv}, {sizes}>")


@cache
def sm90_prefill_kernel(element: str, head_dim: int) -> Kernel:
    """``paged_prefill_sm90``."""
    sizes = f"{head_dim}, {_SM90_KEYS}, {SM90_STAGES[head_dim]}"
    return Kernel("paged_prefill_sm90.cu", f"paged_prefill_sm90<{element}, {sizes}>", "sm_90a")


@cache
def merge_kernel(query: str) -> Kernel:
    """``merge_splits``."""
    return Kernel("paged_decode.cu", f"merge_splits<{query}, {MERGE_THREADS}>")


def instances() -> Iterator[Kernel]:
    """Every attention kernel there is."""
    for query in ("bf16", "fp16"):
        yield merge_kernel(query)
        for kv in (query, "e4m3"):
            for head_dim in HEAD_DIMS:
                yield decode_kernel(query, kv, head_dim)
                yield single_kernel(query, kv, head_dim)
                yield prefill_kernel(query, kv, head_dim)
        yield from (sm90_prefill_kernel(query, head_dim) for head_dim in SM90_STAGES)


def shared_bytes(kernel: Kernel) -> int:
    """Shared memory that a launch of ``kernel`` asks for."""
    if kernel.base == "merge_splits":
        return 0
    if kernel.base == "paged_prefill_sm90":
        head_dim, keys, stages = map(int, kernel.choices[1:])
        return stages * keys * head_dim * 4  # keys and values, 2 bytes each
    variant, kv_bytes = variant_of(int(kernel.choices[2])), 1 if kernel.choices[1] == "e4m3" else 2
    if kernel.base == "paged_prefill":
        return variant.prefill_bytes(kv_bytes)
    single = kernel.base == "paged_decode_single"
    return variant.single_bytes(kv_bytes) if single else variant.decode_bytes(kv_bytes)


def paged_attention_gpu(
    gpu: Gpu,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: AttentionPlan,
    *,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    scale: float,
    soft_cap: float = 0.0,
    sliding_window: int | None = None,
) -> Tensor:
    """``paged_attention`` by the kernels of ``paged_decode.cu``, ``paged_prefill.cu`` and ``paged_prefill_sm90.cu``.

    Shapes:
        q, result: [num_tokens, num_heads, head_dim] bf16 or fp16, heads contiguous
        k_cache, v_cache: [num_blocks, num_kv_heads, block_size, head_dim], of q's type or float8_e4m3fn
        k_scales, v_scales: [num_blocks, num_kv_heads, block_size] float32, of float8_e4m3fn
    Raises:
        ShapeError: They do not fit each other.
        KernelError: No kernel takes heads or types like these.
    """
    call = _Call.checked(gpu, q, k_cache, v_cache, plan, k_scales, v_scales)
    options = (scale, soft_cap, sliding_window or 0)
    if plan.has_prefills:
        call.prefill(options)
    if plan.has_decodes:
        call.decode(options)
    return call.out


def paged_attention_gpu_ref(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: AttentionPlan,
    *,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    scale: float,
    soft_cap: float = 0.0,
    sliding_window: int | None = None,
) -> Tensor:
    """The truth for ``paged_attention_gpu``: float64, one sequence after the other, not rounded."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    bounds = plan.cu_seqlens_q.tolist()
    for row, seq_len in enumerate(plan.seq_lens.tolist()):
        queries = slice(bounds[row], bounds[row + 1])
        if not seq_len or queries.start == queries.stop:
            continue
        keys, values = (
            _widened(cache, scales, plan.block_tables[row], seq_len, q.shape[1])
            for cache, scales in ((k_cache, k_scales), (v_cache, v_scales))
        )
        scores = torch.einsum("qhd,hkd->hqk", q[queries].double(), keys) * scale
        if soft_cap:
            scores = soft_cap * (scores / soft_cap).tanh()
        visible = visible_mask(queries.stop - queries.start, seq_len, sliding_window)
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        out[queries] = torch.einsum("hqk,hkd->qhd", weights, values)
    return out


def _widened(
    cache: Tensor, scales: Tensor | None, block_table: Tensor, seq_len: int, num_heads: int
) -> Tensor:
    """A sequence's keys or values, [num_heads, seq_len, head_dim] float64."""
    states = gather_blocks(cache.view(torch.uint8) if scales is not None else cache, block_table, seq_len)
    if scales is not None:
        factors = gather_blocks(scales[..., None], block_table, seq_len)
        states = states.contiguous().view(cache.dtype).double() * factors.double()
    return states.double().repeat_interleave(num_heads // states.shape[0], 0)


@dataclass(frozen=True, slots=True)
class _Call:
    """One call's tensors and sizes, checked."""

    gpu: Gpu
    out: Tensor
    q: Tensor
    caches: tuple[Tensor, ...]
    """Keys, values and their scales."""
    plan: AttentionPlan
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int

    @classmethod
    def checked(
        cls,
        gpu: Gpu,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        plan: AttentionPlan,
        k_scales: Tensor | None,
        v_scales: Tensor | None,
    ) -> "_Call":
        tensors = {
            "q": (q, "num_tokens num_heads head_dim"),
            "k_cache": (k_cache, "num_blocks num_kv_heads block_size head_dim"),
            "v_cache": (v_cache, "num_blocks num_kv_heads block_size head_dim"),
            "seq_lens": (plan.seq_lens, "num_seqs"),
            "block_tables": (plan.block_tables, "num_seqs max_blocks"),
        }
        check_scales(k_cache, k_scales, v_scales)
        sizes = Shapes(**tensors)
        _check_heads(sizes, q, k_cache, v_cache)
        none = torch.empty(0, dtype=torch.float32, device=q.device)
        return cls(
            gpu,
            torch.empty(q.shape, dtype=q.dtype, device=q.device),
            q,
            (
                k_cache,
                v_cache,
                none if k_scales is None else k_scales,
                none if v_scales is None else v_scales,
            ),
            plan,
            *(sizes[name] for name in ("num_heads", "num_kv_heads", "head_dim", "block_size")),
        )

    def names(self) -> tuple[str, str]:
        """What the sources call the types of queries and cache."""
        query = element_of(self.q.dtype, "bf16", "fp16")
        return query, element_of(self.caches[0].dtype, query, "e4m3")

    def prefill(self, options: tuple[float, float, int]) -> None:
        """Fill the rows of sequences with several query tokens."""
        variant, plan = variant_of(self.head_dim), self.plan
        query, kv = self.names()
        if self.gpu.architecture == "sm_90a" and query == kv and _has_sm90(self.head_dim):
            kernel, caches = sm90_prefill_kernel(query, self.head_dim), self.caches[:2]
            rows, threads = SM90_ROWS, _SM90_THREADS
        else:
            kernel, caches = prefill_kernel(query, kv, self.head_dim), self.caches
            rows, threads = variant.prefill_warps * ROWS, variant.prefill_warps * _WARP
        group_size = self.num_heads // self.num_kv_heads
        tiles = -(-self.q.shape[0] * group_size // rows) + plan.num_seqs  # a last one of each is not full
        self.gpu.launch(
            kernel,
            *(self.out, self.q, *caches, plan.cu_seqlens_q, plan.seq_lens, plan.block_tables),
            *(plan.num_seqs, self.num_heads, self.num_kv_heads, self.q.stride(0)),
            *(self.block_size, plan.block_tables.shape[1], *options, 2),
            grid=(tiles, self.num_kv_heads),
            block=(threads,),
            shared_bytes=shared_bytes(kernel),
        )

    def decode(self, options: tuple[float, float, int]) -> None:
        """Fill the rows of sequences with one query token."""
        plan, variant, group_size = self.plan, variant_of(self.head_dim), self.num_heads // self.num_kv_heads
        single = group_size == 1
        kernel = (single_kernel if single else decode_kernel)(*self.names(), self.head_dim)
        shape = (plan.num_seqs if plan.num_splits > 1 else 0, self.num_heads, plan.num_splits)
        partial_out = torch.empty((*shape, self.head_dim), dtype=torch.float32, device=self.q.device)
        partial_totals = torch.empty((*shape, 2), dtype=torch.float32, device=self.q.device)
        tables = (plan.cu_seqlens_q, plan.seq_lens, plan.block_tables, plan.split_size)
        self.gpu.launch(
            kernel,
            *(self.out, partial_out, partial_totals, self.q, *self.caches, *tables),
            *(self.num_heads, self.num_kv_heads, self.q.stride(0), self.block_size),
            *(plan.block_tables.shape[1], *options),
            grid=(plan.num_splits, self.num_kv_heads * -(-group_size // ROWS), plan.num_seqs),
            block=((SINGLE_WARPS if single else variant.decode_warps) * _WARP,),
            shared_bytes=shared_bytes(kernel),
        )
        if plan.num_splits == 1:
            return
        self.gpu.launch(
            merge_kernel(self.names()[0]),
            *(self.out, partial_out, partial_totals, plan.cu_seqlens_q, plan.seq_lens, plan.split_size),
            *(plan.num_splits, self.head_dim, options[2]),
            grid=(self.num_heads, plan.num_seqs),
            block=(MERGE_THREADS,),
        )


def check_scales(k_cache: Tensor, k_scales: Tensor | None, v_scales: Tensor | None) -> None:
    """See that there are scales where the cache needs them, [num_blocks, num_kv_heads, block_size], and only there.

    Raises:
        ShapeError: There are not, or they do not fit the cache.
    """
    scaled = k_cache.dtype == torch.float8_e4m3fn
    for name, scales in (("k_scales", k_scales), ("v_scales", v_scales)):
        if scaled != (scales is not None):
            raise ShapeError(f"{name} belongs to a cache of float8_e4m3fn, and this one is {k_cache.dtype}")
        if scales is not None and scales.shape != k_cache.shape[:3]:
            raise ShapeError(f"{name} has shape {tuple(scales.shape)}, expected {tuple(k_cache.shape[:3])}")


def _has_sm90(head_dim: int) -> bool:
    return head_dim in SM90_STAGES and not os.environ.get(_WITHOUT_SM90)


def _check_heads(sizes: Shapes, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    if sizes["num_heads"] % sizes["num_kv_heads"]:
        raise ShapeError(
            f"num_heads {sizes['num_heads']} is no multiple of num_kv_heads {sizes['num_kv_heads']}"
        )
    if sizes["block_size"] % GROUP_KEYS:
        raise ShapeError(f"block_size {sizes['block_size']} is no multiple of {GROUP_KEYS}")
    assert q.stride(2) == 1 and q.stride(1) == sizes["head_dim"], "the heads of q are not contiguous"
    assert q.stride(0) % 8 == 0, "the rows of q are not aligned"
    assert k_cache.is_contiguous() and v_cache.is_contiguous(), "the cache is not contiguous"
    assert k_cache.dtype == v_cache.dtype, "keys and values are of different types"
