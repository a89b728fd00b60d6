"""What grammars make of a distribution: nothing else is possible, and what is possible keeps its odds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.sampling.reference import distribution, edited
from tests.sampling.test_sampler import CASES, LOGITS, OUTPUT, PROMPT, VOCAB_SIZE, follows, params
from trioserve.core.sampling import EarlyStop, SamplingParams, ThinkingBudget
from trioserve.grammars.backend import Masks, Matcher
from trioserve.sampling.constraint import Constraint, Turn
from trioserve.sampling.logprobs import score
from trioserve.sampling.sampler import Sampler, Samples
from trioserve.sampling.thinking import ThinkingWatch

EOS = 299
ALLOWED = {3, 5, 9, 40, 41, 42, 77, 200, 298}


class Steps:
    """A grammar over whole tokens: what is allowed at each place, one set a token; then the end."""

    def __init__(self, *steps: set[int], failure_at: int | None = None) -> None:
        self.steps = steps
        self.taken: list[int] = []
        self.failure = ""
        self._failure_at = failure_at

    @property
    def is_over(self) -> bool:
        return not self.failure and len(self.taken) >= len(self.steps)

    @property
    def allowed(self) -> set[int]:
        return {EOS} if self.is_over or self.failure else self.steps[len(self.taken)]

    def take(self, token_id: int) -> bool:
        return self.accept([token_id])

    def accept(self, token_ids: Sequence[int]) -> bool:
        for token_id in token_ids:
            if self.failure or token_id not in self.allowed:
                return False
            if not self.is_over:
                self.taken.append(token_id)
            if len(self.taken) == self._failure_at:
                self.failure = "too complex"
        return True

    def forced(self) -> list[int]:
        ids: list[int] = []
        for step in () if self.failure else self.steps[len(self.taken) :]:
            if len(step) > 1:
                break
            ids += step
        return ids


def fill_masks(matchers: Sequence[tuple[Matcher, int]], masks: Masks) -> None:
    for matcher, row in matchers:
        assert isinstance(matcher, Steps)
        bits = np.zeros(masks.shape[1] * 32, np.bool_)
        bits[list(matcher.allowed)] = True
        bits[VOCAB_SIZE:] = True
        masks[row] = np.packbits(bits, bitorder="little").view(np.int32)


def constraint(one: SamplingParams, matcher: Steps | None, **changes: Any) -> Constraint:
    values: dict[str, Any] = {
        "num_prompt_tokens": len(PROMPT),
        "max_len": 1000,
        "eos_token_ids": [EOS],
        "matcher": matcher,
    }
    return Constraint(one, **(values | changes))


def sampler_with(*several: tuple[SamplingParams, Constraint | None]) -> Sampler:
    sampler = Sampler(len(several), VOCAB_SIZE, fill_masks)
    for slot, (one, bound) in enumerate(several):
        sampler.admit(slot, one, np.array(PROMPT + OUTPUT, np.int32), len(PROMPT), bound)
    return sampler


def sample(sampler: Sampler, logits: torch.Tensor, num_rows: int, position: int = 10) -> Samples:
    return sampler.sample(
        logits.expand(num_rows, -1).contiguous(), np.arange(num_rows), np.full(num_rows, position)
    )


def draws(one: SamplingParams, allowed: set[int], count: int) -> NDArray[np.int64]:
    found = []
    fields = {name: getattr(one, name) for name in one.__struct_fields__}
    for start in range(0, count, 500):
        seeded = [SamplingParams(**fields | {"seed": start + i}) for i in range(500)]
        sampler = sampler_with(*((each, constraint(each, Steps(allowed))) for each in seeded))
        found.append(sample(sampler, LOGITS, 500).token_ids)
    return np.concatenate(found)


def among(allowed: set[int], one: SamplingParams) -> NDArray[np.float64]:
    """The reference's logits after the grammar and then the edits, of which those that leave nothing are dropped."""
    logits = np.full(VOCAB_SIZE, -np.inf)
    logits[list(allowed)] = LOGITS.double().numpy()[list(allowed)]
    if not allowed & set(one.allowed_token_ids):
        one = SamplingParams(
            **{name: getattr(one, name) for name in one.__struct_fields__} | {"allowed_token_ids": ()}
        )
    return edited(logits, one, PROMPT + OUTPUT, len(PROMPT))


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_what_a_grammar_allows_keeps_its_odds_and_all_else_happens_among_it(fields: dict[str, Any]) -> None:
    one = params(**fields)
    expected = distribution(among(ALLOWED, one), one) * 2000
    assert follows(draws(one, ALLOWED, 2000), expected)


