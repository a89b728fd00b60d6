import json
from typing import Any

import pytest

from benchmarks.load.answer import AnswerReader, Outcome, Record

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def chunk(*, finish_reason: str | None = None, **delta: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return event({"id": "x", "choices": [choice], "usage": None})


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def read(*timed: tuple[float, bytes], failure: Exception | None = None, head: bytes = HEAD) -> Record:
    reader = AnswerReader()
    reader.response.feed(head, 0.0)
    try:
        for time, data in timed:
            reader.response.feed(data, time)
    except ValueError as exc:
        failure = exc
    reader.response.close()
    record = Record(0.0, 0.0, 8)
    reader.finish(record, start=10.0, now=99.0, failure=failure)
    return record


def test_times_are_those_of_the_events_that_carry_tokens() -> None:
    usage = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}})
    record = read(
        (10.1, chunk(role="assistant", content="")),
        (10.2, b": keep-alive\n\n"),
        (10.5, chunk(content="a")),
        (10.6, chunk(reasoning_content="b")),
        (10.8, chunk(content="")),  # a token whose text is not complete yet
        (10.9, chunk(tool_calls=[{"index": 0}])),
        (11.0, chunk(finish_reason="stop") + usage),
        (11.1, DONE),
    )
    assert record.outcome is Outcome.OK
    assert record.ttft_s == pytest.approx(0.5)
    assert record.itl_s == pytest.approx([0.1, 0.2, 0.1])
    assert record.e2e_s == pytest.approx(1.1)
    assert (record.num_events, record.num_token_events, record.output_tokens, record.prompt_tokens) == (
        7,
        4,
        7,
        5,
    )


def test_events_may_be_cut_anywhere_and_end_in_any_way() -> None:
    stream = chunk(content="é" * 9) + chunk(content="b", finish_reason="stop").replace(b"\n", b"\r\n") + DONE
    for size in range(1, len(stream)):
        record = read(*((10.0, stream[at : at + size]) for at in range(0, len(stream), size)))
        assert (record.outcome, record.output_tokens, record.finish_reason) == (Outcome.OK, 2, "stop")


@pytest.mark.parametrize(
    ("data", "outcome", "text"),
    [
        (chunk(content="a") + DONE, Outcome.TRUNCATED, "ended without finish_reason after 1 events"),
        (chunk(content="a", finish_reason="stop"), Outcome.TRUNCATED, "ended without [DONE] after 1 events"),
        (b"", Outcome.TRUNCATED, "ended without finish_reason, [DONE] after 0 events"),
        (
            chunk(content="a") + event({"error": {"message": "no"}}) + DONE,
            Outcome.STREAM_ERROR,
            '{"message": "no"}',
        ),
        (b"data: {oops\n\n" + DONE, Outcome.PROTOCOL, "DecodeError"),
    ],
)
def test_a_stream_that_is_not_whole_is_a_failure_with_a_name(
    data: bytes, outcome: Outcome, text: str
) -> None:
    record = read((10.5, data))
    assert record.outcome is outcome
    assert text in record.error


@pytest.mark.parametrize(
    ("head", "outcome", "text"),
    [
        (b"HTTP/1.1 429 Too Many\r\n\r\n", Outcome.REJECTED, "429 later"),
        (b"HTTP/1.1 503 Unavailable\r\n\r\n", Outcome.STATUS, "503 later"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n",
            Outcome.PROTOCOL,
            "not an event stream: later",
        ),
    ],
)
def test_other_answers_are_told_apart(head: bytes, outcome: Outcome, text: str) -> None:
    record = read((10.5, b"later"), head=head)
    assert (record.outcome, record.error) == (outcome, text)


def test_a_broken_connection_is_named_by_how_far_it_came() -> None:
    reset = ConnectionResetError("reset by peer")
    assert read(failure=reset, head=b"").outcome is Outcome.CONNECTION
    assert read(head=b"").error == "the server closed the connection without an answer"
    assert read((10.5, chunk(content="a")), failure=reset).outcome is Outcome.TRUNCATED
    late = read((10.5, chunk(content="a")), failure=TimeoutError("late"))
    assert (late.outcome, late.e2e_s) == (Outcome.TIMEOUT, 89.0)
