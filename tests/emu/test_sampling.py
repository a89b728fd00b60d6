"""edit_logits.cu and choose_tokens.cu against the CPU's sampler and against their reference."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from tests.emu.build import ORDERS, EmulatorError
from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.emu.sampled import Wish, choose_on_cpu, tables
from tests.emu.tensors import TYPES, random
from trioserve.kernels.sampling_gpu import (
    CHOOSE,
    GROUP,
    SEEN,
    WEIGH,
    RowTables,
    choose_tokens_gpu,
    edit_kernel,
    edit_logits_gpu,
    instances,
    score_tokens_gpu,
)
from trioserve.kernels.sampling_ref import choose_tokens_ref, edit_logits_ref, score_tokens_ref
from trioserve.kernels.shapes import ShapeError

SIZES = [1, 31, 130, 4096, 5002, 9001]
"""Fewer tokens than lanes; a whole group; several, the last not full; of every width."""
FILTERS = [
    Wish(top_k=1),
    Wish(top_k=40),
    Wish(top_p=0.9),
    Wish(min_p=0.05),
    Wish(top_k=50, top_p=0.95),
    Wish(top_k=3000, top_p=0.5, min_p=0.001),
    Wish(),
]


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu(instances())


def chosen(gpu: EmulatedGpu, wishes: list[Wish], logits: Tensor, *, has_lists: bool = True) -> list[int]:
    rows, slots = tables(wishes, logits.shape[1])
    edited = edit_logits_gpu(gpu, logits, rows, slots, has_lists=has_lists)
    found: list[int] = choose_tokens_gpu(gpu, edited, rows, slots).tolist()
    return found


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("vocab_size", SIZES)
def test_seeds_give_the_tokens_that_they_give_on_the_cpu(
    gpu: EmulatedGpu, vocab_size: int, kind: str
) -> None:
    """For every filter, hot and cold; rows that want nothing but the likeliest are among them."""
    hot = [
        replace(wish, temperature=t, seed=seed) for seed, (wish, t) in enumerate(product(FILTERS, (0.6, 1.5)))
    ]
    wishes = [*hot, Wish(), Wish(temperature=1.0, seed=-7, position=1 << 40)]
    logits = random(len(wishes), vocab_size, dtype=TYPES[kind], seed=vocab_size) * 4
    assert chosen(gpu, wishes, logits, has_lists=False) == choose_on_cpu(wishes, logits)[0]


def test_all_orders_of_threads_give_the_same(gpu: EmulatedGpu) -> None:
    wishes = [replace(wish, temperature=1.0, seed=9, stops=(0,), bias={7: 3.0}) for wish in FILTERS]
    logits = random(len(wishes), 5002, dtype=torch.bfloat16) * 3
    expected = choose_on_cpu(wishes, logits)[0]
    assert [chosen(gpu.taking(order), wishes, logits) for order in ORDERS] == [expected] * len(ORDERS)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 0.3])
def test_a_flat_distribution_is_filtered_too(gpu: EmulatedGpu, spread: float) -> None:
    """With more undecided than shared memory holds, and all equal."""
    wishes = [replace(wish, temperature=1.0, seed=3) for wish in FILTERS]
    logits = random(len(wishes), 3 * GROUP + 5, dtype=torch.float32) * spread
    assert chosen(gpu, wishes, logits, has_lists=False) == choose_on_cpu(wishes, logits)[0]


@pytest.mark.parametrize("wish", FILTERS, ids=str)
def test_equals_of_the_last_that_is_kept_are_kept(gpu: EmulatedGpu, wish: Wish) -> None:
    """Logits of few values: over many seeds the tokens are the CPU's, of which some are beyond the border's first."""
    wishes = [replace(wish, temperature=1.0, seed=seed) for seed in range(12)]
    logits = (random(1, 1000, dtype=torch.float32) * 2).round().expand(12, -1).contiguous()
    assert chosen(gpu, wishes, logits, has_lists=False) == choose_on_cpu(wishes, logits)[0]


def test_exactly_k_are_kept_where_they_are_more_than_shared_memory_holds(gpu: EmulatedGpu) -> None:
    logits = torch.zeros(8, 3 * GROUP)
    logits[:, ::2] = 1.0
    wishes = [Wish(temperature=1.0, top_k=3 * GROUP // 2, seed=seed) for seed in range(8)]
    found = chosen(gpu, wishes, logits, has_lists=False)
    assert found == choose_on_cpu(wishes, logits)[0]
    assert not any(token_id % 2 for token_id in found)


EDITS = {
    "mask": Wish(mask=(3, 77, 4100)),
    "empty mask": Wish(mask=()),
    "allowed": Wish(allowed=(5, 900, 4500)),
    "mask and allowed": Wish(mask=(3, 5, 77), allowed=(5, 900)),
    "mask without allowed": Wish(mask=(3, 77), allowed=(5, 900)),
    "bans": Wish(stops=(0, 1, 4999)),
    "bans that are over": Wish(stops=(0, 1, 4999), position=10),
    "bans of all that is allowed": Wish(allowed=(5, 900), stops=(5, 900)),
    "bans of some that is allowed": Wish(mask=(5, 900, 4097), stops=(5, 4097)),
    "bias": Wish(bias={0: 9.0, 4096: 8.5, 5001: 8.75, 17: -100.0}),
    "repetition": Wish(penalties=(1.7, 0.0, 0.0), prompt=(1, 2, 3), output=(4, 5000, 4)),
    "frequency": Wish(penalties=(1.0, 0.7, 0.0), prompt=tuple(range(3000)), output=(9, 9, 9, 4800)),
    "presence": Wish(penalties=(1.0, 0.0, 1.1), prompt=(8,), output=tuple(range(5002))),
    "all": Wish(
        mask=tuple(range(0, 5002, 3)),
        allowed=tuple(range(0, 5002, 2)),
        stops=(0, 6, 12),
        bias={18: 7.0, 5000: 6.5, 3: 90.0},
        penalties=(1.3, 0.2, 0.4),
        prompt=(18, 24),
        output=(18, 30, 30),
    ),
}


@pytest.mark.parametrize("kind", TYPES)
def test_edits_are_those_of_the_reference(gpu: EmulatedGpu, kind: str) -> None:
    """To the bit, and the maxima are those of the runs."""
    wishes = list(EDITS.values())
    logits = random(len(wishes), 5002, dtype=TYPES[kind])
    rows, slots = tables(wishes, 5002)
    found = edit_logits_gpu(gpu, logits, rows, slots)
    assert torch.equal(found.edited[:, :5002], edit_logits_ref(logits, rows, slots))
    assert found.edited[:, 5002:].eq(-math.inf).all()
    assert torch.equal(found.maxima, found.edited.view(len(wishes), -1, 128).amax(-1))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_edited_rows_give_the_tokens_of_the_cpu(gpu: EmulatedGpu, temperature: float) -> None:
    wishes = [
        replace(wish, temperature=temperature, seed=seed, top_p=0.9 if seed % 2 else 1.0)
        for seed, wish in enumerate(EDITS.values())
    ]
    logits = random(len(wishes), 5002, dtype=torch.float32)
    assert chosen(gpu, wishes, logits) == choose_on_cpu(wishes, logits)[0]


def test_broken_rows_have_the_tokens_of_the_cpu(gpu: EmulatedGpu) -> None:
    """No numbers, nothing above -inf, infinitely likely; with and without a grammar."""
    logits = random(8, 600, dtype=torch.float32)
    logits[0] = math.nan
    logits[1, 1::2] = math.nan
    logits[2:5] = -math.inf
    logits[5:, 400] = math.inf
    hot = Wish(temperature=1.0, top_p=0.9)
    masked = replace(hot, mask=(70, 500))
    wishes = [hot, hot, hot, masked, replace(masked, temperature=0.0), hot, Wish(temperature=1.0), Wish()]
    assert chosen(gpu, wishes, logits) == choose_on_cpu(wishes, logits)[0]


def test_the_reference_agrees(gpu: EmulatedGpu) -> None:
    """It has float64 and sorts, so a draw next to a border might differ; none of these is."""
    wishes = [
        replace(wish, temperature=0.9, seed=seed) for seed, wish in enumerate([*FILTERS, *EDITS.values()])
    ]
    logits = random(len(wishes), 5002, dtype=torch.bfloat16) * 2
    rows, slots = tables(wishes, 5002)
    expected = choose_tokens_ref(edit_logits_ref(logits, rows, slots), rows, slots)
    assert chosen(gpu, wishes, logits) == expected.tolist()


def test_a_chosen_token_counts_where_there_are_penalties(gpu: EmulatedGpu) -> None:
    wishes = [Wish(penalties=(1.0, 0.1, 0.0), output=(7,) * 3), Wish(penalties=(1.1, 0.0, 0.0)), Wish()]
    logits = torch.zeros(3, 64)
    logits[:, 7] = 9.0
    rows, slots = tables(wishes, 64)
    slots.counts[1, 7] = SEEN - 1 | SEEN
    choose_tokens_gpu(gpu, edit_logits_gpu(gpu, logits, rows, slots), rows, slots)
    assert slots.counts[:, 7].tolist() == [0, SEEN - 1 | SEEN, SEEN | 4]
    assert slots.counts.int().count_nonzero() == 2


@pytest.mark.parametrize("scope", [(1.0, 1.0), (0.6, 1.0), (1.0, 0.8)])
def test_log_probabilities_are_those_of_the_cpu(gpu: EmulatedGpu, scope: tuple[float, float]) -> None:
    """Of the model's own logits, whatever the edits; equals in the order of their ids."""
    wishes = [Wish(bias={11: 50.0}, num_top=count, scope=scope) for count in (0, 1, 5, 20, -1)]
    logits = (random(5, 4200, dtype=torch.bfloat16) * 4).round()
    rows, slots = tables(wishes, 4200)
    raw = edit_logits_gpu(gpu, logits, rows, slots, has_edits=False)
    token_ids = torch.full((5,), 11, dtype=torch.int32)
    logprobs, top_ids = score_tokens_gpu(gpu, token_ids, raw, rows, slots, max_top=20)
    exact, exact_ids = score_tokens_ref(token_ids, raw.edited[:, :4200], rows, slots, max_top=20)
    _, of_cpu, ids_of_cpu = choose_on_cpu(wishes, logits)
    for row, wish in enumerate(wishes[:-1]):
        count = wish.num_top
        assert top_ids[row].tolist() == [*ids_of_cpu[row, :count].tolist(), *[-1] * (20 - count)]
        assert top_ids[row].tolist() == exact_ids[row].tolist()
        for truth in (exact[row], of_cpu[row, : 1 + count]):
            torch.testing.assert_close(logprobs[row, : len(truth)].double(), truth, rtol=2e-6, atol=2e-6)
    assert logprobs[-1].isnan().all()


