"""paged_decode.cu and paged_prefill.cu against float64, launched as a GPU is."""

from dataclasses import replace
from typing import Any, Final

import pytest
import torch

from tests.emu.build import ORDERS, EmulatorError
from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.emu.paged import BF16, FP8, FP16, TOLERANCE, Batch, Options, error, make_batch
from trioserve.errors import KernelError
from trioserve.kernels import attention_plan
from trioserve.kernels.attention_plan import GROUP_KEYS, plan_attention, split_keys
from trioserve.kernels.paged_attention_gpu import (
    HEAD_DIMS,
    decode_kernel,
    merge_kernel,
    prefill_kernel,
    single_kernel,
    variant_of,
)
from trioserve.kernels.shapes import ShapeError

TYPES: Final = {"bf16": BF16, "fp16": FP16, "e4m3": FP8}
PLAIN: Final = ("bf16", "bf16", 64)
HALF: Final = ("fp16", "fp16", 96)
CODES: Final = ("bf16", "e4m3", 128)
EMULATED: Final = [PLAIN, HALF, CODES, ("bf16", "bf16", 256), ("fp16", "fp16", 192), ("fp16", "e4m3", 80)]
"""Every size of heads, every type, every pair of types, and odd numbers of chunks; compilers see all the others."""
DECODES: Final = [(1, 1), (1, 17), (1, 300), (1, 64), (1, 2)]
MIXED: Final = [(1, 40), (5, 5), (40, 100), (0, 7), (1, 1), (2, 130), (1, 200), (33, 33)]
"""Prompts, chunks behind what was computed, decodes, a sequence without a token in this step."""


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    kernels = [merge_kernel("bf16"), merge_kernel("fp16")]
    for case in EMULATED:
        kernels += [decode_kernel(*case), single_kernel(*case), prefill_kernel(*case)]
    return make_gpu(kernels)


