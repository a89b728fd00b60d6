"""What the engine counts, in virtual time, so that every number is known beforehand."""

import math

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.engine.test_engine import make_engine, make_executor, read_all, sequence, supervised
from trioserve.core.sequence import FinishReason, Sequence
from trioserve.engine.engine import Engine
from trioserve.engine.meter import Histogram, Meter, token_bounds
from trioserve.errors import WorkerDied


@given(
    bounds=st.lists(st.integers(-20, 20), min_size=1, unique=True).map(sorted),
    values=st.lists(st.tuples(st.integers(-30, 30), st.integers(1, 5))),
)
def test_a_histogram_counts_what_is_at_most_each_bound(
    bounds: list[int], values: list[tuple[int, int]]
) -> None:
    histogram = Histogram(bounds)
    for value, times in values:
        histogram.observe(value, times)
    repeated = [value for value, times in values for _ in range(times)]
    for i, bound in enumerate([*bounds, math.inf]):
        assert sum(histogram.counts[: i + 1]) == sum(value <= bound for value in repeated)
    assert (histogram.count, histogram.sum) == (len(repeated), sum(repeated))


def test_bounds_of_lengths_end_at_the_longest() -> None:
    assert token_bounds(256) == (1, 2, 5, 10, 20, 50, 100, 200)
    assert token_bounds(500)[-1] == 500
    assert token_bounds(1) == (1,)


async def run(engine: Engine, *sequences: Sequence) -> None:
    with engine.stream(list(sequences)) as mailbox:
        await read_all(mailbox)


async def test_the_times_of_one_sequence(autojump_clock: MockClock) -> None:
    engine = make_engine()
    async with supervised(engine, make_executor(step_s=0.5)):
        await run(engine, sequence(0, 1, max_tokens=5))
    meter = engine.meter
    for histogram, count, total in (
        (meter.time_to_first_token_s, 1, 0.5),
        (meter.inter_token_latency_s, 4, 2.0),
        (meter.time_per_output_token_s, 1, 0.5),
        (meter.e2e_latency_s, 1, 2.5),
        (meter.queue_s, 1, 0.0),
        (meter.prefill_s, 1, 0.5),
        (meter.decode_s, 1, 2.0),
        (meter.inference_s, 1, 2.5),
        (meter.prompt_tokens, 1, 2),
        (meter.output_tokens, 1, 5),
        (meter.max_tokens, 1, 5),
        (meter.most_output_tokens, 1, 5),
        (meter.step_tokens, 5, 6),
    ):
        assert histogram.count == count
        assert histogram.sum == pytest.approx(total)
    assert (meter.num_prompt_tokens, meter.num_cached_tokens, meter.num_output_tokens) == (2, 0, 5)
    assert meter.num_finished[FinishReason.LENGTH] == 1
    assert sum(meter.num_finished.values()) == 1


async def test_who_waits_for_a_slot_queues_until_it_has_one(autojump_clock: MockClock) -> None:
    engine = make_engine(max_num_seqs=1)
    async with supervised(engine, make_executor(step_s=1.0)):
        await run(engine, sequence(0, max_tokens=3), sequence(1, max_tokens=1))
    meter = engine.meter
    assert meter.queue_s.sum == pytest.approx(3.0)
    assert meter.e2e_latency_s.sum == pytest.approx(3.0 + 4.0)
    assert meter.prefill_s.sum == pytest.approx(1.0 + 1.0)
    assert meter.time_per_output_token_s.count == 1  # a single token has no time between tokens
    assert (meter.most_output_tokens.count, meter.most_output_tokens.sum) == (1, 3)


async def test_a_prompt_found_in_the_cache_counts_as_cached(autojump_clock: MockClock) -> None:
    engine = make_engine()
    prompt = tuple(range(40))
    async with supervised(engine, make_executor()):
        await run(engine, sequence(*prompt))
        await run(engine, sequence(*prompt))
    assert (engine.meter.num_prompt_tokens, engine.meter.num_cached_tokens) == (80, 32)
    # What was computed: both prompts less what was cached, and every token but the last of each.
    assert engine.meter.step_tokens.sum == 80 - 32 + 4 + 4


