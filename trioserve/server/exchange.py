"""One ASGI call: the messages between hypercorn's protocol and the app, its cancellation, its line in the log."""

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol, Self

import trio
from hypercorn.config import Config
from hypercorn.typing import AppWrapper

from trioserve.core.extensions import OUTLET, WHOLE_BODY, Outlet
from trioserve.server.config import ServerConfig

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

logger = logging.getLogger("trioserve.server")
access_logger = logging.getLogger("trioserve.access")

_MAX_MESSAGES: Final = 10
"""Body messages that wait for an app which does not read; then the socket waits too."""
_QUIET_PATHS: Final = frozenset({b"/live", b"/ready", b"/health", b"/ping", b"/metrics"})
"""What machines ask every few seconds: their lines are for debugging only."""
_MAX_LOGGED_PATH: Final = 512
"""Bytes: a path may be as long as the headers, a line of the log should not."""
_CLIENT_GONE: Final = 499
"""The status in the log when the client left before the response began; nginx' number."""
_SENDS_PER_TURN: Final = 32
"""A send that need not wait does not yield; so many in a row do, for the others' sake."""


class ASGIApp(Protocol):
    """What is served."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class Changes:
    """Wakes those who wait for the next change of something; costs nothing where nobody does."""

    def __init__(self) -> None:
        self._next: trio.Event | None = None

    def tell(self) -> None:
        """Something has changed."""
        if self._next is not None:
            self._next.set()
            self._next = None

    async def wait(self) -> None:
        """Wait for the next change."""
        if self._next is None:
            self._next = trio.Event()
        await self._next.wait()


class Census:
    """How many HTTP requests are in flight."""

    def __init__(self) -> None:
        self.num_running = 0
        self._changed = Changes()

    def enter(self) -> None:
        self.num_running += 1
        self._changed.tell()

    def leave(self) -> None:
        self.num_running -= 1
        self._changed.tell()

    async def wait_none(self) -> None:
        """Wait until nothing is in flight."""
        while self.num_running:
            await self._changed.wait()

    async def wait_quiet(self, quiet_s: float) -> None:
        """Wait until nothing has been in flight for ``quiet_s``."""
        while True:
            await self.wait_none()
            with trio.move_on_after(quiet_s) as quiet:
                await self._changed.wait()
            if quiet.cancelled_caught:
                return


class Exchange:
    """One call of the app.

    Guarantees:
        * The client going away before the response is complete cancels the app at its next checkpoint.
        * ``http.disconnect`` is received only once the last ``send`` has returned: an app that takes it as its end, as
          quart-trio does, would otherwise be cancelled inside the protocol's clean-up and leave the connection open.
        * Once the response is complete, what the client still sends is dropped and blocks nobody.
    """

    def __init__(
        self,
        asgi_scope: Any,
        asgi_send: Callable[[Any], Awaitable[None]],
        *,
        config: ServerConfig,
        outlet: Outlet | None,
    ) -> None:
        self._asgi_scope = asgi_scope
        self._asgi_send = asgi_send
        self._send_timeout_s = config.send_timeout_s or math.inf
        self._proxies = config.proxies
        self._is_http = asgi_scope["type"] == "http"
        self._flow_controlled = asgi_scope["http_version"] == "2"
        self._cancel_scope = trio.CancelScope()
        self._messages: deque[Message] = deque()
        self._changed = Changes()
        self._complete = False
        self._sending_last = False
        self._gone = False
        self._is_settled = False
        """Whether the response has ended and all of it has left."""
        self._num_sends = 0
        self._status = 0
        self._request_id = "-"
        if outlet is not None and self._is_http:
            asgi_scope["extensions"][OUTLET] = _OwnOutlet(self, outlet)

    async def run(self, app: ASGIApp, census: Census, flush: Callable[[], Awaitable[None]]) -> None:
        """Call the app, and leave the connection in order whatever the app did."""
        started = trio.current_time()
        if self._is_http:
            census.enter()
            if self._messages and not self._messages[0]["more_body"]:
                self._asgi_scope["extensions"][WHOLE_BODY] = True
        try:
            await self._call(app)
        finally:
            self._complete = True
            self._changed.tell()
            if not self._is_settled:
                # Bounded, as a client that does not read must not hold up the end of the server.
                with trio.move_on_after(self._send_timeout_s, shield=True):
                    await self._asgi_send(None)
                    await flush()
            if self._is_http:
                census.leave()
                self._log(trio.current_time() - started)

    async def put(self, message: Message) -> None:
        """Take a message of the client's; waits while the app is behind, never once the response is complete."""
        if message["type"] == "http.disconnect":
            self._gone = True
            if not self._complete:
                self._cancel_scope.cancel()
        elif not self._complete:
            self._hold(message)
        self._changed.tell()
        while len(self._messages) >= _MAX_MESSAGES and not (self._complete or self._gone):
            await self._changed.wait()

    def _hold(self, message: Message) -> None:
        """Keep a message for the app. The end of a body of which a part is still here is said with that part."""
        if self._messages and self._is_http and not (message["body"] or message["more_body"]):
            self._messages[-1]["more_body"] = False
        else:
            self._messages.append(message)

    async def receive(self) -> Message:
        """The app's ``receive``."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._messages:
            if self._gone and not self._sending_last:
                return {"type": "http.disconnect"}
            await self._changed.wait()
        message = self._messages.popleft()
        self._changed.tell()
        return message

    async def send(self, message: Message) -> None:
        """The app's ``send``. A cancelled send may have put its bytes on their way; framing never breaks."""
        await self._checkpoint()
        if message["type"] == "http.response.start":
            self._note(message)
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._complete = self._sending_last = True
            self._messages.clear()
            self._changed.tell()
        try:
            await self._forward(message)
            self._is_settled = self._complete and not self._flow_controlled
        finally:
            self._sending_last = False
            self._changed.tell()

    @property
    def is_open(self) -> bool:
        """Whether the client is there and wants more of the response."""
        return not (self._complete or self._gone)

    async def _call(self, app: ASGIApp) -> None:
        """An app that raises ends its own request only: this is the one place that may catch everything."""
        try:
            with self._cancel_scope:
                await app(self._asgi_scope, self.receive, self.send)
        except BaseExceptionGroup as exc:
            _, faults = exc.split(trio.Cancelled)
            if not isinstance(faults, ExceptionGroup):
                raise
            self._blame(faults)
        except Exception as exc:  # noqa: BLE001
            self._blame(exc)

    def _blame(self, exc: Exception) -> None:
        logger.error("the app raised", exc_info=exc)
        self._status = self._status or 500

    async def _checkpoint(self) -> None:
        self._num_sends += 1
        if self._gone or self._num_sends % _SENDS_PER_TURN == 0:
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()

    async def _forward(self, message: Message) -> None:
        """Over HTTP/2 a client that opens no window blocks the stream and not the socket: the deadline is here."""
        if not self._flow_controlled:
            await self._asgi_send(message)
            return
        with trio.move_on_after(self._send_timeout_s) as deadline:
            await self._asgi_send(message)
        if deadline.cancelled_caught:
            self._cancel_scope.cancel()

    def _note(self, message: Message) -> None:
        self._status = message["status"]
        for name, value in message.get("headers", ()):
            if name == b"x-request-id":
                self._request_id = value.decode("latin-1")

    def _log(self, seconds: float) -> None:
        """The path as it came, percent-encoded: no control character gets into a line, no query into the log."""
        raw_path = self._asgi_scope["raw_path"]
        level = logging.DEBUG if raw_path in _QUIET_PATHS else logging.INFO
        if access_logger.isEnabledFor(level):
            scope, status = self._asgi_scope, self._status or _CLIENT_GONE
            peer, *_ = scope["client"] or (None,)
            client = self._proxies.client_of(peer, scope["headers"])
            line = (
                client,
                scope["method"],
                raw_path[:_MAX_LOGGED_PATH].decode("latin-1"),
                status,
                seconds * 1000,
                self._request_id,
            )
            access_logger.log(level, "%s %s %s %s %.1f ms %s", *line)


class _OwnOutlet:
    """The connection's outlet for as long as it is one exchange's: the next request's answer must not be touched."""

    def __init__(self, exchange: Exchange, outlet: Outlet) -> None:
        self._exchange = exchange
        self._outlet = outlet
        self.write_nowait = outlet.write_nowait

    @property
    def is_clear(self) -> bool:
        return self._exchange.is_open and self._outlet.is_clear


class Exchanges:
    """What hypercorn calls a task group: starts the ASGI calls of one connection."""

    def __init__(
        self,
        nursery: trio.Nursery,
        app: ASGIApp,
        *,
        census: Census,
        config: ServerConfig,
        flush: Callable[[], Awaitable[None]],
        outlet: Outlet | None,
    ) -> None:
        self._nursery = nursery
        self._app = app
        self._census = census
        self._config = config
        self._flush = flush
        self._outlet = outlet

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Any], Awaitable[None]]:
        """Start a call in a task of its own; returns what takes the client's messages."""
        exchange = Exchange(scope, send, config=self._config, outlet=self._outlet)
        self._nursery.start_soon(exchange.run, self._app, self._census, self._flush)
        return exchange.put

    def spawn(self, func: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self._nursery.start_soon(func, *args)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """The connection's own nursery waits for the tasks."""
