"""An owner with a real engine over a fake rank, and processes attached to it, all in one process and in real time."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import trio

from tests.engine.test_engine import VOCABULARY, make_engine, make_executor, supervised
from tests.fakes import FakeExecutor
from trioserve.attach.attachment import Attachment
from trioserve.attach.host import Host
from trioserve.attach.link import Link
from trioserve.attach.remote import RemoteEngine, RemoteOwner
from trioserve.attach.seat import Seat, make_seats
from trioserve.attach.wire import Attach, FromOwner
from trioserve.engine.checkpoint import ModelFolder
from trioserve.engine.engine import Engine
from trioserve.engine.lifecycle import Lifecycle
from trioserve.engine.permits import Bounds, Permits
from trioserve.http.traffic import Traffic
from trioserve.store.database import StoredCompletion


@dataclass
class Desk:
    """An app that answers a few paths, a bound of two requests, and a store that is a list."""

    permits: Permits = field(default_factory=lambda: Permits(Bounds(at_a_time=2), trio.current_time))
    kept: list[StoredCompletion] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    """The scope of each call that has begun."""
    ended: list[str] = field(default_factory=list)
    """The path of each call that is over, however it ended."""
    num_parts: int = 0
    """Sent by /flood."""

    def keep(self, record: StoredCompletion) -> None:
        self.kept.append(record)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls.append(scope)
        try:
            await self._answer(scope, await receive(), send)
        finally:
            self.ended.append(scope["path"])

    async def _answer(self, scope: Any, message: Any, send: Any) -> None:
        async def start(status: int) -> None:
            await send({"type": "http.response.start", "status": status, "headers": [(b"a", b"b")]})

        if scope["path"] == "/fault":
            raise RuntimeError("on purpose")
        if scope["path"] == "/silent":
            await trio.sleep_forever()
        await start(201)
        if scope["path"] == "/flood":
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
                self.num_parts += 1
        await send({"type": "http.response.body", "body": message["body"], "more_body": True})
        await send({"type": "http.response.body", "body": b"!"})


@dataclass
class Owner:
    """The owning side."""

    engine: Engine
    host: Host
    seats: list[Seat]
    desk: Desk
    executor: FakeExecutor


@asynccontextmanager
async def owning(
    *, num_blocks: int = 64, step_s: float = 0.001, seats: list[Seat] | None = None, **settings: object
) -> AsyncIterator[Owner]:
    """An engine that others may attach to."""
    engine = make_engine(**settings)
    made = make_seats(4) if seats is None else seats
    desk = Desk()
    host = Host(made[0], engine.lifecycle, desk)
    host.serve(engine)
    executor = make_executor(num_blocks=num_blocks, step_s=step_s)
    async with supervised(engine, executor):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.run)
            yield Owner(engine, host, made, desk, executor)
            nursery.cancel_scope.cancel()
    if seats is None:
        made[0].listener.close()


@dataclass
class Attached:
    """The attached side."""

    engine: RemoteEngine
    owner: RemoteOwner
    attachment: Attachment
    traffic: Traffic


@asynccontextmanager
async def attached_process(seat: Seat) -> AsyncIterator[Attached]:
    """A process that is attached and ready."""
    attachment, traffic, loaded = Attachment(Lifecycle()), Traffic(), trio.Event()

    async def load(model: ModelFolder) -> None:
        loaded.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attachment.run, seat, load, traffic)
        with trio.fail_after(5):
            await loaded.wait()
            while not attachment.lifecycle.is_ready:
                await attachment.lifecycle.wait_changed()
        engine = RemoteEngine(attachment, VOCABULARY)
        yield Attached(engine, RemoteOwner(attachment), attachment, traffic)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def attached(seat: Seat) -> AsyncIterator[RemoteEngine]:
    """The engine of such a process."""
    async with attached_process(seat) as process:
        yield process.engine


@asynccontextmanager
async def raw_link(seat: Seat, *, key: bytes | None = None) -> AsyncIterator[Link[FromOwner]]:
    """A connection of a process that does as the test says."""
    stream = await trio.open_unix_socket(seat.listener.getsockname())
    async with stream:
        link = Link[FromOwner](stream, FromOwner)
        await link.send([Attach(seat.key if key is None else key, seat.worker)])
        yield link


async def to_the_end(link: Link[FromOwner]) -> NoReturn:
    """Read until the connection is lost."""
    while True:
        await link.receive()


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait until ``condition`` holds."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event of its own
            await trio.sleep(0.005)