async def test_a_sequence_that_is_left_counts_once_and_as_aborted(autojump_clock: MockClock) -> None:
    engine = make_engine()
    async with supervised(engine, make_executor(step_s=1.0)):
        with trio.move_on_after(3.5):
            await run(engine, sequence(0, max_tokens=50), sequence(1, max_tokens=2))
        await trio.sleep(5)
        statistics = engine.statistics()
    meter = engine.meter
    assert {reason.value: times for reason, times in meter.num_finished.items()} == {
        "stop": 0,
        "length": 1,
        "repetition": 0,
        "grammar": 0,
        "abort": 1,
        "error": 0,
    }
    assert meter.num_output_tokens == 3 + 2
    assert (meter.time_to_first_token_s.count, meter.inter_token_latency_s.count) == (2, 3)
    assert meter.e2e_latency_s.count == meter.output_tokens.count == 1
    assert meter.most_output_tokens.count == 0
    assert (statistics.num_requests, statistics.num_streams, statistics.num_running) == (0, 0, 0)


async def test_counts_outlive_the_works(autojump_clock: MockClock) -> None:
    engine = make_engine()
    first, second = make_executor(step_s=1.0), make_executor(step_s=1.0)
    async with supervised(engine, first, second):
        await run(engine, sequence(0, max_tokens=3))
        first.failure = WorkerDied("gone")
        await run(engine, sequence(1, 2, max_tokens=3))
        await run(engine, sequence(3, 4, 5, max_tokens=3))
        statistics = engine.statistics()
    assert (statistics.num_restarts, statistics.num_prompt_tokens, statistics.num_output_tokens) == (1, 6, 6)
    assert engine.meter.num_finished[FinishReason.ERROR] == 1
    assert engine.meter.num_finished[FinishReason.LENGTH] == 2
    assert engine.meter.most_output_tokens.count == 2


async def test_preemptions_add_up_over_restarts_and_readmissions_count_once(
    autojump_clock: MockClock,
) -> None:
    engine = make_engine(enable_prefix_caching=False)
    first, second = make_executor(num_blocks=8, step_s=1.0), make_executor(num_blocks=8, step_s=1.0)
    async with supervised(engine, first, second):
        await run(engine, *(sequence(i, max_tokens=40) for i in range(4)))
        before = engine.statistics().num_preemptions
        assert before > 0
        assert engine.meter.num_prompt_tokens == 4
        assert engine.meter.queue_s.count == 4
        first.failure = WorkerDied("gone")
        await run(engine, sequence(0))
        await run(engine, sequence(0))
        assert engine.statistics().num_preemptions == before
    assert engine.meter.num_output_tokens == 4 * 40 + 5
    assert engine.meter.time_to_first_token_s.count + engine.meter.inter_token_latency_s.count == 4 * 40 + 5


async def test_moves_to_the_host_and_back_add_up_over_restarts(autojump_clock: MockClock) -> None:
    engine = make_engine()
    first, second = (make_executor(num_blocks=16, num_host_blocks=40, step_s=1.0) for _ in range(2))
    prompts = [[number] * 200 for number in (1, 2, 3, 1)]
    async with supervised(engine, first, second):
        for prompt in prompts:
            await run(engine, sequence(*prompt, max_tokens=1))
        before = engine.statistics()
        assert min(before.num_swapped_out, before.num_swapped_in) > 0
        assert before.num_cached_host_blocks == before.num_swapped_out
        first.failure = WorkerDied("gone")
        await run(engine, sequence(9, max_tokens=1))
        await run(engine, sequence(9, max_tokens=1))
        between = engine.statistics()
        for prompt in prompts:
            await run(engine, sequence(*prompt, max_tokens=1))
        after = engine.statistics()
    assert (between.num_swapped_out, between.num_swapped_in) == (
        before.num_swapped_out,
        before.num_swapped_in,
    )
    assert (between.num_host_blocks, between.num_cached_host_blocks) == (40, 0)
    assert after.num_swapped_in >= 2 * before.num_swapped_in


def test_guesses_are_counted_by_place_as_far_as_there_were_any() -> None:
    meter = Meter(max_model_len=10)
    assert (meter.num_drafts, meter.num_draft_tokens, meter.num_accepted_tokens) == (0, 0, [])
    meter.guessed([3, 2], [2])
    meter.guessed([1, 1, 1], [1, 1, 1])
    meter.guessed([1], [])
    assert (meter.num_drafts, meter.num_draft_tokens, meter.num_accepted_tokens) == (5, 9, [3, 1, 1])
