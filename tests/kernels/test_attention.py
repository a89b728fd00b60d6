"""Paged attention against its reference, on every instruction set this processor has."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from trioserve._speedups.attention import available_isas
from trioserve.kernels.attention import (
    _run_native,
    _run_torch,
    implementation,
    paged_attention,
    paged_attention_ref,
    visible_mask,
)
from trioserve.kernels.shapes import ShapeError

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
RAGGED = [(1, 1), (1, 17), (5, 5), (20, 270), (1, 530), (33, 33), (2, 257), (1, 256)]
"""(query tokens, tokens): decodes, whole prompts and chunks with a prefix."""


@dataclass
class Case:
    """A ragged batch whose blocks lie in random order among blocks of NaN."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    cu_seqlens_q: Tensor
    seq_lens: Tensor
    block_tables: Tensor

    @property
    def caches(self) -> tuple[Tensor, Tensor]:
        return self.k_cache, self.v_cache

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.cu_seqlens_q, self.seq_lens, self.block_tables

    @property
    def scale(self) -> float:
        return float(self.q.shape[2] ** -0.5)

    def expected(self, sliding_window: int | None = None, bound: float | None = None) -> Tensor:
        return paged_attention_ref(
            self.q, *self.caches, *self.tables, scale=self.scale, sliding_window=sliding_window, bound=bound
        )

    def native(
        self, sliding_window: int | None, *, isa: str, num_threads: int = 1, bound: float | None = None
    ) -> Tensor:
        out = torch.full(self.q.shape, torch.nan, dtype=self.q.dtype)
        options = {"num_threads": num_threads, "isa": isa, "bound": bound}
        _run_native(out, self.q, *self.caches, self.tables, self.scale, sliding_window, 1 << 30, **options)  # type: ignore[arg-type] # as named
        return out


