"""What crosses between the engine's owner and an attached process, one msgpack array a frame.

    attached                        owner
    Attach          ->                              the key, once
                    <-  State                       at once, and at every change
                    <-  Welcome                     as soon as the model is known, once
                    <-  Statistics                  when they change, and as a sign of life
    Counted         ->                              HTTP requests; now and then, and whenever there was a
                    <-  Count

What an attached process has with the owner goes by a ticket, a number of its own that it never uses twice:

    Open            ->                              the sequences of a request
                    <-  Granted or Refused          before the client hears a status
                    <-  Deltas ...                  all of a step in one frame
    Stop            ->                              end some of them, as if their answers had ended
    Permit          ->                              one of the requests that may be served
                    <-  Granted or Refused
    Call            ->                              a request for the owner's own app
                    <-  Head, Part ...              a part waits for
    Taken           ->                              the one before it
    Keep            ->                              an answer to be stored
                    <-  Granted
    Close           ->                              done, or aborted: what goes by the ticket is given back

A lost connection is a Close of everything that it carried. Both ends run the same code: they are forks of one process.
"""

from array import array
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from operator import add
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from trioserve import errors
from trioserve.core.delta import OutputDelta
from trioserve.core.sampling import Grammar, SamplingParams
from trioserve.core.sequence import Sequence
from trioserve.engine.checkpoint import ModelFolder
from trioserve.engine.engine import EngineStatistics
from trioserve.engine.permits import Rate
from trioserve.errors import EngineError, RequestError, TrioserveError, TryAgain, Unavailable, WireError
from trioserve.store.database import StoredCompletion


class Attach(Struct, frozen=True, array_like=True, tag="attach"):
    """The first frame of an attached process."""

    key: bytes
    worker: int


class Line(Struct, frozen=True, array_like=True):
    """One sequence to run: all that ``Sequence`` is made of."""

    prompt: int
    """Which of ``Open.prompts``."""
    params: SamplingParams
    """Without their grammar."""
    priority: int
    cache_salt: bytes
    owner: str
    grammar: int | None
    """Which of ``Open.grammars``."""


class Open(Struct, frozen=True, array_like=True, tag="open"):
    """Run the sequences of one request."""

    ticket: int
    prompts: list[bytes]
    """Token ids, four bytes each in this machine's order; choices of one prompt share it."""
    lines: list[Line]
    grammars: list[Grammar]
    """They may be long, and the sequences of a request have one in common."""


class Stop(Struct, frozen=True, array_like=True, tag="stop"):
    """End sequences as if their answers had ended there."""

    ticket: int
    indices: list[int]
    """Of ``Open.lines``."""


class Permit(Struct, frozen=True, array_like=True, tag="permit"):
    """Take one of the requests that may be served at a time; until Close."""

    ticket: int
    key: str
    """Whose request it is."""


class Call(Struct, frozen=True, array_like=True, tag="call"):
    """A request that only the owner can answer; what ASGI says of it."""

    ticket: int
    method: str
    scheme: str
    path: str
    raw_path: bytes
    query_string: bytes
    root_path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Taken(Struct, frozen=True, array_like=True, tag="taken"):
    """The last Part has gone on its way to the client."""

    ticket: int


class Keep(Struct, frozen=True, array_like=True, tag="keep"):
    """Store an answer."""

    ticket: int
    record: StoredCompletion


class Close(Struct, frozen=True, array_like=True, tag="close"):
    """Forget what goes by the ticket; abort what still runs of it."""

    ticket: int


class HttpCounts(Struct, frozen=True, array_like=True):
    """The HTTP requests of one process, since it began to count."""

    num_running: int = 0
    requests: list[tuple[str, str, int, int]] = []
    """(method, route, status, how many)."""
    durations: list[tuple[str, list[int], float]] = []
    """(route, count of each bucket by itself, seconds in all)."""


class Counted(Struct, frozen=True, array_like=True, tag="counted"):
    """The answer to the Count of that serial; 0 for one that nobody asked for."""

    serial: int
    counts: HttpCounts


class State(Struct, frozen=True, array_like=True, tag="state"):
    """How the owner's works stand."""

    works: str
    """A ServerState."""
    failure: str | None
    """Why the owner has failed for good, if it has."""
    exit_code: int


class Welcome(Struct, frozen=True, array_like=True, tag="welcome"):
    """The model that is served."""

    model: dict[str, Any]
    """The fields of ``ModelFolder``, paths as text."""
    counts: EngineStatistics


class Granted(Struct, frozen=True, array_like=True, tag="granted"):
    """The sequences wait or run, the permit is taken, the answer is stored."""

    ticket: int
    rate: Rate | None = None
    """Of a Permit, where a key's requests of a minute are bounded."""


class Refused(Struct, frozen=True, array_like=True, tag="refused"):
    """What was asked for is not to be had."""

    ticket: int
    kind: str
    """The name of an exception class."""
    message: str
    retry_after_s: float
    """Of a TryAgain, else 0."""
    param: str | None
    """Of a RequestError, if it names one."""


