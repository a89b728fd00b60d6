"""Prompts beside sequences that decode: as much of them as keeps a step short, by what steps took."""

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tests.fakes import FakeRank, mixing
from tests.scheduler.scenes import Asked, asked, play
from tests.scheduler.test_drafts import ALWAYS_RIGHT, NEVER_RIGHT, make_house
from tests.scheduler.test_scheduler import BLOCK_SIZE, House, expected, output
from trioserve.core.sequence import SequenceStatus
from trioserve.core.step import StepPlan, StepResult
from trioserve.scheduler.pace import Pace

StepTime = Callable[[int, int], float]
"""From tokens of sequences that decode and tokens of prompts to seconds."""
TARGET_S = 0.9 * 0.05
"""What is aimed at to keep to 50 ms."""
ANY_S, EACH_S, PROMPT_S = 0.006, 0.0004, 0.00025
"""A small model on two cores."""


def small_model(num_decodes: int, num_prompt_tokens: int) -> float:
    return ANY_S + EACH_S * num_decodes + PROMPT_S * num_prompt_tokens


class Steps:
    """A pace and the steps that it is asked for, with two of them on their way."""

    def __init__(self, step_s: StepTime, *, target_s: float | None = 0.05, budget: int = 4096) -> None:
        self.pace = Pace(target_s)
        self.step_s = step_s
        self.budget = budget
        self._on_the_way = deque[float]()

    def run(self, num_decodes: int, num_prompt_tokens: int) -> None:
        self.pace.note_plan(num_decodes, num_prompt_tokens)
        self._on_the_way.append(self.step_s(num_decodes, num_prompt_tokens))
        if len(self._on_the_way) == 2:
            self.pace.note_result(StepResult(0, [], self._on_the_way.popleft()))

    def fill(self, num_decodes: int) -> int:
        """A step with prompts beside so many decodes; how much of them it took."""
        room = self.pace.room(num_decodes, 1_000_000, self.budget)
        self.run(num_decodes, room)
        return room


@settings(deadline=None)
@given(
    any_s=st.floats(0.0001, 0.2),
    each_s=st.floats(0.0, 0.005),
    prompt_s=st.floats(0.00001, 0.005),
    num_decodes=st.integers(1, 128),
    num_plain=st.sampled_from([0, 0, 1, 5, 40]),
    noise=st.floats(0.0, 0.2),
    seed=st.integers(0, 99),
)
def test_whatever_tokens_cost_steps_come_to_take_the_time_that_they_may(
    any_s: float,
    each_s: float,
    prompt_s: float,
    num_decodes: int,
    num_plain: int,
    noise: float,
    seed: int,
) -> None:
    rng = random.Random(seed)

    def step_s(num_decodes: int, num_prompt_tokens: int) -> float:
        seconds = any_s + each_s * num_decodes + prompt_s * num_prompt_tokens
        return seconds * rng.uniform(1 - noise, 1 + noise)

    steps = Steps(step_s)
    for _ in range(num_plain):
        steps.run(num_decodes, 0)
    rooms = [steps.fill(num_decodes) for _ in range(200)][-20:]
    decodes_s = any_s + each_s * num_decodes
    for room in rooms:
        shorter_s = decodes_s + prompt_s * (room - 16)
        assert room == 32 or shorter_s <= TARGET_S * (1.05 + 2 * noise)
        assert room >= 32 and (room % 16 == 0 or room == steps.budget)
        fuller_s = decodes_s + prompt_s * (room + 16)
        assert not num_plain or room == steps.budget or fuller_s >= TARGET_S * (0.9 - 2 * noise)


@pytest.mark.parametrize("num_decodes", [1, 8, 32, 64])
def test_what_was_learned_beside_a_few_holds_beside_many(num_decodes: int) -> None:
    steps = Steps(small_model)
    for number in (1, 2, 3, 4, 6, 8, 16, 32, 64) * 8:
        steps.run(number, 0)
        steps.fill(number)
    seconds = small_model(num_decodes, steps.fill(num_decodes))
    assert 0.85 * TARGET_S < seconds < 1.05 * TARGET_S


def test_the_first_prompts_are_cut_short_until_a_step_with_some_was_timed() -> None:
    steps = Steps(small_model)
    rooms = [steps.fill(4) for _ in range(9)]
    assert rooms[:2] == [64, 64]
    assert rooms[8] == pytest.approx(144, abs=16)


def test_a_few_tokens_say_little_about_what_prompts_cost() -> None:
    steps = Steps(small_model)
    for _ in range(40):
        steps.run(8, 0)
        steps.fill(8)
    before = steps.pace.expected_s(8, 100)
    for _ in range(10):
        steps.run(8, 3)
    assert steps.pace.expected_s(8, 100) == pytest.approx(before, rel=0.01)