@pytest.fixture(autouse=True)
def _short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short sequences have several."""
    monkeypatch.setattr(attention_plan, "_MIN_SPLIT", 32)


def batch_of(case: tuple[str, str, int], lengths: list[tuple[int, int]], **sizes: Any) -> Batch:
    query, kv, head_dim = case
    sizes = {"num_heads": 4, "num_kv_heads": 2, "block_size": 16, **sizes}
    return make_batch(lengths, head_dim=head_dim, dtype=TYPES[query], kv_dtype=TYPES[kv], **sizes)


def check(gpu: EmulatedGpu, batch: Batch, options: Options = Options()) -> None:  # noqa: B008
    """In every order of the threads, and the same bits in each."""
    plan = batch.plan()
    expected = batch.expected(plan, options)
    found = [batch.run(gpu.taking(order), plan, options) for order in ORDERS]
    assert error(found[0], expected) < TOLERANCE[batch.q.dtype]
    assert all(torch.equal(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("case", EMULATED, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (16, 1)])
def test_decodes_attend_to_all_their_keys(
    gpu: EmulatedGpu, heads: int, kv_heads: int, case: tuple[str, str, int]
) -> None:
    """Of one key, of part of a block, of several splits; in groups of 1, 2 and 16 heads."""
    check(gpu, batch_of(case, DECODES, num_heads=heads, num_kv_heads=kv_heads))
    names = [kernel.base for kernel, _ in gpu.launched[-2:]]
    assert names == ["paged_decode_single" if heads == kv_heads else "paged_decode", "merge_splits"]


@pytest.mark.parametrize("case", EMULATED, ids=str)
@pytest.mark.parametrize("options", [Options(), Options(3.0, 33)], ids=str)
def test_prompts_chunks_and_decodes_go_together(
    gpu: EmulatedGpu, options: Options, case: tuple[str, str, int]
) -> None:
    check(gpu, batch_of(case, MIXED, num_heads=6, num_kv_heads=2, block_size=32), options)


@pytest.mark.parametrize("group_size", [2, 3, 8, 15, 17, 40])
def test_groups_of_any_size_share_their_keys(gpu: EmulatedGpu, group_size: int) -> None:
    """Up to the 16 rows of a warp, and beyond them; in prompts too, where rows of one token are in two tiles."""
    check(gpu, batch_of(PLAIN, [(1, 50), (3, 9), (1, 33)], num_heads=2 * group_size))


@pytest.mark.parametrize("block_size", [16, 32, 48, 256])
def test_blocks_of_any_size_hold_the_keys(gpu: EmulatedGpu, block_size: int) -> None:
    check(gpu, batch_of(HALF, [(1, 290), (20, 65), (1, 16)], block_size=block_size))


@pytest.mark.parametrize("window", [1, 15, 16, 17, 64, 65, 1000])
@pytest.mark.parametrize("case", [PLAIN, CODES], ids=str)
def test_a_window_slides(gpu: EmulatedGpu, case: tuple[str, str, int], window: int) -> None:
    """Among the prompts one whose later rows do not see its first tile."""
    check(gpu, batch_of(case, [(1, 200), (150, 150), (7, 90)]), Options(sliding_window=window))
    check(gpu, batch_of(case, [(1, 200), (1, 3)], num_heads=2), Options(sliding_window=window))


@pytest.mark.parametrize("soft_cap", [0.5, 50.0])
def test_scores_have_a_soft_cap(gpu: EmulatedGpu, soft_cap: float) -> None:
    batch = batch_of(HALF, MIXED)
    batch.q *= 20
    check(gpu, batch, Options(soft_cap=soft_cap))
    check(gpu, batch_of(HALF, DECODES, num_heads=2), Options(soft_cap=soft_cap))


def test_ragged_batches_of_all_kinds_come_out_right(gpu: EmulatedGpu) -> None:
    """Drawn with fixed seeds: shapes that nobody thought of."""
    draw = torch.Generator().manual_seed(20)

    def number(least: int, most: int) -> int:
        return int(torch.randint(least, most + 1, (), generator=draw))

    for seed in range(24):
        lengths = []
        for _ in range(number(1, 6)):
            total = number(1, 150)
            lengths.append((number(0, 1) or number(1, min(total, 80)), total))
        kv_heads = number(1, 3)
        batch = batch_of(
            EMULATED[number(0, len(EMULATED) - 1)],
            lengths,
            num_heads=kv_heads * number(1, 9),
            num_kv_heads=kv_heads,
            block_size=16 * number(1, 3),
            seed=seed,
        )
        options = Options(number(0, 1) * 5.0, number(1, 100) if number(0, 1) else None)
        plan = batch.plan(num_multiprocessors=number(1, 20))
        found = batch.run(gpu.taking(seed + 2), plan, options)
        assert error(found, batch.expected(plan, options)) < TOLERANCE[batch.q.dtype], (seed, lengths)


@pytest.mark.parametrize("case", [PLAIN, CODES], ids=str)
def test_a_row_is_the_same_alone_and_in_a_batch(
    gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch, case: tuple[str, str, int]
) -> None:
    """To the bit, where splits are cut alike: no order of a sum depends on the neighbours."""
    monkeypatch.setattr(attention_plan, "_INVARIANT_SPLIT", 48)
    lengths = [(1, 130), (40, 100), (1, 77), (3, 3)]
    batch = batch_of(case, lengths)
    together = batch.run(gpu, batch.plan(batch_invariant=True), Options())
    bounds = batch.cu_seqlens_q.tolist()
    for row in range(len(lengths)):
        rows = slice(bounds[row], bounds[row + 1])
        alone = replace(
            batch,
            q=batch.q[rows],
            cu_seqlens_q=torch.tensor([0, rows.stop - rows.start], dtype=torch.int32),
            seq_lens=batch.seq_lens[row : row + 1],
            block_tables=batch.block_tables[row : row + 1],
        )
        assert torch.equal(alone.run(gpu, alone.plan(batch_invariant=True), Options()), together[rows])


def test_a_graph_may_be_replayed_with_other_splits_and_with_rows_of_nobody(gpu: EmulatedGpu) -> None:
    """The grid of a plan stays; a sequence of length 0 gives zeros."""
    batch = batch_of(PLAIN, DECODES)
    plan = batch.plan()
    for size in (64, 96, 304):
        plan.split_size.fill_(size)
        assert error(batch.run(gpu, plan, Options()), batch.expected(plan, Options())) < 3e-3
    plan.seq_lens[2:] = 0
    found = batch.run(gpu, plan, Options())
    assert error(found, batch.expected(plan, Options())) < 3e-3
    assert found[2:].eq(0).all()
    single = replace(plan, num_splits=1)
    single.split_size.fill_(512)
    assert batch.run(gpu, single, Options())[2:].eq(0).all()


def test_large_scores_stay_finite(gpu: EmulatedGpu) -> None:
    batch = batch_of(HALF, MIXED)
    batch.q *= 200
    plan = batch.plan()
    assert error(batch.run(gpu, plan, Options()), batch.expected(plan, Options())) < 2e-2


@pytest.mark.parametrize("define", ["CUEMU_WITHOUT_BARRIERS", "CUEMU_WAITING_FOR_LESS"])
@pytest.mark.parametrize("lengths", [[(1, 200)], [(20, 100)]], ids=["decode", "prefill"])
def test_a_forgotten_wait_is_caught(make_gpu: MakeGpu, lengths: list[tuple[int, int]], define: str) -> None:
    case = PLAIN
    broken = make_gpu([decode_kernel(*case), prefill_kernel(*case), merge_kernel("bf16")], defines=[define])
    batch = batch_of(case, lengths)
    for order in ORDERS:
        with pytest.raises(EmulatorError, match=r"race|on its way|nobody wrote"):
            batch.run(broken.taking(order), batch.plan(), Options())


@pytest.mark.parametrize("fault", ["block", "length", "token"])
@pytest.mark.parametrize("lengths", [[(1, 100)], [(20, 100)]], ids=["decode", "prefill"])
def test_a_table_that_leads_astray_is_caught(
    gpu: EmulatedGpu, lengths: list[tuple[int, int]], fault: str
) -> None:
    batch = batch_of(PLAIN, lengths)
    plan = batch.plan()
    if fault == "block":
        plan.block_tables[0, 3] = batch.k_cache.shape[0]
    elif fault == "length":
        plan.seq_lens[0] = 16 * plan.block_tables.shape[1] + 1
    else:
        plan.cu_seqlens_q.add_(1)
    with pytest.raises(EmulatorError, match="out of bounds"):
        batch.run(gpu, plan, Options())


@pytest.mark.parametrize("fault", ["last key", "window", "head", "scale"])
def test_a_slip_is_more_than_the_tolerance(gpu: EmulatedGpu, fault: str) -> None:
    """Each would be a likely one, and none hides."""
    batch, options = batch_of(CODES, DECODES), Options(sliding_window=20)
    plan = batch.plan()
    expected = batch.expected(plan, options)
    if fault == "last key":
        plan.seq_lens[2] -= 1
    elif fault == "window":
        options = Options(sliding_window=21)
    elif fault == "head":
        batch.k_cache = batch.k_cache.flip(1).contiguous()
    else:
        assert batch.v_scales is not None
        batch.v_scales = batch.v_scales.roll(1, -1)
    assert not error(batch.run(gpu, plan, options), expected) < 2 * TOLERANCE[BF16]


def test_shared_memory_is_just_enough(gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what the launch asks for, all but what separates the last row from nothing is touched."""
    launch, missing = gpu.launch, 0

    def launch_short(kernel: Any, *arguments: Any, shared_bytes: int = 0, **sizes: Any) -> None:
        launch(kernel, *arguments, shared_bytes=max(0, shared_bytes - missing), **sizes)

    monkeypatch.setattr(gpu, "launch", launch_short)
    for case in EMULATED:
        for lengths, num_heads in (([(1, 200)], 32), ([(80, 200)], 4), ([(1, 200)], 2)):
            batch = batch_of(case, lengths, num_heads=num_heads)
            plan = batch.plan(batch_invariant=True)
            missing = 0
            batch.run(gpu, plan, Options())
            missing = 32
            with pytest.raises(EmulatorError, match="out of bounds: byte"):
                batch.run(gpu, plan, Options())