class Deltas(Struct, frozen=True, array_like=True, tag="deltas"):
    """What came of a step, or of several where this end was slow."""

    items: list[tuple[int, int, OutputDelta]]
    """(ticket, index of the choice, delta), at most one a choice."""


class Head(Struct, frozen=True, array_like=True, tag="head"):
    """How the answer to a Call begins."""

    ticket: int
    status: int
    headers: list[tuple[bytes, bytes]]


class Part(Struct, frozen=True, array_like=True, tag="part"):
    """More of its body."""

    ticket: int
    data: bytes
    is_last: bool


class Statistics(Struct, frozen=True, array_like=True, tag="statistics"):
    """The engine's counts of this moment."""

    counts: EngineStatistics


class Count(Struct, frozen=True, array_like=True, tag="count"):
    """Tell of the HTTP requests now."""

    serial: int


ToOwner = Attach | Open | Stop | Permit | Call | Taken | Keep | Close | Counted
FromOwner = State | Welcome | Granted | Refused | Deltas | Head | Part | Statistics | Count


def total(counts: Iterable[HttpCounts]) -> HttpCounts:
    """All of them together."""
    num_running, requests = 0, Counter[tuple[str, str, int]]()
    durations: dict[str, tuple[list[int], float]] = {}
    for of_process in counts:
        num_running += of_process.num_running
        for method, route, status, times in of_process.requests:
            requests[method, route, status] += times
        for route, buckets, seconds in of_process.durations:
            known, before = durations.get(route, ([0] * len(buckets), 0.0))
            durations[route] = list(map(add, known, buckets)), before + seconds
    return HttpCounts(
        num_running,
        [(*labels, times) for labels, times in requests.items()],
        [(route, *histogram) for route, histogram in durations.items()],
    )


def open_message(ticket: int, sequences: SequenceOf[Sequence]) -> Open:
    """How to ask for ``sequences``, none of which has run."""
    prompts: list[array[int]] = []
    lines = []
    grammars: dict[Grammar, int] = {}
    for seq in sequences:
        if not prompts or prompts[-1] != seq.token_ids:  # the choices of a prompt stand together
            prompts.append(seq.token_ids)
        params, grammar = seq.params, None
        if params.grammar is not None:
            grammar = grammars.setdefault(params.grammar, len(grammars))
            params = msgspec.structs.replace(params, grammar=None)
        lines.append(Line(len(prompts) - 1, params, seq.priority, seq.cache_salt, seq.owner, grammar))
    return Open(ticket, [prompt.tobytes() for prompt in prompts], lines, list(grammars))


def sequences_of(message: Open) -> list[Sequence]:
    """The sequences that ``open_message`` was told of, as new ones of this process.

    Raises:
        WireError: The message is not of that making.
    """
    try:
        prompts = [array("i", prompt) for prompt in message.prompts]
        return [
            Sequence(
                prompts[line.prompt],
                line.params
                if line.grammar is None
                else msgspec.structs.replace(line.params, grammar=message.grammars[line.grammar]),
                priority=line.priority,
                cache_salt=line.cache_salt,
                owner=line.owner,
            )
            for line in message.lines
        ]
    except (ValueError, IndexError) as exc:
        raise WireError("an Open names a prompt or a grammar that is not there, or cuts a token") from exc


def refusal(ticket: int, exc: TrioserveError) -> Refused:
    """How to tell of ``exc``."""
    names = (base.__name__ for base in type(exc).__mro__)
    kind = next((name for name in names if hasattr(errors, name)), TrioserveError.__name__)
    retry_after_s = exc.retry_after_s if isinstance(exc, TryAgain) else 0.0
    param = exc.param if isinstance(exc, RequestError) else None
    return Refused(ticket, kind, str(exc), retry_after_s, param)


def exception_of(message: Refused) -> TrioserveError:
    """The exception that ``refusal`` was told of."""
    kind: object = getattr(errors, message.kind, None)
    if isinstance(kind, type) and issubclass(kind, RequestError):
        return kind(message.message, param=message.param)
    if isinstance(kind, type) and issubclass(kind, EngineError):
        return kind(message.message)
    if isinstance(kind, type) and issubclass(kind, TryAgain):
        return kind(message.message, retry_after_s=message.retry_after_s)
    return Unavailable(message.message)


def welcome(model: ModelFolder, counts: EngineStatistics) -> Welcome:
    """How to tell of ``model``."""
    return Welcome(msgspec.to_builtins(model, enc_hook=str), counts)


def model_of(message: Welcome) -> ModelFolder:
    """The model that ``welcome`` was told of.

    Raises:
        WireError: A field is missing or of a wrong type.
    """
    try:
        return msgspec.convert(message.model, ModelFolder, dec_hook=_as_path)
    except msgspec.ValidationError as exc:
        raise WireError(f"a Welcome does not tell of a model: {exc}") from exc


def _as_path(kind: type, value: Any) -> Any:
    return Path(value) if kind is Path else value