@settings(max_examples=60, deadline=None)
@given(
    allowed=st.sets(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=40),
    case=st.sampled_from(CASES),
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.0, 0.8]),
)
def test_nothing_else_than_the_grammar_allows_is_ever_chosen(
    allowed: set[int], case: dict[str, Any], seed: int, temperature: float
) -> None:
    one = params(**case | {"temperature": temperature, "seed": seed})
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=VOCAB_SIZE) * 3).float()
    found = sample(sampler_with((one, constraint(one, Steps(allowed, {1})))), logits, 1)
    assert int(found.token_ids[0]) in allowed
    assert found.turns[0].failure == ""


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.sampled_from([0.01, 0.5, 0.97]), jumps=st.booleans())
def test_a_greedy_answer_is_the_likeliest_of_what_is_allowed_at_every_step(
    seed: int, share: float, jumps: bool
) -> None:
    rng = np.random.default_rng(seed)
    steps = [set(np.flatnonzero(rng.random(VOCAB_SIZE - 1) < share).tolist()) | {1, 2} for _ in range(25)]
    one = params(**STOP | {"logprobs": None if jumps else 0})
    bound = constraint(one, Steps(*steps))
    sampler = sampler_with((one, bound))
    for position, allowed in enumerate(steps, 10):
        logits = torch.from_numpy(rng.normal(size=VOCAB_SIZE)).float()
        expected = max(sorted(allowed), key=lambda token_id: logits[token_id])
        assert sample(sampler, logits, 1, position).token_ids.tolist() == [expected]


def test_edits_that_leave_nothing_of_what_the_grammar_allows_are_dropped() -> None:
    for fields in (
        {"allowed_token_ids": (1, 2)},
        {"bad_words": ((7,), (8,))},
        {"allowed_token_ids": (7,), "bad_words": ((7,),)},
        {"min_tokens": 50, "stop_token_ids": (7, 8)},
    ):
        one = params(**fields | {"temperature": 0.0})
        found = sample(sampler_with((one, constraint(one, Steps({7, 8}, {1, 2})))), LOGITS, 1)
        best = 7 if one.allowed_token_ids == (7,) else max((7, 8), key=lambda token_id: LOGITS[token_id])
        assert found.token_ids.tolist() == [best], fields


def test_rows_with_and_without_grammars_choose_as_if_alone() -> None:
    kinds = [params(temperature=0.0), params(seed=4), params(temperature=0.0, logit_bias=((41, 30.0),))]
    several = [(one, grammar) for one in kinds for grammar in (None, ALLOWED, {7})]

    def bound(one: SamplingParams, allowed: set[int] | None) -> Constraint | None:
        return None if allowed is None else constraint(one, Steps(allowed, {1, 2}))

    alone = [
        int(sample(sampler_with((one, bound(one, allowed))), LOGITS, 1).token_ids[0])
        for one, allowed in several
    ]
    together = sample(
        sampler_with(*((one, bound(one, allowed)) for one, allowed in several)), LOGITS, len(several)
    )
    assert together.token_ids.tolist() == alone
    assert not together.turns  # nobody has a token behind this one that comes without a choice


def test_log_probabilities_are_the_models_own_whatever_the_grammar_allows() -> None:
    one = params(temperature=0.0, logprobs=4)
    found = sample(sampler_with((one, constraint(one, Steps({40, 41}, {1})))), LOGITS, 1)
    own = score(LOGITS.numpy(), int(found.token_ids[0]), 4)
    assert found.logprobs[0] is not None
    assert found.logprobs[0].logprob == own.logprob
    assert found.logprobs[0].top_ids == own.top_ids.tolist()
    assert not set(found.logprobs[0].top_ids) & {40, 41}


def turn_of(one: SamplingParams, *steps: set[int], **changes: Any) -> Turn | None:
    found = sample(sampler_with((one, constraint(one, Steps(*steps), **changes))), LOGITS, 1)
    return found.turns.get(0)


STOP = {"stop_token_ids": (EOS,), "temperature": 0.0}


def test_tokens_without_a_choice_follow_at_once_and_the_end_with_them() -> None:
    assert turn_of(params(**STOP), {3, 4}, {6}, {7}, {8, 9}) == Turn([6, 7], False, "")
    assert turn_of(params(**STOP), {3, 4}, {6}, {7}) == Turn([6, 7, EOS], True, "")
    assert turn_of(params(**STOP), {3, 4}) == Turn([EOS], True, "")
    assert turn_of(params(**STOP | {"min_tokens": 40}), {3, 4}) == Turn([EOS], True, "")
    assert turn_of(params(temperature=0.0), {3, 4}) is None  # nothing ends it but its length


def test_no_more_than_fifteen_tokens_follow_a_step_nor_more_than_there_is_room_for() -> None:
    steps = [{3, 4}, *({at} for at in range(20, 60))]
    assert turn_of(params(**STOP), *steps) == Turn(list(range(20, 35)), False, "")
    assert turn_of(params(**STOP | {"max_tokens": 9}), *steps) == Turn([20, 21, 22], True, "")
    assert turn_of(params(**STOP | {"max_tokens": 6}), *steps) == Turn([], True, "")
    assert turn_of(params(**STOP), *steps, max_len=12) == Turn([20], True, "")