def test_every_variant_fits_the_smallest_gpu() -> None:
    for head_dim in HEAD_DIMS:
        variant = variant_of(head_dim)
        for kv_bytes in (1, 2):
            sizes = (
                variant.decode_bytes(kv_bytes),
                variant.single_bytes(kv_bytes),
                variant.prefill_bytes(kv_bytes),
            )
            assert max(sizes) <= 99 << 10


@pytest.mark.parametrize("invariant", [False, True])
def test_splits_reach_the_end_and_fill_the_device(invariant: bool) -> None:
    for lengths in ([1], [40_000], [100] * 200, [8_000] * 8, [16] * 63 + [130_000]):
        size, num_splits = split_keys(lengths, 8, 132, batch_invariant=invariant)
        assert size % GROUP_KEYS == 0
        assert size * (num_splits - 1) < max(lengths) <= size * num_splits
    assert split_keys([], 8, 132)[1] == 1
    size, _ = split_keys([32_768], 8, 132)
    assert size <= 32_768 * 8 / 132 < 4 * size
    assert (
        split_keys([100] * 2, 1, 132, batch_invariant=True)[0]
        == split_keys([9000], 8, 80, batch_invariant=True)[0]
    )


def test_what_no_kernel_takes_is_named(gpu: EmulatedGpu) -> None:
    batch = batch_of(PLAIN, DECODES)
    plan = batch.plan()
    with pytest.raises(ShapeError, match="k_scales belongs to a cache of float8_e4m3fn"):
        replace(batch, k_scales=torch.ones(1), v_scales=torch.ones(1)).run(gpu, plan, Options())
    with pytest.raises(ShapeError, match="num_heads 3 is no multiple of num_kv_heads 2"):
        replace(batch, q=batch.q[:, :3]).run(gpu, plan, Options())
    halves = {name: getattr(batch, name)[:, :, :8].contiguous() for name in ("k_cache", "v_cache")}
    with pytest.raises(ShapeError, match="block_size 8 is no multiple of 16"):
        replace(batch, **halves).run(gpu, plan, Options())
    with pytest.raises(KernelError, match="the kernel takes bf16, fp16, not float"):
        replace(batch, q=batch.q.float()).run(gpu, plan, Options())
    odd = make_batch(
        [(1, 5)], num_heads=2, num_kv_heads=1, head_dim=48, block_size=16, dtype=BF16, kv_dtype=BF16
    )
    with pytest.raises(KernelError, match="head_dim 48 has no attention kernel"):
        odd.run(gpu, odd.plan(), Options())


def test_an_empty_batch_starts_nothing(gpu: EmulatedGpu) -> None:
    batch = batch_of(PLAIN, [(1, 5)])
    empty = torch.zeros(0, dtype=torch.int32)
    plan = plan_attention(
        torch.zeros(1, dtype=torch.int32),
        empty,
        empty.view(0, 1),
        num_kv_heads=2,
        num_multiprocessors=4,
        device=torch.device("cpu"),
    )
    before = len(gpu.launched)
    assert replace(batch, q=batch.q[:0]).run(gpu, plan, Options()).shape == (0, 4, 64)
    assert len(gpu.launched) == before
