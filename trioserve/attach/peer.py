"""One attached process, as the owner sees it: what it asked for, and what it shall be told."""

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, Protocol

import trio
from msgspec import Struct

from trioserve.attach.link import Link, LinkLost, Outbox
from trioserve.attach.wire import (
    Call,
    Close,
    Count,
    Counted,
    Deltas,
    Granted,
    Head,
    HttpCounts,
    Keep,
    Open,
    Part,
    Permit,
    State,
    Statistics,
    Stop,
    Taken,
    ToOwner,
    refusal,
    sequences_of,
)
from trioserve.core.delta import OutputDelta, merge
from trioserve.core.sequence import Sequence
from trioserve.engine.engine import Engine
from trioserve.engine.lifecycle import Lifecycle
from trioserve.engine.permits import Permits
from trioserve.errors import EngineError, NotReady, TrioserveError, WireError
from trioserve.store.database import StoredCompletion

logger = logging.getLogger(__name__)

HANDED_OVER: Final = "trioserve.handed_over"
"""In the scope of a request that came by another process, which has counted it."""

App = Callable[[Any, Any, Any], Awaitable[None]]
"""What ASGI calls an application."""


class Desk(Protocol):
    """What the owner does for all processes besides running sequences."""

    @property
    def permits(self) -> Permits: ...

    @property
    def app(self) -> App:
        """Answers what is handed over."""

    def keep(self, record: StoredCompletion) -> None:
        """Store an answer; whoever asks from now on finds it."""


class Owner(Protocol):
    """Where an attached process' wishes go."""

    @property
    def desk(self) -> Desk: ...

    @property
    def lifecycle(self) -> Lifecycle: ...

    @property
    def engine(self) -> Engine | None:
        """None while it loads."""


class Peer:
    """A connection. When it is lost, what came over it is aborted and what it held is given back."""

    def __init__(self, owner: Owner, link: Link[ToOwner]) -> None:
        self.outbox = PeerOutbox()
        self.counts = HttpCounts()
        """Its HTTP requests, as last heard of."""
        self._owner = owner
        self._link = link
        self._held: dict[int, ExitStack] = {}  # by ticket
        self._sequences: dict[int, list[Sequence]] = {}
        self._calls: dict[int, _Call] = {}
        self._num_counts_asked = 0
        self._counted: float = 0  # the serial of ``counts``; inf: the process is gone
        self._told = trio.Event()

    async def run(self, messages: list[ToOwner]) -> None:
        """Until the connection is lost; ``messages`` have come over it already."""
        try:
            async with trio.open_nursery() as nursery:

                async def until_lost(work: Callable[[], Awaitable[None]]) -> None:
                    try:
                        await work()
                    except LinkLost:
                        nursery.cancel_scope.cancel()
                    except WireError as exc:
                        logger.error("an attached process is cut off: %s", exc)
                        nursery.cancel_scope.cancel()

                async def read() -> None:
                    taken = messages
                    while True:
                        for message in taken:
                            self._take(message, nursery)
                        taken = await self._link.receive()

                async def write() -> None:
                    while True:
                        await self._link.send(await self.outbox.take())

                nursery.start_soon(until_lost, read)
                nursery.start_soon(until_lost, write)
        finally:
            for ticket in list(self._held):
                self._close(ticket)
            self._counted = math.inf
            self._told.set()

    async def count(self) -> None:
        """Have ``counts`` be those of now."""
        self._num_counts_asked += 1
        serial = self._num_counts_asked
        self.outbox.put(Count(serial))
        while self._counted < serial:
            await self._told.wait()

    def _take(self, message: ToOwner, nursery: trio.Nursery) -> None:
        match message:
            case Open():
                self._open(message)
            case Stop():
                self._stop(message)
            case Permit():
                self._permit(message.ticket, message.key)
            case Call():
                call = self._calls[message.ticket] = _Call(message, self.outbox)
                self._hold(message.ticket).callback(call.scope.cancel)
                nursery.start_soon(call.run, self._owner.desk.app)
            case Taken():
                if (answering := self._calls.get(message.ticket)) is not None:
                    answering.taken.set()
            case Keep():
                self._owner.desk.keep(message.record)
                self.outbox.put(Granted(message.ticket))
            case Close():
                self._close(message.ticket)
            case Counted():
                self.counts = message.counts
                self._counted = max(self._counted, message.serial)
                self._told.set()
                self._told = trio.Event()
            case _:
                raise WireError("the key was shown twice")

    def _hold(self, ticket: int) -> ExitStack:
        """What goes by the ticket from now on."""
        if ticket in self._held:
            raise WireError(f"ticket {ticket} is in use already")
        stack = self._held[ticket] = ExitStack()
        return stack

    def _close(self, ticket: int) -> None:
        if (stack := self._held.pop(ticket, None)) is not None:
            stack.close()
        self._sequences.pop(ticket, None)
        self._calls.pop(ticket, None)
        self.outbox.forget(ticket)

    def _open(self, message: Open) -> None:
        """Admission, for all processes at one place: nothing happens between the check and the waiting line."""
        ticket, sequences = message.ticket, sequences_of(message)
        held = self._hold(ticket)
        try:
            engine = self._owner.engine
            if engine is None:
                raise NotReady("the model is still loading", retry_after_s=2.0)
            if not self._owner.lifecycle.is_live:
                raise NotReady("the engine has failed", retry_after_s=5.0)
            engine.check_queue(len(sequences), sum(seq.num_prompt_tokens for seq in sequences))
            held.enter_context(engine.feed(sequences, _Receiver(self.outbox, ticket)))
        except TrioserveError as exc:
            self._refuse(ticket, exc)
        else:
            self._sequences[ticket] = sequences
            self.outbox.put(Granted(ticket))

    def _stop(self, message: Stop) -> None:
        sequences, engine = self._sequences.get(message.ticket), self._owner.engine
        if sequences is None or engine is None:
            return
        if any(not 0 <= index < len(sequences) for index in message.indices):
            raise WireError("a Stop names a sequence that is not there")
        engine.stop([sequences[index] for index in message.indices])

    def _permit(self, ticket: int, key: str) -> None:
        held, permits = self._hold(ticket), self._owner.desk.permits
        try:
            rate = permits.take(key)
        except TrioserveError as exc:
            self._refuse(ticket, exc)
        else:
            held.callback(permits.give_back, key)
            self.outbox.put(Granted(ticket, rate))

    def _refuse(self, ticket: int, exc: TrioserveError) -> None:
        self._close(ticket)
        self.outbox.put(refusal(ticket, exc))


