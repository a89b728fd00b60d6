"""paged_prefill_sm90.cu against float64, on the emulator's barriers and matrix instructions of sm_90a."""

from dataclasses import replace
from typing import Any, Final

import pytest
import torch

from tests.emu.build import ORDERS, EmulatorError
from tests.emu.conftest import MakeGpu
from tests.emu.device import SHARED_BYTES, EmulatedGpu
from tests.emu.paged import BF16, FP8, FP16, TOLERANCE, Batch, Options, error, make_batch
from trioserve.kernels.paged_attention_gpu import (
    SM90_ROWS,
    SM90_STAGES,
    decode_kernel,
    instances,
    merge_kernel,
    prefill_kernel,
    shared_bytes,
    sm90_prefill_kernel,
)
from trioserve.settings.places import WITHOUT_WGMMA_VARIABLE

KINDS: Final = {BF16: "bf16", FP16: "fp16"}
SMALL: Final = (BF16, 64)
LARGE: Final = (FP16, 128)
MIXED: Final = [(1, 40), (5, 5), (40, 100), (0, 7), (1, 1), (2, 130), (130, 130), (33, 300)]
"""Prompts, chunks behind what was computed, decodes, a sequence without a token in this step."""
KEYS: Final = 128


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    kernels = [sm90_prefill_kernel(KINDS[dtype], head_dim) for dtype, head_dim in (SMALL, LARGE)]
    kernels += [make("bf16", "bf16", 64) for make in (decode_kernel, prefill_kernel)]
    return make_gpu([*kernels, merge_kernel("bf16")]).of("sm_90a")


def batch_of(case: tuple[torch.dtype, int], lengths: list[tuple[int, int]], **sizes: Any) -> Batch:
    dtype, head_dim = case
    sizes = {"num_heads": 4, "num_kv_heads": 2, "block_size": 16, "kv_dtype": dtype, **sizes}
    return make_batch(lengths, head_dim=head_dim, dtype=dtype, **sizes)


def check(gpu: EmulatedGpu, batch: Batch, options: Options = Options(), *, order: int = 0) -> None:  # noqa: B008
    plan = batch.plan()
    before = len(gpu.launched)
    found = batch.run(gpu.taking(order), plan, options)
    assert gpu.launched[before][0].base == "paged_prefill_sm90"
    assert error(found, batch.expected(plan, options)) < TOLERANCE[batch.q.dtype]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", [SMALL, LARGE], ids=str)
@pytest.mark.parametrize("options", [Options(), Options(3.0, 33)], ids=str)
def test_prompts_chunks_and_decodes_go_together(
    gpu: EmulatedGpu, options: Options, case: tuple[torch.dtype, int], order: int
) -> None:
    lengths = MIXED if case == SMALL else [both for both in MIXED if both[0] != 1]
    check(gpu, batch_of(case, lengths, num_heads=6, block_size=32), options, order=order)


@pytest.mark.parametrize("case", [SMALL, LARGE], ids=str)
def test_stages_are_filled_again_and_again(gpu: EmulatedGpu, case: tuple[torch.dtype, int]) -> None:
    """Fewer tiles than there are stages, as many, more and twice as many."""
    for tiles in (1, 2, 3, 4, 5, 9):
        check(gpu, batch_of(case, [(3, tiles * KEYS - 5)]), order=tiles + 1)


@pytest.mark.parametrize("group_size", [1, 3, 8, 40])
def test_groups_of_any_size_share_their_keys(gpu: EmulatedGpu, group_size: int) -> None:
    """Tiles with rows for one warpgroup only, for both, and tokens whose rows are in two tiles."""
    check(gpu, batch_of(SMALL, [(2, 50), (30, 35)], num_heads=2 * group_size))


@pytest.mark.parametrize("block_size", [16, 48, 256])
def test_blocks_of_any_size_hold_the_keys(gpu: EmulatedGpu, block_size: int) -> None:
    check(gpu, batch_of(LARGE, [(20, 290), (20, 65)], block_size=block_size))