@pytest.mark.parametrize("target_s", [None, 0.05])
def test_what_decodes_take_is_learned_where_there_are_always_prompts(target_s: float | None) -> None:
    steps = Steps(lambda *counts: 6 * small_model(*counts), target_s=target_s)
    for number in range(200):
        steps.run(0, 512) if number % 10 == 0 else steps.fill(2)
    assert steps.pace.expected_s(2) == pytest.approx(6 * small_model(2, 0), rel=0.2)
    assert steps.pace.expected_s(0, 512) == pytest.approx(6 * small_model(0, 512), rel=0.1)


def test_steps_that_now_and_then_take_far_longer_change_little() -> None:
    rng = random.Random(5)
    steps = Steps(lambda *counts: small_model(*counts) * (8 if rng.random() < 0.1 else 1))
    for _ in range(30):
        steps.run(8, 0)
    rooms = [steps.fill(8) for _ in range(200)][50:]
    right = (TARGET_S - small_model(8, 0)) / PROMPT_S
    assert 0.6 * right < sum(rooms) / len(rooms) < 1.02 * right
    assert min(rooms) > 0.4 * right


@pytest.mark.parametrize("factor", [2.0, 0.25])
def test_steps_fit_again_after_the_machine_has_changed(factor: float) -> None:
    speed = 1.0
    steps = Steps(lambda *counts: speed * small_model(*counts))
    for _ in range(20):
        steps.run(8, 0)
        steps.fill(8)
    speed = factor
    for _ in range(30):
        steps.run(8, 0)
        room = steps.fill(8)
    assert 0.8 * TARGET_S < factor * small_model(8, room) < 1.1 * TARGET_S


def test_steps_with_guesses_say_nothing_about_those_with_prompts() -> None:
    steps = Steps(small_model)
    for _ in range(20):
        steps.run(8, 0)
    before = steps.pace.expected_s(8)
    steps.pace.note_plan(8, 0)
    steps.run(8, 0)
    steps.pace.note_result(StepResult(0, [], 9.0, num_drafted=[8, 8]))
    assert steps.pace.expected_s(8) == pytest.approx(before)


@pytest.mark.parametrize("target_s", [None, 0.05])
def test_by_default_a_step_of_a_fast_model_takes_50_ms(target_s: float | None) -> None:
    steps = Steps(small_model, target_s=target_s)
    for _ in range(60):
        steps.run(32, 0)
        room = steps.fill(32)
    assert 0.9 * TARGET_S < small_model(32, room) < 1.02 * TARGET_S


@pytest.mark.parametrize(
    ("num_decodes", "times_one", "times_all"), [(1, 4, 1.5), (32, 4, 1.5), (100, 4, 1.5)]
)
def test_by_default_prompts_of_a_slow_model_get_much_of_the_time(
    num_decodes: int, times_one: float, times_all: float
) -> None:
    def slow_model(*counts: int) -> float:
        return 10 * small_model(*counts)

    steps = Steps(slow_model, target_s=None)
    for number in (1, 8, 32, 100) * 30:
        steps.run(number, 0)
        steps.fill(number)
    aim_s = 0.9 * max(times_one * slow_model(1, 0), times_all * slow_model(num_decodes, 0))
    right = (aim_s - slow_model(num_decodes, 0)) / (10 * PROMPT_S)
    assert right - 20 < steps.fill(num_decodes) < right + 20
    told = Steps(slow_model, target_s=0.05)
    assert [told.fill(num_decodes) for _ in range(9)][-1] == 32


# --- in the scheduler ---


class TimedRank(FakeRank):
    """Says of each step that it took ``step_s`` of its tokens, and keeps what they were."""

    step_s: StepTime
    steps: list[tuple[int, int]]

    def carry_out(self, plan: StepPlan) -> StepResult:
        admitted = {admission.slot for admission in plan.admitted}
        counts = [0, 0]
        for work in plan.work:
            is_prompt = work.slot in admitted or not self.slots[work.slot].has_sampled
            counts[is_prompt] += work.num_tokens
        self.steps.append((counts[0], counts[1]))
        return structs.replace(super().carry_out(plan), step_s=self.step_s(*counts))


def timed(house: House, step_s: StepTime = small_model) -> TimedRank:
    """Let ``house`` have a rank that tells times."""
    rank = TimedRank(BLOCK_SIZE, mixing, max_model_len=house.rank.max_model_len)
    rank.step_s, rank.steps, rank.guesses = step_s, [], house.rank.guesses
    house.rank = rank
    return rank


def prompts_beside(house: House, length: int, *, num_prompts: int = 1) -> list[tuple[int, int]]:
    """Decodes and tokens of prompts of the steps that compute prompts while another sequence decodes."""
    rank = timed(house)
    decoding = house.add([1], max_tokens=200)
    for _ in range(10):
        house.step()
    assert decoding.status is SequenceStatus.RUNNING
    long = [house.add([i, *range(length - 1)], max_tokens=2) for i in range(num_prompts)]
    first = len(rank.steps)
    while any(seq.status is not SequenceStatus.FINISHED for seq in long):
        house.step()
    assert decoding.status is SequenceStatus.RUNNING
    assert output(long[-1]) == expected([num_prompts - 1, *range(length - 1)], 2)
    return [step for step in rank.steps[first:] if step[1]]