class _Call:
    """A request that was handed over: answered by the owner's app, a part at a time as the other process takes them."""

    def __init__(self, message: Call, outbox: Outbox) -> None:
        self.scope = trio.CancelScope()
        self.taken = trio.Event()
        """Set when the other process wants the next part."""
        self._ticket = message.ticket
        self._outbox = outbox
        self._asgi = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "2",
            "method": message.method,
            "scheme": message.scheme,
            "path": message.path,
            "raw_path": message.raw_path,
            "query_string": message.query_string,
            "root_path": message.root_path,
            "headers": message.headers,
            "client": None,
            "server": None,
            "extensions": {},
            "state": {},
            HANDED_OVER: True,
        }
        self._body: bytes | None = message.body

    async def run(self, app: App) -> None:
        """To its end, whatever that is."""
        with self.scope:
            try:
                await app(self._asgi, self._receive, self._send)
            except Exception:
                logger.exception("a request that was handed over could not be answered")
                failure = EngineError("the server failed to answer this request")
                self._outbox.put(refusal(self._ticket, failure))

    async def _receive(self) -> Any:
        if self._body is None:
            await trio.sleep_forever()  # when the client leaves, all this is cancelled
        body, self._body = self._body, None
        await trio.lowlevel.checkpoint()
        return {"type": "http.request", "body": body, "more_body": False}

    async def _send(self, message: Any) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            headers = [(bytes(name), bytes(value)) for name, value in message["headers"]]
            self._outbox.put(Head(self._ticket, message["status"], headers))
        elif message["type"] == "http.response.body":
            data, is_last = bytes(message.get("body", b"")), not message.get("more_body", False)
            if data or is_last:
                self.taken = trio.Event()
                self._outbox.put(Part(self._ticket, data, is_last))
            if data and not is_last:
                await self.taken.wait()


class PeerOutbox(Outbox):
    """While the process is slow, the deltas of a choice merge, and only the newest state and counts are kept: what is
    held stays bounded by the text of its requests."""

    def __init__(self) -> None:
        super().__init__()
        self._deltas: dict[int, dict[int, list[OutputDelta]]] = {}  # by ticket and choice
        self._state: State | None = None
        self._statistics: Statistics | None = None

    def put_delta(self, ticket: int, index: int, delta: OutputDelta) -> None:
        """A delta of sequences that were admitted."""
        self._deltas.setdefault(ticket, {}).setdefault(index, []).append(delta)
        self._filled.set()

    @property
    def state(self) -> State | None:
        """The state to be told, if any."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state
        self._filled.set()

    @property
    def statistics(self) -> Statistics | None:
        """The counts to be told, if any."""
        return self._statistics

    @statistics.setter
    def statistics(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._filled.set()

    def forget(self, ticket: int) -> None:
        """Drop the deltas that nobody reads any more."""
        self._deltas.pop(ticket, None)

    async def take(self) -> list[Struct]:
        """Wait for something, then take all there is, in an order that makes sense."""
        messages = await super().take()
        deltas, self._deltas = self._deltas, {}
        if self._state is not None:
            messages.append(self._state)
        messages += _told(
            (ticket, index, merge(parts))
            for ticket, choices in deltas.items()
            for index, parts in choices.items()
        )
        if self._statistics is not None:
            messages.append(self._statistics)
        self._state = self._statistics = None
        return messages


def _told(items: Iterable[tuple[int, int, OutputDelta]]) -> Iterator[Deltas]:
    """One frame for all, but for what is said of prompts, which may be long."""
    together = []
    for item in items:
        if item[2].prompt_logprobs:
            yield Deltas([item])
        else:
            together.append(item)
    if together:
        yield Deltas(together)


@dataclass(frozen=True, slots=True, eq=False)
class _Receiver:
    """Where the engine leaves the deltas of one request."""

    outbox: PeerOutbox
    ticket: int

    def put_nowait(self, index: int, delta: OutputDelta) -> None:
        self.outbox.put_delta(self.ticket, index, delta)

    def hand_over(self) -> None:
        """The task that writes to the other process is awake already."""
