"""Paged attention beside torch's (flash, cuDNN), FlexAttention and, where it is installed, FlashInfer.

Heads are those of Llama-3-8B, 32 and 8 of 128, blocks of 16 tokens that lie about. Peers of torch read contiguous keys
and values, which is less work than ours. Before anything is timed, results are compared with torch's on the same data.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.ceilings import copy_rate, product_rate
from benchmarks.gpu.report import Report, Row
from benchmarks.gpu.timing import Call, medians, num_sets, rotated
from trioserve.kernels.attention_plan import AttentionPlan, plan_attention
from trioserve.kernels.driver import gpu_of
from trioserve.kernels.paged_attention_gpu import paged_attention_gpu

NUM_HEADS: Final = 32
NUM_KV_HEADS: Final = 8
HEAD_DIM: Final = 128
BLOCK_SIZE: Final = 16
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
DEVICE: Final = torch.device("cuda", 0)
TOLERANCE: Final[Mapping[torch.dtype, float]] = {BF16: 1e-2, FP8: 2e-2}
"""Relative, of the whole result."""
DECODES: Final[Mapping[tuple[int, int], float | None]] = {
    (1, 1024): 12,
    (1, 4096): None,
    (8, 1024): None,
    (8, 4096): 46,
    (8, 16384): None,
    (8, 32768): None,
    (32, 4096): None,
}
"""Batch and context, with microseconds to reach on an H200."""
PREFILLS: Final[Mapping[int, float | None]] = {2048: None, 8192: 540, 32768: None}
"""Tokens, with TFLOP/s to reach on an H200."""
FLEX_SEQS: Final = ((8, 4096),)
"""Decodes for which FlexAttention is compiled, some 20 s each."""


@dataclass(frozen=True, slots=True)
class Case:
    """A batch of equal sequences."""

    batch: int
    num_queries: int
    context: int
    kv_dtype: torch.dtype = BF16

    @property
    def kv_bytes(self) -> int:
        """Of all keys and values, scales included."""
        width = HEAD_DIM * self.kv_dtype.itemsize + (4 if self.kv_dtype == FP8 else 0)
        return 2 * self.batch * self.context * NUM_KV_HEADS * width

    @property
    def flops(self) -> int:
        """That a causal mask leaves."""
        pairs = self.num_queries * (2 * self.context - self.num_queries + 1) // 2
        return 4 * self.batch * NUM_HEADS * HEAD_DIM * pairs


@dataclass(slots=True)
class Buffers:
    """One set of tensors."""

    q: Tensor
    k: Tensor
    v: Tensor
    """[num_blocks, num_kv_heads, block_size, head_dim]"""
    k_scales: Tensor | None
    v_scales: Tensor | None
    block_tables: Tensor
    plan: AttentionPlan

    @classmethod
    def of(cls, case: Case, seed: int) -> "Buffers":
        """Random ones."""
        generator = torch.Generator(DEVICE).manual_seed(seed)
        blocks = -(-case.context // BLOCK_SIZE)
        num_blocks = case.batch * blocks

        def cache() -> tuple[Tensor, Tensor | None]:
            shape = (num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
            numbers = torch.randn(shape, device=DEVICE, dtype=BF16, generator=generator)
            if case.kv_dtype == BF16:
                return numbers, None
            scales = numbers.float().abs().amax(-1) / 448
            return (numbers.float() / scales[..., None]).to(FP8), scales

        (k, k_scales), (v, v_scales) = cache(), cache()
        order = torch.randperm(num_blocks, device=DEVICE, generator=generator).int()
        tables = order.view(case.batch, blocks)
        shape = (case.batch * case.num_queries, NUM_HEADS, HEAD_DIM)
        q = torch.randn(shape, device=DEVICE, dtype=BF16, generator=generator)
        plan = plan_attention(
            torch.arange(case.batch + 1, dtype=torch.int32) * case.num_queries,
            torch.full((case.batch,), case.context, dtype=torch.int32),
            tables.cpu(),
            num_kv_heads=NUM_KV_HEADS,
            num_multiprocessors=gpu_of(DEVICE).num_multiprocessors,
            device=DEVICE,
        )
        return cls(q, k, v, k_scales, v_scales, tables, plan)

    def ours(self) -> Tensor:
        """[num_tokens, num_heads, head_dim]"""
        return paged_attention_gpu(
            gpu_of(DEVICE),
            self.q,
            self.k,
            self.v,
            self.plan,
            k_scales=self.k_scales,
            v_scales=self.v_scales,
            scale=HEAD_DIM**-0.5,
        )

    def contiguous(self, cache: Tensor, scales: Tensor | None) -> Tensor:
        """[batch, num_kv_heads, context, head_dim] bf16, as peers want it."""
        found = cache[self.block_tables.long()]
        if scales is not None:
            found = found.float() * scales[self.block_tables.long()][..., None]
        return found.to(BF16).permute(0, 2, 1, 3, 4).flatten(2, 3).contiguous()

    def queries(self) -> Tensor:
        """[batch, num_heads, num_queries, head_dim]"""
        return self.q.view(len(self.block_tables), -1, NUM_HEADS, HEAD_DIM).transpose(1, 2).contiguous()


def measure(report: Report, *, has_flex: bool = True) -> None:
    """Decodes in bf16 and with an e4m3 cache, then prefills."""
    for (batch, context), target in DECODES.items():
        case = Case(batch, 1, context)
        name = f"decode {batch} x {context // 1024}k"
        _measure_decode(report, name, case, target, has_flex=has_flex and (batch, context) in FLEX_SEQS)
    fp8 = Case(8, 1, 32768, FP8)
    _measure_decode(report, "decode 8 x 32k, e4m3", fp8, fp8.kv_bytes / 2.9e12 * 1e6, has_flex=False)
    for tokens, target in PREFILLS.items():
        _measure_prefill(report, f"prefill {tokens // 1024}k", Case(1, tokens, tokens), target)


def _measure_decode(report: Report, name: str, case: Case, target: float | None, *, has_flex: bool) -> None:
    sets = [Buffers.of(case, seed) for seed in range(num_sets(case.kv_bytes))]
    _check(case, sets[0])
    contenders = {"ours": rotated(lambda number: sets[number].ours, case.kv_bytes)}
    contenders |= dict(_peers(case, sets, has_flex=has_flex))
    found = medians(contenders)
    share = case.kv_bytes / (found["ours"] * 1e-6) / copy_rate(report)
    _add(report, name, found, unit="us", share=share, target=target)


def _measure_prefill(report: Report, name: str, case: Case, target: float | None) -> None:
    sets = [Buffers.of(case, 0)]
    _check(case, sets[0])
    found = medians({"ours": [sets[0].ours], **dict(_peers(case, sets, has_flex=False))})
    rates = {name: case.flops / (us * 1e-6) * 1e-12 for name, us in found.items()}
    share = rates["ours"] * 1e12 / product_rate(report)
    _add(report, name, rates, unit="TFLOP/s", share=share, target=target)


def _add(
    report: Report, name: str, found: dict[str, float], *, unit: str, share: float, target: float | None
) -> None:
    """A row with the best peer, the others in its note."""
    ours = found.pop("ours")
    best = (min if unit == "us" else max)(found, key=found.__getitem__, default=None)
    others = ", ".join(f"{peer} {value:,.4g}" for peer, value in found.items() if peer != best)
    value = None if best is None else found[best]
    report.add(Row("attention", name, ours, unit, share, best or "", value, target, others))


def _check(case: Case, of: Buffers) -> None:
    """See that ours is right.

    Raises:
        AssertionError: It is not.
    """
    found = of.ours().view(case.batch, case.num_queries, NUM_HEADS, HEAD_DIM).transpose(1, 2).float()
    expected = _sdpa(of, case)().float()
    error = float((found - expected).norm() / expected.norm())
    assert error < TOLERANCE[case.kv_dtype], f"attention of {case} is wrong: relative error {error:.1e}"


def _sdpa(of: Buffers, case: Case) -> Callable[[], Tensor]:
    q, k, v = of.queries(), of.contiguous(of.k, of.k_scales), of.contiguous(of.v, of.v_scales)
    return partial(scaled_dot_product_attention, q, k, v, is_causal=case.num_queries > 1, enable_gqa=True)


def _peers(case: Case, sets: list[Buffers], *, has_flex: bool) -> Iterator[tuple[str, list[Call]]]:
    """Those that run here, with their calls; of an e4m3 cache FlashInfer alone reads the codes."""
    if case.kv_dtype == BF16:
        calls = [_sdpa(of, case) for of in sets]
        for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION)):
            bound = [partial(_with_backend, backend, call) for call in calls]
            if _runs(bound[0]):
                yield name, rotated(bound.__getitem__, case.kv_bytes)
        if has_flex:
            flex = _flex(sets)
            if _runs(flex[0]):
                yield "FlexAttention", rotated(flex.__getitem__, case.kv_bytes)
    if importlib.util.find_spec("flashinfer") is not None:
        wrapped = _flashinfer(case, sets)
        if _runs(wrapped[0]):
            yield "FlashInfer", rotated(wrapped.__getitem__, case.kv_bytes)


def _with_backend(backend: SDPBackend, call: Callable[[], Tensor]) -> Tensor:
    with sdpa_kernel(backend):
        return call()


def _runs(call: Call) -> bool:
    """Whether a peer takes such a batch."""
    try:
        call()
        torch.cuda.synchronize()
    except (RuntimeError, ValueError, NotImplementedError) as exc:
        print(f"left out: {str(exc).splitlines()[0][:160]}", flush=True)
        return False
    return True


def _flex(sets: list[Buffers]) -> list[Call]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)
    return [
        partial(
            compiled,
            of.queries(),
            of.contiguous(of.k, None),
            of.contiguous(of.v, None),
            enable_gqa=True,
        )
        for of in sets
    ]


def _flashinfer(case: Case, sets: list[Buffers]) -> list[Call]:
    """Paged as ours is; of an e4m3 cache with one scale for all, which is less work than ours."""
    flashinfer: Any = importlib.import_module("flashinfer")
    blocks = sets[0].block_tables.shape[1]
    indptr = torch.arange(case.batch + 1, dtype=torch.int32) * blocks
    last = torch.full((case.batch,), (case.context - 1) % BLOCK_SIZE + 1, dtype=torch.int32)
    calls: list[Call] = []
    for of in sets:
        workspace = torch.empty(128 << 20, dtype=torch.uint8, device=DEVICE)
        tables = (indptr.to(DEVICE), of.block_tables.flatten(), last.to(DEVICE))
        sizes = (NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE)
        types = {"q_data_type": BF16, "kv_data_type": case.kv_dtype}
        if case.num_queries == 1:
            wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
            wrapper.plan(*tables, *sizes, **types)
        else:
            wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
            queries = torch.arange(case.batch + 1, dtype=torch.int32, device=DEVICE) * case.num_queries
            wrapper.plan(queries, *tables, *sizes, causal=True, **types)
        calls.append(partial(wrapper.run, of.q, (of.k, of.v)))
    return calls
