from collections import Counter

import pytest
import trio

from benchmarks.load.answer import Outcome
from benchmarks.load.drive import Load, Point
from benchmarks.load.summary import summarise
from tests.benchmarks.conftest import MakeDriver

FAULTS = ["ok", "429", "500", "truncated", "no_done", "error", "json"]


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_a_closed_loop_sees_the_times_and_tokens_of_the_server(
    make_driver: MakeDriver, endpoint: str
) -> None:
    driver = make_driver(endpoint=endpoint, first_s=0.05, gap_s=0.01)
    driver.prompts.rate = await driver.calibrate()
    point = Point(Load("closed", 4, 12, num_warmup=4))
    await driver.run(point)
    summary = summarise(point)
    assert (summary.num_ok, summary.num_begun, summary.output_tokens) == (12, 12, 96)
    assert summary.input_tokens == pytest.approx(40, abs=2)
    assert (summary.num_short, summary.tokens_by_usage, summary.tokens_per_event) == (0, True, 1.0)
    assert summary.ttft_s is not None
    assert summary.itl_s is not None
    assert summary.tpot_s is not None
    assert summary.e2e_s is not None
    assert (summary.itl_s.count, summary.e2e_s.count) == (84, 12)
    # never sooner than the server slept; later as the machine is busy
    assert 0.05 <= summary.ttft_s.p50 < 0.15
    assert 0.01 <= summary.tpot_s.mean < 0.03
    assert 0.009 <= summary.itl_s.p50 <= summary.itl_s.p90 <= summary.itl_s.p99 <= summary.itl_s.max
    assert 0.05 + 7 * 0.01 <= summary.e2e_s.p50 < 0.4
    assert summary.output_tokens_per_s == pytest.approx(96 / summary.wall_s)
    assert summary.wall_s >= 3 * 0.12


async def test_tokens_are_counted_by_usage_not_by_events(make_driver: MakeDriver) -> None:
    merged, without = Point(Load("closed", 1, 2)), Point(Load("closed", 1, 2))
    await make_driver(per_event=4).run(merged)
    await make_driver(per_event=4, usage=False).run(without)
    assert (summarise(merged).output_tokens, summarise(merged).tokens_per_event) == (16, 4.0)
    summary = summarise(without)
    assert (summary.output_tokens, summary.tokens_by_usage, summary.num_short) == (4, False, 2)


async def test_every_way_to_fail_is_told_apart(make_driver: MakeDriver) -> None:
    point = Point(Load("closed", 7, 28, num_warmup=0))
    await make_driver(faults=FAULTS).run(point)
    assert Counter(record.outcome for record in point.records) == {
        Outcome.OK: 4,
        Outcome.REJECTED: 4,
        Outcome.STATUS: 4,
        Outcome.TRUNCATED: 8,
        Outcome.STREAM_ERROR: 4,
        Outcome.PROTOCOL: 4,
    }
    summary = summarise(point)
    assert (summary.num_ok, summary.num_rejected, summary.num_failed) == (4, 4, 20)
    assert sum(summary.errors.values()) == 24
    assert any("ended without [DONE] after" in text for text in summary.errors)
    assert summary.output_tokens == 32


async def test_a_request_that_takes_too_long_or_finds_no_server_fails(make_driver: MakeDriver) -> None:
    late, nowhere = Point(Load("closed", 2, 2, num_warmup=0)), Point(Load("closed", 1, 1, num_warmup=0))
    await make_driver(first_s=5, timeout_s=0.1).run(late)
    await make_driver(at="http://127.0.0.1:1").run(nowhere)
    assert [record.outcome for record in late.records] == [Outcome.TIMEOUT] * 2
    assert late.records[0].error == "not ended after 0.1 s, 1 events received"
    assert [record.outcome for record in nowhere.records] == [Outcome.CONNECTION]


async def test_an_open_loop_sends_when_requests_are_due_whatever_the_server_does(
    make_driver: MakeDriver,
) -> None:
    point = Point(Load("open", 100.0, None, 0.6, num_warmup=1))
    await make_driver(first_s=0.3, output_tokens="2").run(point)
    summary = summarise(point)
    assert summary.num_ok == summary.num_begun == pytest.approx(60, abs=25)
    assert summary.wall_s < 2  # 60 requests of 0.3 s each, most of them at once
    starts = sorted(record.start_s for record in point.records)
    assert starts[0] > 0
    assert starts[-1] <= 0.6
    assert summary.start_lag_s is not None
    assert summary.start_lag_s.p50 < 0.05
    assert summary.ttft_s is not None
    assert summary.ttft_s.p50 >= 0.3


async def test_a_closed_loop_begins_nothing_after_its_duration(make_driver: MakeDriver) -> None:
    point = Point(Load("closed", 2, None, 0.3, num_warmup=0))
    await make_driver(first_s=0.05).run(point)
    assert 4 <= len(point.records) <= 14
    assert all(record.start_s <= 0.35 for record in point.records)


async def test_what_was_measured_before_an_interruption_is_kept(make_driver: MakeDriver) -> None:
    point = Point(Load("closed", 2, 1000, num_warmup=0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_driver(first_s=0.05).run, point)
        while len(point.records) < 3:  # noqa: ASYNC110 - a point is a list, it wakes no one
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    summary = summarise(point)
    assert summary.num_ok >= 3
    assert summary.num_failed == 0
    assert 1 <= summary.num_unfinished <= 2
    assert 0.1 <= summary.wall_s < 1