def make(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    *,
    block_size: int = 16,
    seed: int = 0,
) -> Case:
    """``heads`` is (num_heads, num_kv_heads, head_dim)."""
    generator = torch.Generator().manual_seed(seed)
    num_heads, num_kv_heads, head_dim = heads
    needs = [-(-tokens // block_size) for _, tokens in lengths]
    shuffled = torch.randperm(sum(needs) + 3, generator=generator, dtype=torch.int32)
    tables = torch.full((len(lengths), max(needs)), 1 << 30, dtype=torch.int32)
    shape = (len(shuffled), num_kv_heads, block_size, head_dim)
    caches = [torch.full(shape, torch.nan, dtype=dtype) for _ in "kv"]
    for row, (_, tokens) in enumerate(lengths):
        start = sum(needs[:row])
        tables[row, : needs[row]] = shuffled[start : start + needs[row]]
        at = torch.arange(tokens)
        for cache in caches:
            states = torch.randn((tokens, num_kv_heads, head_dim), generator=generator).to(dtype)
            cache[tables[row, at // block_size].long(), :, at % block_size] = states
    bounds = torch.tensor([0] + [queries for queries, _ in lengths]).cumsum(0).int()
    wide = torch.randn((int(bounds[-1]), num_heads + 2, head_dim), generator=generator).to(dtype)
    seq_lens = torch.tensor([tokens for _, tokens in lengths], dtype=torch.int32)
    return Case(wide[:, 1:-1], caches[0], caches[1], bounds, seq_lens, tables)


def error(found: Tensor, expected: Tensor) -> float:
    return (found.float() - expected.float()).abs().max().item()


HEADS = [(3, 1, 64), (4, 4, 32), (14, 2, 64), (8, 1, 128), (6, 2, 80), (5, 5, 16), (2, 1, 256), (40, 1, 32)]


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_the_compiled_kernel_is_the_reference(
    heads: tuple[int, int, int], dtype: torch.dtype, isa: str
) -> None:
    case = make(RAGGED, heads, dtype)
    for sliding_window in (None, 1, 7, 290):
        found = case.native(sliding_window, isa=isa)
        assert error(found, case.expected(sliding_window)) < TOLERANCE[dtype], sliding_window


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bound_is_of_the_scores(dtype: torch.dtype, isa: str) -> None:
    case = make(RAGGED, (6, 2, 64), dtype)
    assert error(case.expected(bound=1.0), case.expected()) > 10 * TOLERANCE[dtype], "it is seen"
    for sliding_window in (None, 7):
        expected = case.expected(sliding_window, bound=1.0)
        assert error(case.native(sliding_window, isa=isa, bound=1.0), expected) < TOLERANCE[dtype]
        whole = paged_attention(
            case.q, *case.caches, *case.tables, scale=case.scale, sliding_window=sliding_window, bound=1.0
        )
        assert error(whole, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("isa", available_isas())
def test_threads_splits_and_neighbours_do_not_change_a_bit(isa: str) -> None:
    """A long context is split between threads only when it is alone; the arithmetic is the same."""
    case = make([(1, 5000), (1, 30), (9, 2000)], (6, 2, 64), torch.bfloat16)
    together = case.native(None, isa=isa)
    assert torch.equal(together, case.native(None, isa=isa, num_threads=2))
    for row in range(3):
        queries = slice(int(case.cu_seqlens_q[row]), int(case.cu_seqlens_q[row + 1]))
        alone = Case(
            case.q[queries],
            *case.caches,
            torch.tensor([0, queries.stop - queries.start], dtype=torch.int32),
            case.seq_lens[row : row + 1],
            case.block_tables[row : row + 1],
        )
        assert torch.equal(alone.native(None, isa=isa, num_threads=2), together[queries])


@pytest.mark.parametrize("isa", available_isas())
def test_cutting_a_prompt_does_not_change_a_bit(isa: str) -> None:
    whole = make([(600, 600)], (4, 2, 32), torch.float32)
    expected = whole.native(None, isa=isa)
    for start, end in ((0, 1), (1, 255), (255, 258), (258, 599), (599, 600)):
        part = Case(
            whole.q[start:end],
            *whole.caches,
            torch.tensor([0, end - start], dtype=torch.int32),
            torch.tensor([end], dtype=torch.int32),
            whole.block_tables,
        )
        assert torch.equal(part.native(None, isa=isa), expected[start:end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", [(4, 2, 64), (3, 1, 20)], ids=str)
@pytest.mark.parametrize("block_size", [8, 16, 32])
def test_the_face_takes_every_type_head_and_block(
    heads: tuple[int, int, int], dtype: torch.dtype, block_size: int
) -> None:
    """Among the lengths one is past the border where bf16 goes to torch."""
    case = make([*RAGGED, (100, 130)], heads, dtype, block_size=block_size)
    for sliding_window in (None, 50):
        found = paged_attention(
            case.q, *case.caches, *case.tables, scale=case.scale, sliding_window=sliding_window
        )
        assert error(found, case.expected(sliding_window)) < TOLERANCE[dtype]


@pytest.mark.parametrize("sliding_window", [None, 20, 500])
def test_torch_fills_the_long_chunks_and_only_those(sliding_window: int | None) -> None:
    case = make([(64, 64), (63, 63), (70, 100)], (4, 2, 32), torch.float32)
    out = torch.zeros(case.q.shape)
    _run_torch(out, case.q, *case.caches, case.tables, case.scale, sliding_window, 63)
    expected = case.expected(sliding_window)
    expected[64:127] = 0
    assert error(out, expected) < TOLERANCE[torch.float32]


def test_an_empty_batch_and_an_empty_sequence_are_nothing() -> None:
    case = make([(3, 3), (1, 5)], (2, 1, 16), torch.float32)
    case.cu_seqlens_q = torch.tensor([0, 0, 1], dtype=torch.int32)
    case.q = case.q[3:]
    found = paged_attention(case.q, *case.caches, *case.tables, scale=case.scale)
    assert error(found, make([(3, 3), (1, 5)], (2, 1, 16), torch.float32).expected()[3:]) < 2e-5


def test_scores_of_any_size_stay_finite() -> None:
    case = make([(1, 300), (20, 40)], (4, 2, 64), torch.float32)
    case.q *= 300
    for isa in available_isas():
        assert error(case.native(None, isa=isa), case.expected()) < 1e-3


@pytest.mark.parametrize("fault", ["last key", "first key of the window", "other head", "other block"])
def test_a_planted_fault_is_seen(fault: str) -> None:
    """Each of these would be a likely slip in the kernel, and none hides within the tolerance."""
    case = make(RAGGED, (4, 2, 32), torch.bfloat16)
    expected = case.expected(7)
    if fault == "last key":
        case.seq_lens[7:] -= 1
    elif fault == "other head":
        case.k_cache.copy_(case.k_cache.flip(1))
    elif fault == "other block":
        case.block_tables[:, 0] = case.block_tables[:, 0].flip(0)
    window = 8 if fault == "first key of the window" else 7
    assert (
        not error(case.native(window, isa="portable"), expected) < 2 * TOLERANCE[torch.bfloat16]
    )  # NaN, too


def test_shapes_that_do_not_fit_are_named() -> None:
    case = make(RAGGED, (4, 2, 32), torch.float32)
    with pytest.raises(ShapeError, match=r"v_cache .* has block_size = 8, expected 16"):
        paged_attention(case.q, case.k_cache, case.v_cache[:, :, :8], *case.tables, scale=1.0)
    with pytest.raises(ShapeError, match=r"block_tables .* has num_seqs = 3, expected 8"):
        paged_attention(case.q, *case.caches, *case.tables[:2], case.block_tables[:3], scale=1.0)
    with pytest.raises(ShapeError, match="q has shape"):
        paged_attention(case.q[0], *case.caches, *case.tables, scale=1.0)
    with pytest.raises(ShapeError, match="num_bounds is 8, expected 9"):
        paged_attention(case.q, *case.caches, case.cu_seqlens_q[1:], *case.tables[1:], scale=1.0)
    with pytest.raises(ShapeError, match="num_heads 3 is no multiple of num_kv_heads 2"):
        paged_attention(case.q[:, 1:], *case.caches, *case.tables, scale=1.0)


def test_the_implementation_has_a_name() -> None:
    assert implementation(torch.bfloat16, 64, 16) == f"cpu-{available_isas()[-1]}"
    assert implementation(torch.float16, 64, 16) == "cpu-torch"
    assert implementation(torch.float32, 20, 16) == "cpu-torch"
    assert available_isas()[0] == "portable"


def test_the_mask_is_causal_and_slides() -> None:
    assert visible_mask(2, 4, None).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert visible_mask(2, 4, 2).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