def test_a_sequence_that_wants_to_know_how_likely_tokens_are_gets_them_one_by_one() -> None:
    for fields in ({"logprobs": 0}, {"early_stop": EarlyStop(3, 0.9)}):
        assert turn_of(params(**STOP | fields), {3, 4}, {6}, {7}) is None


def test_a_stop_token_that_the_grammar_allows_is_the_end() -> None:
    assert turn_of(params(**STOP | {"stop_token_ids": (4, EOS)}), {4}, {6}, {7}) == Turn([], True, "")


def test_a_matcher_that_fails_ends_its_sequence() -> None:
    for failure_at in (1, 2):
        one = params(**STOP)
        bound = constraint(one, Steps({3, 4}, {6}, {7}, failure_at=failure_at))
        turn = sample(sampler_with((one, bound)), LOGITS, 1).turns[0]
        assert (turn.is_last, turn.failure) == (True, "too complex")


def test_a_grammar_that_is_not_there_ends_its_sequence() -> None:
    one = params(**STOP)
    turn = sample(sampler_with((one, constraint(one, None, failure="no such thing"))), LOGITS, 1).turns[0]
    assert turn == Turn([], True, "no such thing")


def test_an_output_that_the_grammar_does_not_allow_is_a_failure() -> None:
    bound = constraint(params(**STOP), Steps({3}, {4, 5}))
    bound.replay([3, 9])
    turn = bound.follow(4, 7)
    assert turn is not None and "does not allow" in turn.failure


def thinking(max_tokens: int, *forced_end: int) -> ThinkingWatch:
    budget = ThinkingBudget(
        begins=(), ends=("x",), is_open=True, max_tokens=max_tokens, forced_end=forced_end
    )
    return ThinkingWatch(budget, lambda token_id: b"x" if token_id == 100 else b"-")


def test_a_budget_that_is_spent_replaces_the_next_sample_or_follows_the_last_one() -> None:
    one = params(**STOP)
    found = sample(sampler_with((one, constraint(one, None, watch=thinking(0, 90, 100)))), LOGITS, 1)
    assert (found.token_ids.tolist(), found.turns[0].forced) == ([90], [100])
    found = sample(sampler_with((one, constraint(one, None, watch=thinking(1, 90, 100)))), LOGITS, 1)
    assert (found.token_ids.tolist(), found.turns[0].forced) == ([LOGITS.argmax()], [90, 100])
    long = sampler_with((one, constraint(one, None, watch=thinking(1, *range(30, 50)))))
    assert sample(long, LOGITS, 1).turns[0].forced == list(range(30, 45))
    found = sample(long, LOGITS, 1, 26)
    assert (found.token_ids.tolist(), found.turns[0].forced) == ([45], [46, 47, 48, 49])


def test_a_budget_is_kept_one_token_at_a_time_where_log_probabilities_are_wanted() -> None:
    one = params(**STOP | {"logprobs": 0})
    sampler = sampler_with((one, constraint(one, None, watch=thinking(1, 90, 100))))
    steps = [sample(sampler, LOGITS, 1, at) for at in (10, 11, 12, 13)]
    best = int(LOGITS.argmax())
    assert [step.token_ids.tolist() for step in steps] == [[best], [90], [100], [best]]
    assert steps[1].logprobs[0] is not None
    assert steps[1].logprobs[0].logprob == score(LOGITS.numpy(), 90, 0).logprob


def test_an_end_of_thinking_that_the_grammar_refuses_is_a_failure_unless_the_thinking_is_over() -> None:
    one = params(**STOP)
    free = set(range(60))
    refused = constraint(one, Steps(free, free, free), watch=thinking(1, 90, 100))
    assert "does not let the thinking end" in sample(sampler_with((one, refused)), LOGITS, 1).turns[0].failure
    over = constraint(one, Steps(free, {100, 101}, {3, 4}, {7}), watch=thinking(1, 100, 90))
    sampler = sampler_with((one, over))
    assert sample(sampler, LOGITS, 1).turns[0] == Turn([100], False, "")
    assert sample(sampler, LOGITS, 1, 12).turns[0] == Turn([7, EOS], True, "")


def test_penalties_count_the_tokens_that_were_forced() -> None:
    one = params(**STOP | {"presence_penalty": 2.0, "frequency_penalty": 50.0})
    logits = torch.zeros(VOCAB_SIZE)
    logits[[3, 6]] = 10.0
    both = constraint(one, Steps({3}, {6}, {6, 8}))
    sampler = sampler_with((one, both))
    assert sample(sampler, logits, 1).turns[0].forced == [6]
    assert sample(sampler, logits, 1, 12).token_ids.tolist() == [8]