def test_a_long_prompt_is_cut_so_that_steps_keep_to_the_target() -> None:
    house = House(num_blocks=640, max_num_batched_tokens=512, target_step_s=0.03)
    steps = prompts_beside(house, 600, num_prompts=4)
    assert max(small_model(*step) for step in steps) < 0.031
    assert {num_tokens for _, num_tokens in steps[4:20]} == {80}


@pytest.mark.parametrize(
    ("num_to_come", "num_tokens"), [(10, 32), (128, 32), (400, 64), (800, 112), (9000, 128)]
)
def test_what_is_known_of_prompts_is_spread_over_the_steps_to_come(num_to_come: int, num_tokens: int) -> None:
    steps = Steps(small_model)
    for _ in range(60):
        steps.run(8, 0)
        steps.fill(8)
    assert steps.pace.room(8, num_to_come, 512) == num_tokens
    assert steps.pace.room(0, num_to_come, 512) == 512
    assert steps.pace.room(8, num_to_come, 20) == 20


def test_a_prompt_makes_progress_however_little_time_there_is() -> None:
    house = House(num_blocks=256, max_num_batched_tokens=512, target_step_s=1e-9)
    steps = prompts_beside(house, 400)
    assert min(num_tokens for _, num_tokens in steps[:-1]) >= 32
    assert len(steps) <= 13


def test_where_nothing_decodes_a_prompt_has_the_whole_budget() -> None:
    house = House(num_blocks=256, max_num_batched_tokens=256, target_step_s=1e-9, depth=1)
    rank = timed(house)
    house.add(list(range(600)), max_tokens=1)
    house.drain()
    assert rank.steps == [(0, 256), (0, 256), (0, 88)]


def test_without_a_target_no_step_is_planned_otherwise_whatever_steps_took() -> None:
    assert prompts_beside(House(num_blocks=256, max_num_batched_tokens=128), 500) == [(1, 127)] * 3 + [
        (1, 119)
    ]


def test_a_prompt_that_may_not_be_cut_enters_whole_and_the_next_one_after_it() -> None:
    house = House(
        num_blocks=256, max_num_batched_tokens=512, target_step_s=0.03, enable_chunked_prefill=False
    )
    assert [num_tokens for _, num_tokens in prompts_beside(house, 200, num_prompts=3)] == [200, 200, 200]


def test_short_prompts_that_may_not_be_cut_share_a_step_as_far_as_the_target_lets_them() -> None:
    house = House(
        num_blocks=256, max_num_batched_tokens=512, target_step_s=0.03, enable_chunked_prefill=False
    )
    steps = [num_tokens for _, num_tokens in prompts_beside(house, 24, num_prompts=15)]
    assert sum(steps) == 15 * 24
    assert set(steps) == {24, 48}


@pytest.mark.parametrize("guesses", [ALWAYS_RIGHT, NEVER_RIGHT])
def test_a_target_leaves_guesses_as_they_are(guesses: Callable[[list[int]], list[int]]) -> None:
    drafts: list[list[int]] = []
    for target_s in (0.0, 1e-9):
        house = make_house(guesses, target_step_s=target_s)
        timed(house)
        house.add([1, 2, 3], max_tokens=30)
        drafts.append([])
        while house.step():
            drafts[-1] += [plan.num_drafts for plan in house.in_flight]
    assert drafts[0] == drafts[1]
    assert max(drafts[0]) == 4


@settings(deadline=None, max_examples=100)
@given(
    scene=asked(stops=st.sampled_from([False, False, True])),
    times_s=st.lists(st.sampled_from([0.0, 0.0001, 0.01, 0.2, 30.0]), min_size=1, max_size=9),
    target_step_s=st.sampled_from([1e-9, 0.02, 1.0]),
    num_drafts=st.sampled_from([0, 4]),
    num_blocks=st.sampled_from([12, 20, 64]),
    max_num_batched_tokens=st.sampled_from([8, 50, 100]),
    depth=st.sampled_from([1, 2, 3]),
    enable_prefix_caching=st.booleans(),
)
def test_however_long_steps_take_every_sequence_gets_its_own_tokens(
    scene: list[Asked], times_s: list[float], num_drafts: int, num_blocks: int, **limits: Any
) -> None:
    house = make_house(ALWAYS_RIGHT, num_drafts=num_drafts, num_blocks=num_blocks, **limits)
    rank = timed(house, lambda *counts: times_s[sum(counts) % len(times_s)])
    play(house, scene, num_blocks)
    assert rank.largest_step <= max(limits["max_num_batched_tokens"], 8 * 16)
