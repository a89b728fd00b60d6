"""The choice of tokens against float64 references, on every instruction set."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.sampling.reference import distribution
from trioserve._speedups.sampling import Recipes, available_isas, number_of, score, weight_of
from trioserve.core.sampling import SamplingParams

SIZES = st.one_of(st.integers(1, 70), st.sampled_from([255, 256, 257, 511, 512, 544, 1024, 1100, 2049, 7001]))
VALUES = [0.0, -0.0, 1.0, -1.0, 2.5, 3e38, -3e38, np.inf, -np.inf, np.nan]
ROUNDING = 2e-6
"""Of a probability: weights are float32, and so are their logarithms, of up to 125."""


class Outcome(NamedTuple):
    token_ids: list[int]
    logprobs: NDArray[np.float64]
    top_ids: NDArray[np.int64]
    is_certain: list[int]


def recipes_of(several: Sequence[SamplingParams], vocab_size: int) -> Recipes:
    recipes = Recipes(len(several), vocab_size)
    for slot, one in enumerate(several):
        recipes.admit(
            slot,
            is_greedy=one.is_greedy,
            temperature=one.temperature,
            top_k=one.top_k,
            top_p=one.top_p,
            min_p=one.min_p,
            seed=one.seed,
            num_top=-1 if one.logprobs is None else one.logprobs,
            scope_temperature=1.0,
            scope_top_p=1.0,
            certain_above=0.5,
        )
    return recipes


def choose(
    recipes: Recipes,
    logits: NDArray[np.float32],
    isa: str,
    *,
    positions: Sequence[int] = (),
    masks: NDArray[np.int32] | None = None,
    num_threads: int = 1,
    most_top: int = 0,
) -> Outcome:
    """Row i is for slot i and has mask i; position 3 unless others are named."""
    num_rows, size = logits.shape
    outcome = Outcome([], np.zeros((num_rows, 1 + most_top)), np.zeros((num_rows, most_top), np.int64), [])
    token_ids, is_certain = np.full(num_rows, -1), np.zeros(num_rows, np.uint8)
    recipes.choose(
        logits,
        np.arange(num_rows),
        np.array(positions or [3] * num_rows),
        np.zeros((1, -(-size // 32)), np.int32) if masks is None else masks,
        np.empty(0, np.int64) if masks is None else np.arange(num_rows),
        token_ids,
        outcome.logprobs,
        outcome.top_ids,
        is_certain,
        num_threads=num_threads,
        isa=isa,
    )
    return outcome._replace(token_ids=token_ids.tolist(), is_certain=is_certain.tolist())


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**({"max_tokens": 50} | fields))


GREEDY = params(temperature=0.0)


def packed(allowed: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int32]:
    """The mask of each row; what lies behind the last token is arbitrary."""
    num_rows, size = allowed.shape
    bits = rng.random((num_rows, -(-size // 32) * 32)) < 0.5
    bits[:, :size] = allowed
    return np.packbits(bits, axis=1, bitorder="little").view(np.int32)


def drawn(seed: int, num_rows: int, size: int, values: list[float]) -> NDArray[np.float32]:
    """Logits, some of which are ``values``."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(size=(num_rows, size)) * 4, 1).astype(np.float32)  # with ties
    if values:
        places = rng.random(logits.shape) < 0.3
        logits[places] = rng.choice(np.array(values, np.float32), int(places.sum()))
    return logits


def expected_argmax(logits: NDArray[np.float32], allowed: NDArray[np.bool_]) -> int:
    """The first of the largest allowed; no number is less than any. Where nothing is allowed, of all."""
    if not allowed.any():
        return expected_argmax(logits, np.ones_like(allowed))
    kept = np.where(allowed & ~np.isnan(logits), logits, -np.inf)
    if kept.max() > -np.inf:
        return int(kept.argmax())
    if allowed.all():
        return 0
    lowest = np.flatnonzero(allowed & (logits == -np.inf))
    return int(lowest[0] if lowest.size else allowed.argmax())


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(1, 4),
    size=SIZES,
    share=st.sampled_from([0.0, 0.02, 0.5, 0.98]),
    values=st.lists(st.sampled_from(VALUES), max_size=4),
    num_threads=st.integers(1, 3),
)
def test_the_likeliest_allowed_is_that_of_numpy(
    seed: int, num_rows: int, size: int, share: float, values: list[float], num_threads: int
) -> None:
    logits, rng = drawn(seed, num_rows, size, values), np.random.default_rng(seed)
    allowed = rng.random((num_rows, size)) < share
    allowed[:, rng.integers(size)] &= size > 1  # not all of them
    masks, recipes = packed(allowed, rng), recipes_of([GREEDY] * num_rows, size)
    for isa in available_isas():
        found = choose(recipes, logits, isa, masks=masks, num_threads=num_threads).token_ids
        assert found == [expected_argmax(*row) for row in zip(logits, allowed, strict=True)]
        unmasked = choose(recipes, logits, isa, num_threads=num_threads).token_ids
        assert unmasked == [expected_argmax(row, np.ones(size, np.bool_)) for row in logits]


