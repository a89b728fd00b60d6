"""Whatever comes over a socket between processes is messages or a WireError, the same however it is cut."""

from typing import Any

import msgspec

from tests.fuzz.source import Source
from trioserve.attach.wire import (
    Attach,
    Close,
    FromOwner,
    Open,
    Refused,
    ToOwner,
    Welcome,
    exception_of,
    model_of,
    open_message,
    refusal,
    sequences_of,
)
from trioserve.core.forms import AnswerForm, JsonForm
from trioserve.core.frames import FrameReader, encode_frame
from trioserve.core.sampling import Grammar, SamplingParams
from trioserve.core.sequence import Sequence
from trioserve.core.step import Admission, FromWorker, SlotWork, StepPlan, StepResult, ToWorker, WorkerError
from trioserve.errors import QueueFull, WireError
from trioserve.examiner.wire import Finding, FromProcess, Task, ToProcess

_KINDS: tuple[Any, ...] = (ToWorker, FromWorker, ToOwner, FromOwner, ToProcess, FromProcess)
_MAX_BYTES = 1 << 20
_PARAMS = SamplingParams(max_tokens=4, stop=("a", "b"), logit_bias=((1, 2.0),), logprobs=3)
_EXAMPLES = (
    (
        0,
        StepPlan(7, [2], [Admission(0, 9, [1, 2, 3], 2, 0, [3], _PARAMS)], [SlotWork(0, 2, [])]),
    ),
    (1, StepResult(1, [], 0.5)),
    (1, WorkerError("model", "no such file")),
    (2, Attach(b"key", 1)),
    (
        2,
        open_message(
            3, [Sequence([1, 2], msgspec.structs.replace(_PARAMS, grammar=Grammar("any", "x", b"k")))]
        ),
    ),
    (2, Close(3)),
    (3, refusal(3, QueueFull("because", retry_after_s=1))),
    (4, Task(AnswerForm(body=JsonForm(schema='{"type":"object"}')))),
    (5, Finding(text="start: /a/")),
)
SEEDS = tuple(bytes([kind, 0]) + encode_frame(message) for kind, message in _EXAMPLES)


def check(data: bytes) -> None:
    """Read the same stream whole and cut."""
    source = Source(data)
    kind = source.pick(_KINDS)
    places = Source(source.some(20))
    stream = source.rest()
    messages, is_refused = _read(kind, [stream])
    in_pieces, is_refused_too = _read(kind, places.cut(stream))
    assert is_refused == is_refused_too
    if not is_refused:
        assert list(map(encode_frame, messages)) == list(map(encode_frame, in_pieces))
    for message in messages:
        (again,) = FrameReader[Any](kind).feed(encode_frame(message))
        assert encode_frame(again) == encode_frame(message)  # a NaN is not equal to itself
        _understand(message)


def _read(kind: Any, pieces: list[bytes]) -> tuple[list[Any], bool]:
    reader = FrameReader[Any](kind, max_bytes=_MAX_BYTES)
    messages: list[Any] = []
    try:
        for piece in pieces:
            messages += reader.feed(piece)
        reader.flush()
    except WireError:
        return messages, True
    return messages, False


def _understand(message: Any) -> None:
    """What its receiver makes of it."""
    try:
        match message:
            case Open():
                sequences_of(message)
            case Refused():
                assert isinstance(exception_of(message), Exception)
            case Welcome():
                model_of(message)
    except WireError:
        pass