def test_rows_may_name_all_tokens_also_such_as_are_no_numbers(gpu: EmulatedGpu) -> None:
    wishes = [Wish(num_top=6), Wish(num_top=6)]
    logits = torch.tensor([[1.0, math.nan, 3.0, -math.inf, 3.0, 0.0], [math.nan] * 6])
    rows, slots = tables(wishes, 6)
    raw = edit_logits_gpu(gpu, logits, rows, slots, has_edits=False)
    _, top_ids = score_tokens_gpu(gpu, torch.tensor([1, 1]).int(), raw, rows, slots, max_top=6)
    assert top_ids.tolist() == [[2, 4, 0, 5, 1, 3], [0, 1, 2, 3, 4, 5]]


def _with_slot(rows: RowTables) -> RowTables:
    return replace(rows, slots=rows.slots + 1)


def _with_mask(rows: RowTables) -> RowTables:
    return replace(rows, mask_of=rows.mask_of + 2)


@pytest.mark.parametrize("broken", [_with_slot, _with_mask])
def test_what_lies_outside_is_caught(gpu: EmulatedGpu, broken: Callable[[RowTables], RowTables]) -> None:
    rows, slots = tables([Wish(mask=(1,))], 64)
    with pytest.raises(EmulatorError, match="out of bounds"):
        edit_logits_gpu(gpu, torch.zeros(1, 64), broken(rows), slots)


def test_missing_barriers_are_caught(make_gpu: MakeGpu) -> None:
    broken = make_gpu([edit_kernel("float", 4), WEIGH, CHOOSE], defines=["CUEMU_WITHOUT_BARRIERS"])
    with pytest.raises(EmulatorError, match=r"race|nobody wrote"):
        chosen(broken, [Wish(temperature=1.0, top_k=5)], torch.randn(1, 600), has_lists=False)


def test_tables_that_do_not_fit_are_refused(gpu: EmulatedGpu) -> None:
    rows, slots = tables([Wish()], 64)
    with pytest.raises(ShapeError, match="vocab_size = 64, expected 65"):
        edit_logits_gpu(gpu, torch.zeros(1, 65), rows, slots)
    with pytest.raises(ShapeError, match=r"seeds is torch.int32, expected torch.int64"):
        replace(slots, seeds=slots.seeds.int())
    with pytest.raises(ShapeError, match="top_k"):
        replace(slots, top_k=slots.top_k.repeat(2))