@st.composite
def recipe(draw: st.DrawFn) -> SamplingParams:
    return params(
        temperature=draw(st.sampled_from([2e-5, 0.01, 0.3, 0.8, 1.0, 1.7, 100.0])),
        top_k=draw(st.sampled_from([0, 0, 2, 5, 50, 1000, 10**6])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.999, 0.95, 0.5, 0.1, 1e-6])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.001, 0.05, 0.9, 1.0])),
        seed=draw(st.integers(0, 2**64 - 1)),
        logprobs=draw(st.sampled_from([None, 0, 3])),
    )


def may_be(token_id: int, number: float, logits: NDArray[np.float32], one: SamplingParams) -> bool:
    """Whether ``number`` picks the token, or does so within rounding."""
    for nudge in (0.0, -ROUNDING, ROUNDING):
        nudged = params(
            temperature=one.temperature,
            top_k=one.top_k,
            top_p=1.0 if one.top_p + nudge >= 1 else max(one.top_p + nudge, 1e-9),
            min_p=min(one.min_p * (1 + nudge), 1.0),
        )
        p = distribution(logits.astype(np.float64), nudged)
        ends = p.cumsum()
        if p[token_id] > 0 and ends[token_id] - p[token_id] - ROUNDING <= number <= ends[token_id] + ROUNDING:
            return True
    return False


@settings(max_examples=250, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=SIZES,
    several=st.lists(recipe(), min_size=1, max_size=4),
    values=st.lists(st.sampled_from([0.0, 1.0, 9.0, -np.inf]), max_size=3),
    num_threads=st.integers(1, 3),
)
def test_a_number_picks_the_token_that_the_reference_says(
    seed: int, size: int, several: list[SamplingParams], values: list[float], num_threads: int
) -> None:
    """And the same one on every instruction set and alone."""
    logits = drawn(seed, len(several), size, values)
    logits[:, seed % size] = 2.0  # something is possible
    recipes, kept = recipes_of(several, size), logits.copy()
    found = [
        choose(recipes, logits, isa, num_threads=num_threads, most_top=3).token_ids
        for isa in available_isas()
    ]
    assert found == [found[0]] * len(found)
    np.testing.assert_array_equal(logits, kept)
    for row, one in enumerate(several):
        assert may_be(found[0][row], number_of(one.seed, 3), logits[row], one)
        alone = choose(recipes_of([one], size), logits[row : row + 1], available_isas()[0], most_top=3)
        assert alone.token_ids == found[0][row : row + 1]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=SIZES,
    several=st.lists(recipe(), min_size=1, max_size=3),
    values=st.lists(st.sampled_from(VALUES), min_size=1, max_size=4),
)
def test_logits_that_are_no_numbers_choose_one_that_is(
    seed: int, size: int, several: list[SamplingParams], values: list[float]
) -> None:
    """A broken model must not end the rank; what is infinitely likely is chosen, what is impossible is not."""
    logits = drawn(seed, len(several), size, values)
    recipes = recipes_of(several, size)
    found = [choose(recipes, logits, isa, most_top=3) for isa in available_isas()]
    for outcome in found:
        assert outcome.token_ids == found[0].token_ids
    for row, token_id in zip(logits, found[0].token_ids, strict=True):
        assert 0 <= token_id < size
        if np.nanmax(row, initial=-np.inf) > -np.inf:
            assert row[token_id] > -np.inf
        if np.isposinf(row).any():
            assert row[token_id] == np.inf


def test_a_mask_that_leaves_only_the_impossible_is_obeyed() -> None:
    allowed = np.zeros((1, 100), np.bool_)
    allowed[0, [40, 70]] = True
    masks = packed(allowed, np.random.default_rng(1))
    logits = np.where(allowed, np.float32(-np.inf), np.float32(1))
    for one in (GREEDY, params(), params(top_p=0.9), params(top_k=3, min_p=0.1)):
        for isa in available_isas():
            assert choose(recipes_of([one], 100), logits, isa, masks=masks).token_ids == [40]


@pytest.mark.parametrize("isa", available_isas())
def test_many_rows_go_to_several_threads(isa: str) -> None:
    torch.set_num_threads(2)  # loads the pool that is borrowed
    kinds = [GREEDY, params(seed=1, logprobs=2), params(seed=2, top_p=0.9), params(seed=3, top_k=9)]
    recipes, logits = recipes_of(kinds * 130, 8200), drawn(5, 520, 8200, [])
    try:
        together = choose(recipes, logits, isa, num_threads=2, most_top=2)
    finally:
        torch.set_num_threads(1)
    alone = choose(recipes, logits, isa, most_top=2)
    assert together.token_ids == alone.token_ids
    assert together.is_certain == alone.is_certain
    np.testing.assert_array_equal(together.logprobs, alone.logprobs)


