import random
from itertools import pairwise

import msgspec
import pytest

from benchmarks.load.answer import Outcome, Record
from benchmarks.load.drive import Load, Point, arrival_times
from benchmarks.load.options import check_url
from benchmarks.load.prompts import Lengths, PromptMaker, WordRate
from benchmarks.load.summary import Report, Spread, summarise


def prompts(*, seed: int = 1, input_tokens: str = "40", shared: int = 0) -> PromptMaker:
    return PromptMaker(seed, "chat", Lengths.parse(input_tokens), Lengths.parse("8"), shared, {"model": "m"})


def words(body: bytes) -> list[str]:
    content = msgspec.json.decode(body)["messages"][0]["content"]
    assert isinstance(content, str)
    return content.split()


def test_lengths_are_drawn_as_written() -> None:
    rng = random.Random(1)
    assert {Lengths.parse("128").draw(rng) for _ in range(50)} == {128}
    uniform = [Lengths.parse("10-20").draw(rng) for _ in range(2000)]
    assert (min(uniform), max(uniform)) == (10, 20)
    normal = [Lengths.parse("100~30").draw(rng) for _ in range(5000)]
    assert sum(normal) / len(normal) == pytest.approx(100, abs=2)
    assert min(normal) >= 1
    for wrong in ("0", "9-3", "x", "5~-1", ""):
        with pytest.raises(ValueError, match=r"length|literal"):
            Lengths.parse(wrong)


def test_prompts_are_unique_and_the_seed_makes_them_again() -> None:
    first, again, other = prompts(), prompts(), prompts(seed=2)
    bodies = [first.next_body() for _ in range(500)]
    assert len({tuple(words(body)[:8]) for body, _ in bodies}) == 500
    assert [again.next_body() for _ in range(500)] == bodies
    assert other.next_body() != bodies[0]
    body = msgspec.json.decode(bodies[0][0])
    assert (body["model"], body["max_tokens"], body["ignore_eos"], body["stream"]) == ("m", 8, True, True)
    assert body["stream_options"] == {"include_usage": True}


def test_prompts_have_the_tokens_they_should_by_the_servers_count() -> None:
    maker = prompts(input_tokens="100000", shared=1000)
    maker.rate = WordRate.between((16, 7 + 32), (64, 7 + 128))
    first, second = words(maker.next_body()[0]), words(maker.next_body()[0])
    assert 7 + 2 * len(first) == pytest.approx(101_000, abs=2)
    assert first[:500] == second[:500]
    assert first[500:510] != second[500:510]


def test_arrivals_are_a_poisson_process_within_both_bounds() -> None:
    times = list(arrival_times(random.Random(1), Load("open", 50.0, None, 100.0)))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(times) == pytest.approx(5000, rel=0.05)
    assert times[-1] <= 100.0
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.02, rel=0.05)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(
        mean**2, rel=0.1
    )  # as exponential ones
    assert len(list(arrival_times(random.Random(1), Load("open", 50.0, 7, 100.0)))) == 7


def test_percentiles_are_those_of_the_values() -> None:
    assert Spread.of([]) is None
    assert Spread.of(range(1, 102)) == Spread(101, 51.0, 51.0, 91.0, 100.0, 101.0)


def test_a_summary_counts_each_request_once() -> None:
    ok = Record(
        0.0,
        0.0,
        3,
        ttft_s=0.5,
        itl_s=[0.1, 0.3],
        e2e_s=0.9,
        prompt_tokens=10,
        output_tokens=5,
        has_usage=True,
    )
    ok.num_events, ok.num_token_events = 6, 3
    short = Record(0.0, 0.0, 3, ttft_s=0.7, e2e_s=0.7, output_tokens=1, num_events=4, num_token_events=1)
    failures = [
        Record(0.0, 0.0, 3, outcome, 500, "text")
        for outcome in (Outcome.REJECTED, Outcome.STATUS, Outcome.STATUS)
    ]
    point = Point(Load("closed", 2), [ok, short, *failures], num_begun=7, wall_s=2.0, cpu_s=0.001)
    summary = summarise(point)
    counts = (
        summary.num_begun,
        summary.num_ok,
        summary.num_failed,
        summary.num_rejected,
        summary.num_unfinished,
    )
    assert counts == (7, 2, 2, 1, 2)
    assert summary.errors == {"status: text": 2, "rejected: text": 1}
    assert (summary.output_tokens, summary.output_tokens_per_s, summary.requests_per_s) == (6, 3.0, 1.0)
    assert (summary.num_short, summary.tokens_by_usage, summary.tokens_per_event) == (1, False, 1.5)
    assert summary.ttft_s == Spread.of([0.5, 0.7])
    assert summary.itl_s == Spread.of([0.1, 0.3])
    assert summary.tpot_s == Spread.of([0.1])  # the answer of one token has none after its first
    assert summary.client_cpu_us_per_event == pytest.approx(100)
    report = Report(name="x", config={"seed": 1}, points=[summary], records=[point.records])
    assert report.has_failed
    refused = summarise(Point(Load("closed", 2), failures[:1], num_begun=1, wall_s=1.0))
    assert not Report(name="x", config={}, points=[refused]).has_failed
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def test_load_points_end_by_count_or_time() -> None:
    assert Load("closed", 32).request_limit == 128
    assert Load("closed", 1).request_limit == 16
    assert Load("closed", 1, 5).request_limit == 5
    assert Load("closed", 1, None, 10.0).request_limit == float("inf")
    assert (Load("closed", 8).warmup, Load("open", 0.5).warmup, Load("closed", 8, num_warmup=0).warmup) == (
        8,
        4,
        0,
    )


def test_load_goes_to_this_machine_only_unless_told_otherwise() -> None:
    for url in ("http://127.0.0.1:8000", "http://localhost:1", "http://[::1]:8000/v1", "http://127.9.9.9"):
        check_url(url, allow_remote=False)
    for url in (
        "http://192.0.2.1:8000",
        "http://example.org",
        "http://127.0.0.1.example.org",
        "http://0.0.0.0:1",
    ):
        with pytest.raises(ValueError, match="not a loopback address"):
            check_url(url, allow_remote=False)
        check_url(url, allow_remote=True)
    for url in ("https://127.0.0.1", "127.0.0.1:8000", "http://"):
        with pytest.raises(ValueError, match="must be http://host:port"):
            check_url(url, allow_remote=True)
