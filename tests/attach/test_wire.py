"""What crosses between owner and attached arrives as it left, however the stream is cut."""

import inspect
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from tests.attach.drawn import drawn
from tests.engine.test_engine import make_engine
from trioserve.attach.wire import (
    Deltas,
    FromOwner,
    HttpCounts,
    Open,
    ToOwner,
    exception_of,
    model_of,
    open_message,
    refusal,
    sequences_of,
    total,
    welcome,
)
from trioserve.core.frames import FrameReader, encode_frame
from trioserve.core.sampling import Grammar, SamplingParams
from trioserve.core.sequence import Sequence
from trioserve.engine.checkpoint import ModelFolder
from trioserve.errors import (
    Draining,
    EngineError,
    InvalidGrammar,
    InvalidRequest,
    NotReady,
    Overloaded,
    PromptTooLong,
    QueueFull,
    TooManySessions,
    TrioserveError,
    TryAgain,
    Unavailable,
    WireError,
    WorkerDied,
)

ids = st.integers(0, 2**31 - 1)
GRAMMAR = Grammar("any", "x" * 10_000, b"key")


@settings(deadline=None)
@given(st.lists(drawn(Deltas), max_size=2), st.data())
def test_deltas_arrive_as_they_left_however_the_stream_is_cut(
    sent: list[Deltas], data: st.DataObject
) -> None:
    frames = b"".join(map(encode_frame, sent))
    cuts = data.draw(st.lists(st.integers(0, len(frames)), max_size=8))
    reader: FrameReader[FromOwner] = FrameReader(FromOwner)
    edges = [0, *sorted(cuts), len(frames)]
    pieces = [frames[start:end] for start, end in itertools.pairwise(edges)]
    assert [message for piece in pieces for message in reader.feed(piece)] == sent
    reader.flush()


@settings(deadline=None)
@given(drawn(ToOwner))
def test_whatever_is_asked_of_the_owner_arrives_as_it_left(sent: Struct) -> None:
    assert FrameReader[ToOwner](ToOwner).feed(encode_frame(sent)) == [sent]


@settings(deadline=None)
@given(drawn(FromOwner))
def test_whatever_the_owner_says_arrives_as_it_left(sent: Struct) -> None:
    assert FrameReader[FromOwner](FromOwner).feed(encode_frame(sent)) == [sent]


@settings(deadline=None)
@given(st.lists(drawn(HttpCounts), max_size=3))
def test_counts_add_up(parts: list[HttpCounts]) -> None:
    whole = total(parts)
    assert whole.num_running == sum(part.num_running for part in parts)
    assert sum(times for *_, times in whole.requests) == sum(
        times for part in parts for *_, times in part.requests
    )
    labels = [tuple(labels) for *labels, _ in whole.requests]
    assert len(set(labels)) == len(labels)


@settings(deadline=None)
@given(
    prompts=st.lists(st.lists(ids, min_size=1, max_size=9), min_size=1, max_size=3),
    n=st.integers(1, 3),
    priority=st.integers(-5, 5),
    salt=st.binary(max_size=8),
    data=st.data(),
)
def test_sequences_arrive_as_they_left(
    prompts: list[list[int]], n: int, priority: int, salt: bytes, data: st.DataObject
) -> None:
    params = [data.draw(drawn(SamplingParams)) for _ in range(n)]
    sequences = [
        Sequence(prompt, params[k], priority=priority, cache_salt=salt, owner=f"key {k}")
        for prompt in prompts
        for k in range(n)
    ]
    message = open_message(7, sequences)
    assert len(message.prompts) <= len(prompts)
    (arrived,) = FrameReader[ToOwner](ToOwner).feed(encode_frame(message))
    assert isinstance(arrived, Open) and arrived.ticket == 7
    made = sequences_of(arrived)
    for ours, theirs in zip(sequences, made, strict=True):
        assert ours.token_ids == theirs.token_ids and ours.params == theirs.params
        assert (ours.priority, ours.cache_salt) == (theirs.priority, theirs.cache_salt)
        assert ours.owner == theirs.owner
        assert ours.seq_id != theirs.seq_id


def test_all_that_a_sequence_is_made_of_crosses() -> None:
    parameters = set(inspect.signature(Sequence).parameters)
    assert parameters == {"prompt_token_ids", "params", "priority", "cache_salt", "owner"}, (
        "a new parameter of Sequence needs a field in attach.wire.Line"
    )


@pytest.mark.parametrize("prompt", [b"\x01\x00\x00", b""])
def test_an_open_that_makes_no_sense_is_a_wire_error(prompt: bytes) -> None:
    good = open_message(1, [Sequence([1], SamplingParams(max_tokens=1))])
    with pytest.raises(WireError):
        sequences_of(Open(1, [prompt] if prompt else [], good.lines, []))


def test_a_grammar_that_is_not_there_is_a_wire_error() -> None:
    good = open_message(1, [Sequence([1], SamplingParams(max_tokens=1, grammar=GRAMMAR))])
    with pytest.raises(WireError):
        sequences_of(Open(1, good.prompts, good.lines, []))


def test_the_sequences_of_a_request_send_their_grammar_once() -> None:
    params = SamplingParams(max_tokens=1, grammar=GRAMMAR)
    message = open_message(1, [Sequence([i], params) for i in range(50)])
    assert len(encode_frame(message)) < 2 * len(GRAMMAR.text)
    assert {seq.params.grammar for seq in sequences_of(message)} == {GRAMMAR}


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_a_wire_error_or_nothing(noise: bytes) -> None:
    try:
        arrived = FrameReader[ToOwner](ToOwner).feed(noise)
    except WireError:
        return
    assert all(isinstance(message, ToOwner) for message in arrived)


@pytest.mark.parametrize("kind", [QueueFull, TooManySessions, Overloaded, NotReady, Draining, Unavailable])
def test_a_refusal_is_raised_as_it_was(kind: type[TryAgain]) -> None:
    raised = exception_of(refusal(3, kind("because", retry_after_s=7.5)))
    assert isinstance(raised, TryAgain)
    assert (type(raised), str(raised), raised.retry_after_s) == (kind, "because", 7.5)


@pytest.mark.parametrize("kind", [PromptTooLong, InvalidRequest, InvalidGrammar])
def test_a_refusal_that_is_the_clients_fault_stays_its_fault(kind: type[InvalidRequest]) -> None:
    raised = exception_of(refusal(3, kind("because", param="prompt")))
    assert isinstance(raised, kind) and (str(raised), raised.param) == ("because", "prompt")


@pytest.mark.parametrize("kind", [EngineError, WorkerDied])
def test_a_failure_stays_one(kind: type[EngineError]) -> None:
    assert type(exception_of(refusal(3, kind("because")))) is kind


def test_a_refusal_of_an_unknown_kind_is_still_a_503() -> None:
    class Novel(TrioserveError):
        pass

    assert type(exception_of(refusal(3, Novel("because")))) is Unavailable


def test_a_model_arrives_as_it_left() -> None:
    counts = make_engine().statistics()
    model = ModelFolder(
        name="a/b",
        names=("a/b", "c"),
        path=Path("/models/a"),
        tokenizer_path=Path("/models/t"),
        max_model_len=64,
        vocab_size=100,
        eos_token_ids=(1, 2),
        generation_config={"temperature": 0.5, "eos_token_id": [1, 2]},
        created=5,
    )
    (arrived,) = FrameReader[FromOwner](FromOwner).feed(encode_frame(welcome(model, counts)))
    assert model_of(arrived) == model  # type: ignore[arg-type]  # it is a Welcome
    assert arrived.counts == counts  # type: ignore[union-attr]