def test_weights_are_powers_of_two_within_two_units_and_alike_everywhere() -> None:
    x = np.concatenate(
        (
            np.linspace(-125, 0, 400_003),
            -np.geomspace(1e-30, 1, 10_000),
            [0, -0.0, -125, -125.1, -np.inf, np.nan],
        )
    ).astype(np.float32)
    found = [weight_of(x, isa=isa) for isa in available_isas()]
    assert found == [found[0]] * len(found)
    assert found[0][-4:] == [2.0**-125, 0.0, 0.0, 0.0]
    assert found[0][-6:-4] == [1.0, 1.0]
    expected = np.exp2(x[:-3].astype(np.float64))
    assert (np.abs(found[0][:-3] - expected) / np.spacing(expected.astype(np.float32))).max() <= 2


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=SIZES,
    num_top=st.sampled_from([0, 1, 3, 20, 1000]),
    temperature=st.sampled_from([0.1, 1.0, 3.0]),
    values=st.lists(st.sampled_from([0.0, 1.0, 9.0, -np.inf]), max_size=3),
)
def test_log_probabilities_are_those_of_float64(
    seed: int, size: int, num_top: int, temperature: float, values: list[float]
) -> None:
    (logits,) = drawn(seed, 1, size, values)
    token_id, num_top = seed % size, min(num_top, size)
    logits[(seed // 7) % size] = 3.0
    order = np.argsort(-logits, kind="stable")[:num_top]
    scaled = logits.astype(np.float64) / temperature
    expected = scaled - scaled.max() - np.log(np.exp(scaled - scaled.max()).sum())
    found = []
    for isa in available_isas():
        top_ids, logprobs = np.empty(num_top, np.int64), np.empty(1 + num_top)
        score(logits, token_id, logprobs, top_ids, temperature=temperature, top_p=1.0, isa=isa)
        assert top_ids.tolist() == order.tolist()
        found.append(logprobs.tolist())
    assert found == [found[0]] * len(found)
    wanted = np.maximum(expected[[token_id, *order]], -9999.0)
    assert found[0] == pytest.approx(wanted.tolist(), rel=1e-7, abs=2e-6)


def test_more_alternatives_than_numbers_are_named_all_the_same() -> None:
    logits = np.full(500, np.nan, np.float32)
    logits[[7, 3]] = [1, -np.inf]
    for isa in available_isas():
        top_ids, logprobs = np.empty(5, np.int64), np.empty(6)
        score(logits, 2, logprobs, top_ids, temperature=1.0, top_p=1.0, isa=isa)
        assert top_ids.tolist() == [7, 0, 1, 2, 3]
        assert logprobs.tolist() == [-9999.0, 0.0, *[-9999.0] * 4]


def test_certain_is_what_the_model_gives_more_than_the_border() -> None:
    logits = np.zeros((2, 300), np.float32)
    logits[:, 5] = np.log(np.array([0.51, 0.49]) / np.array([0.49, 0.51]) * 299)
    for isa in available_isas():
        assert choose(recipes_of([GREEDY] * 2, 300), logits, isa).is_certain == [1, 0]


def test_arrays_that_do_not_fit_each_other_are_refused() -> None:
    logits, isa = drawn(1, 2, 100, []), available_isas()[0]
    recipes = recipes_of([GREEDY, params(logprobs=5)], 100)
    with pytest.raises(ValueError, match="logits for 2 slots"):
        choose(recipes, logits[:, :99].copy(), isa, most_top=5)
    with pytest.raises(ValueError, match="up to 5 alternatives"):
        choose(recipes, logits, isa, most_top=4)
    with pytest.raises(ValueError, match="slot 2 of 2"):
        choose(recipes, drawn(1, 3, 100, []), isa, most_top=5)
    for words in (3, 5):
        with pytest.raises(ValueError, match="masks of"):
            choose(recipes, logits, isa, masks=np.zeros((2, words), np.int32), most_top=5)
    with pytest.raises(ValueError, match="mask 1 of 1"):
        choose(recipes, logits, isa, masks=np.zeros((1, 4), np.int32), most_top=5)
    with pytest.raises(ValueError, match="slot -1"):
        recipes.release(-1)
    with pytest.raises(ValueError, match="token 100"):
        score(logits[0], 100, np.empty(1), np.empty(0, np.int64), temperature=1.0, top_p=1.0, isa=isa)