@pytest.mark.parametrize("window", [1, 16, 17, 127, 128, 129, 1000])
def test_a_window_slides(gpu: EmulatedGpu, window: int) -> None:
    """Rows that do not see their block's first tile, and warpgroups that see none of one."""
    check(gpu, batch_of(SMALL, [(200, 200), (7, 390)]), Options(sliding_window=window))


@pytest.mark.parametrize("soft_cap", [0.5, 50.0])
def test_scores_have_a_soft_cap(gpu: EmulatedGpu, soft_cap: float) -> None:
    batch = batch_of(LARGE, [(40, 170)])
    batch.q *= 20
    check(gpu, batch, Options(soft_cap=soft_cap))


def test_ragged_batches_come_out_right(gpu: EmulatedGpu) -> None:
    """Drawn with fixed seeds: shapes that nobody thought of."""
    draw = torch.Generator().manual_seed(21)

    def number(least: int, most: int) -> int:
        return int(torch.randint(least, most + 1, (), generator=draw))

    for seed in range(12):
        lengths = [(number(2, total), total) for total in (number(2, 170) for _ in range(number(1, 4)))]
        kv_heads = number(1, 2)
        heads = {"num_heads": kv_heads * number(1, 5), "num_kv_heads": kv_heads}
        batch = batch_of((SMALL, LARGE)[seed % 2], lengths, block_size=16 * number(1, 3), seed=seed, **heads)
        options = Options(number(0, 1) * 5.0, number(1, 100) if number(0, 1) else None)
        check(gpu, batch, options, order=seed + 2)


def test_it_says_what_the_kernel_of_all_architectures_says(gpu: EmulatedGpu) -> None:
    batch = batch_of(SMALL, [(60, 200), (9, 9)])
    plan = batch.plan()
    found, other = (batch.run(gpu.of(at), plan, Options()) for at in ("sm_90a", "sm_80"))
    assert [kernel.base for kernel, _ in gpu.launched[-2:]] == ["paged_prefill_sm90", "paged_prefill"]
    assert error(found, other.double()) < TOLERANCE[BF16]


@pytest.mark.parametrize("case", [SMALL, LARGE], ids=str)
def test_a_row_is_the_same_alone_and_in_a_batch(gpu: EmulatedGpu, case: tuple[torch.dtype, int]) -> None:
    """To the bit, though in the batch others' keys are taken in front of its own, and tiles are skipped."""
    lengths = [(150, 300), (3, 3), (40, 140)]
    batch, options = batch_of(case, lengths), Options(sliding_window=140)
    together = batch.run(gpu, batch.plan(batch_invariant=True), options)
    bounds = batch.cu_seqlens_q.tolist()
    for row, (count, total) in enumerate(lengths):
        for rows, length in ((slice(0, count), total), (slice(0, 2), total - count + 2)):
            mine = slice(bounds[row] + rows.start, bounds[row] + rows.stop)
            alone = replace(
                batch,
                q=batch.q[mine],
                cu_seqlens_q=torch.tensor([0, rows.stop], dtype=torch.int32),
                seq_lens=torch.tensor([length], dtype=torch.int32),
                block_tables=batch.block_tables[row : row + 1],
            )
            assert torch.equal(alone.run(gpu, alone.plan(batch_invariant=True), options), together[mine])


@pytest.mark.parametrize(
    ("define", "sentence"),
    [
        ("CUEMU_WITHOUT_PHASES", "race|on its way|nobody wrote"),
        ("CUEMU_WAITING_FOR_LESS", "on its way|nobody wrote|race|copies of it are on their way"),
        ("CUEMU_WITHOUT_PUBLISHING", "did not publish it"),
        ("CUEMU_WITHOUT_BEGINNING", "no begin_products speaks of"),
        ("CUEMU_WITHOUT_ENDING", "race|have not ended|no begin_products|not committed"),
    ],
)
def test_a_forgotten_wait_is_caught(make_gpu: MakeGpu, define: str, sentence: str) -> None:
    broken = make_gpu([sm90_prefill_kernel("bf16", 64)], defines=[define]).of("sm_90a")
    batch = batch_of(SMALL, [(20, 700)])
    for order in ORDERS:
        with pytest.raises(EmulatorError, match=sentence):
            batch.run(broken.taking(order), batch.plan(), Options())


@pytest.mark.parametrize("fault", ["block", "length", "token"])
def test_a_table_that_leads_astray_is_caught(gpu: EmulatedGpu, fault: str) -> None:
    batch = batch_of(SMALL, [(20, 100)])
    plan = batch.plan()
    if fault == "block":
        plan.block_tables[0, 3] = batch.k_cache.shape[0]
    elif fault == "length":
        plan.seq_lens[0] = 16 * plan.block_tables.shape[1] + 1
    else:
        plan.cu_seqlens_q.add_(1)
    with pytest.raises(EmulatorError, match="out of bounds"):
        batch.run(gpu, plan, Options())


@pytest.mark.parametrize("fault", ["last key", "window", "head", "chunk"])
def test_a_slip_is_more_than_the_tolerance(gpu: EmulatedGpu, fault: str) -> None:
    batch, options = batch_of(SMALL, [(20, 150)]), Options(sliding_window=20)
    plan = batch.plan()
    expected = batch.expected(plan, options)
    if fault == "last key":
        plan.seq_lens[0] -= 1
    elif fault == "window":
        options = Options(sliding_window=21)
    elif fault == "head":
        batch.k_cache = batch.k_cache.flip(1).contiguous()
    else:
        batch.v_cache = batch.v_cache.unflatten(3, (8, 8)).flip(3).flatten(3).contiguous()  # type: ignore[no-untyped-call]
    assert not error(batch.run(gpu, plan, options), expected) < 2 * TOLERANCE[BF16]


def test_shared_memory_is_just_enough(gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last chunk of the last stage is touched, and there is no room for another block's."""
    launch = gpu.launch

    def launch_short(kernel: Any, *arguments: Any, shared_bytes: int, **sizes: Any) -> None:
        launch(kernel, *arguments, shared_bytes=shared_bytes - 16, **sizes)

    monkeypatch.setattr(gpu, "launch", launch_short)
    for case in (SMALL, LARGE):
        batch = batch_of(case, [(2, 4 * KEYS)])
        with pytest.raises(EmulatorError, match="out of bounds: byte"):
            batch.run(gpu, batch.plan(), Options())


@pytest.mark.parametrize(
    ("case", "kv_dtype", "architecture", "base"),
    [
        (SMALL, BF16, "sm_90a", "paged_prefill_sm90"),
        (SMALL, BF16, "sm_80", "paged_prefill"),
        (SMALL, FP8, "sm_90a", "paged_prefill"),
        ((BF16, 80), BF16, "sm_90a", "paged_prefill"),
        ((BF16, 256), BF16, "sm_90a", "paged_prefill"),
    ],
)
def test_only_an_sm_90a_has_it_for_what_it_takes(
    gpu: EmulatedGpu,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[torch.dtype, int],
    kv_dtype: torch.dtype,
    architecture: str,
    base: str,
) -> None:
    """All else goes the way of all, and so does everything where the variable says so."""
    asked, of = [], gpu.of(architecture)
    monkeypatch.setattr(of, "launch", lambda kernel, *_, **__: asked.append(kernel.base))
    batch = batch_of(case, [(3, 9)], kv_dtype=kv_dtype)
    batch.run(of, batch.plan(), Options())
    monkeypatch.setenv(WITHOUT_WGMMA_VARIABLE, "1")
    batch.run(of, batch.plan(), Options())
    assert asked == [base, "paged_prefill"]


def test_its_kernels_are_for_one_architecture_and_fit_it() -> None:
    own = [kernel for kernel in instances() if kernel.architecture]
    assert {kernel.base for kernel in own} == {"paged_prefill_sm90"}
    assert len(own) == len(KINDS) * len(SM90_STAGES)
    for kernel in own:
        assert shared_bytes(kernel) + 1024 <= SHARED_BYTES[kernel.architecture]


def test_the_grid_has_a_block_for_each_tile_of_rows(gpu: EmulatedGpu) -> None:
    batch = batch_of(SMALL, [(129, 129), (2, 5)])
    batch.run(gpu, batch.plan(), Options())
    assert gpu.launched[-1][1] == (-(-131 * 2 // SM90_ROWS) + 2, 2)
