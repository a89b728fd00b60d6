"""hypercorn's HTTP/1.1, with its faults fixed at their cause.

* A reply sent before the request's body was read left h11 waiting for a body that nobody took, and the next request on
  the connection hung. Here a short rest is read and dropped; a long one is announced with ``Connection: close``.
* A request that arrives behind another parked the reader, so that a client that left went unseen. Here the reader goes
  on, up to a bound, and the next request is taken up when the first is done.
* ``Content-Length`` beside ``Transfer-Encoding`` is refused, as two servers in a row may read it differently; so are
  ``Transfer-Encoding`` in HTTP/1.0, versions that are neither 1.0 nor 1.1, lines that are not as they should be
  (``strict``), and methods in lower case, which hypercorn made others.
* What came behind a connection's last request made h11 fail, and that request with it. Here it is dropped.
* A target of ``http://host/path`` reached the app as it was, and one that is no path at all failed there. Here the app
  sees a path, or the request is refused.
* ``Upgrade: h2c`` led past proxies that judge paths. Here it is ignored, as it may be.

The usual request (``usual``) goes past h11 and hypercorn's stream, which would take most of what a small one costs.
While it runs, bytes behind it wait in h11, which takes them up when it is done.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from itertools import chain
from typing import Any, Final

import h11
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, Data, EndBody, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import (
    STREAM_ID,
    H2ProtocolAssumedError,
    H11Protocol,
    H11WSConnection,
)
from hypercorn.protocol.http_stream import ASGIHTTPState
from hypercorn.typing import H11SendableEvent
from hypercorn.utils import UnexpectedMessageError

from trioserve.server.config import ServerConfig
from trioserve.server.exchange import Changes, Exchanges, Message
from trioserve.server.strict import body_length, fault, read_strictly
from trioserve.server.target import origin_form
from trioserve.server.usual import BODILESS, UsualAnswer, chunk, read_head

_MAX_WAITING_BYTES: Final = 64 * 1024
"""Of requests that arrive behind the running one; then reading stops until it is done."""
_FAULTS: Final = {
    431: b"The request line and headers are too long.",
    501: b"The transfer encoding is not supported.",
    505: b"The version of HTTP is not supported.",
}


class Http1Protocol(H11Protocol):
    """One HTTP/1.1 connection, from bytes to ASGI calls and back."""

    config: ServerConfig
    task_group: Exchanges

    def __init__(self, *args: Any, is_draining: Callable[[], bool]) -> None:
        super().__init__(*args)
        assert isinstance(self.connection, h11.Connection)
        read_strictly(self.connection)
        config = self.config
        self._knows_usual = not (
            config.server_names or config.h11_pass_raw_headers or config.log.access_logger
        )
        """What hypercorn can be asked for besides is not done for usual requests."""
        self._usual: _UsualStream | None = None
        """The usual request that runs."""
        self._num_to_drop = 0
        """Bytes of an answered request's body that have not come yet."""
        self.is_in_chunks = False
        """Whether a response is under way whose body goes out in chunks: then ``chunk`` frames a part of it."""
        self._held_head = b""
        """Of a response whose body follows at once: both are sent as one, so that the client wakes once."""
        self._is_draining = is_draining
        self._takes_chunks = False
        self._pulling = False
        self._content_length: int | None = None
        self._num_body_bytes = 0
        self._resumed = Changes()

    async def handle(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._take(event.data)
        elif isinstance(event, Closed):
            if self._usual is not None:
                await self._usual.leave()
            await self._close_stream()

    async def wait_room(self) -> None:
        """Wait while too much has come behind the running request."""
        while self._has_whole_request() and len(self.connection.trailing_data[0]) >= _MAX_WAITING_BYTES:
            await self._resumed.wait()

    def _has_whole_request(self) -> bool:
        """Whether a request runs of which nothing is to come any more."""
        if self._usual is not None:
            return not self._usual.num_missing
        if self.stream is None or isinstance(self.connection, H11WSConnection):
            return False
        return self.connection.their_state is h11.DONE

    async def _take(self, data: bytes) -> None:
        """Take what has come: for the usual request that runs, as the next one, or for h11."""
        if self.connection.their_state is h11.MUST_CLOSE:  # they have asked for their last answer
            return
        if self._num_to_drop:
            data = await self._drop(data)
        if self._usual is None and self._can_begin_usual():
            data = await self._begin_usual(data)
        if self._usual is None:
            if data:
                self.connection.receive_data(data)
                await self._handle_events()
            return
        own, rest = data[: self._usual.num_missing], data[self._usual.num_missing :]
        if rest:
            self.connection.receive_data(rest)
        if own:
            await self._usual.take(own)

    async def _drop(self, data: bytes) -> bytes:
        """Drop what is left of the answered request; returns what is the next one's."""
        rest = data[self._num_to_drop :]
        self._num_to_drop -= len(data) - len(rest)
        if not (self._num_to_drop or rest):
            await self.send(Updated(idle=True))
        return rest

    def _can_begin_usual(self) -> bool:
        """Whether nothing runs and h11 holds nothing back."""
        connection = self.connection
        is_idle = connection.our_state is h11.IDLE and connection.their_state is h11.IDLE
        return self._knows_usual and is_idle and not connection.trailing_data[0]

    async def _begin_usual(self, data: bytes) -> bytes:
        """Start the app if ``data`` begins with a usual request; returns what comes behind its head."""
        head = read_head(data, max_header_bytes=self.config.max_header_bytes)
        if head is None:
            return data
        await self.send(Updated(idle=False))
        scope = head.scope() | {
            "scheme": "https" if self.ssl else "http",
            "root_path": self.config.root_path,
            "client": self.client,
            "server": self.server,
            "state": self.connection_state.copy(),
        }
        self._usual = usual = _UsualStream(self, head.num_body_bytes)
        usual.put = await self.task_group.spawn_app(self.app, self.config, scope, usual.send)
        self.keep_alive_requests += 1
        await self.context.mark_request()
        if not head.num_body_bytes:
            await usual.take(b"")
        return data[head.num_bytes :]

    def must_close_after_usual(self, num_missing: int) -> bool:
        """Whether the connection ends with an answer that begins when so much of its request's body is to come."""
        is_worn = self.keep_alive_requests >= self.config.keep_alive_max_requests
        return is_worn or self._is_draining() or num_missing > self.config.discard_bytes

    async def end_usual(self, *, closes: bool) -> None:
        """The answer has ended, or will never. The app hears of it last: it may take that as its own end."""
        usual, self._usual = self._usual, None
        assert usual is not None
        self.is_in_chunks, self._num_to_drop = False, usual.num_missing
        self._resumed.tell()
        if closes:
            await self.send(Closed())
        elif self.connection.trailing_data[0]:
            self.task_group.spawn(self._resume)
        else:
            await self.send(Updated(idle=True))
        await usual.leave()

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, Response) and event.status_code >= 200 and self._must_close():
            headers = [header for header in event.headers if header[0].lower() != b"connection"]
            event = replace(event, headers=[*headers, (b"connection", b"close")])
        if isinstance(event, Body) and self.is_in_chunks:
            await self.send(RawData(data=chunk(event.data)))
            return
        self.is_in_chunks = self._takes_chunks and _has_chunks(event)
        await super().stream_send(event)
        if isinstance(event, EndBody) and isinstance(self.connection, H11WSConnection):
            await self.send(
                Closed()
            )  # a refused handshake: of one with data behind it hypercorn says no more

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        try:
            data = self._held_head + self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        self._held_head = data if isinstance(event, h11.Response) and _has_length(event.headers) else b""
        if not self._held_head:
            await self.send(RawData(data=data))

    async def _handle_events(self) -> None:
        """Take what h11 has; one task at a time, and what comes meanwhile is taken by the one at it."""
        if self._pulling:
            return
        self._pulling = True
        try:
            while await self._handle_next():
                pass
        finally:
            self._pulling = False

    async def _handle_next(self) -> bool:
        """Take one event of h11's; False when it has no more for now."""
        if self.connection.they_are_waiting_for_100_continue:
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))
        if self.connection.their_state is h11.MUST_CLOSE:
            return False
        try:
            event = self.connection.next_event()
        except h11.RemoteProtocolError as exc:
            await self._refuse(exc.error_status_hint)
            return False
        if isinstance(event, h11.Request):
            return await self._begin(event)
        if isinstance(event, h11.Data):
            self._num_body_bytes += len(event.data)
            if self.stream is not None:
                await self.stream.handle(Body(stream_id=STREAM_ID, data=event.data))
        elif isinstance(event, h11.EndOfMessage):
            if self.stream is not None:
                await self.stream.handle(EndBody(stream_id=STREAM_ID))
            else:
                await self._recycle()
        elif isinstance(event, Data) and self.stream is not None:  # WebSocket bytes pass through
            await self.stream.handle(event)
        else:
            return False  # NEED_DATA, PAUSED or the end
        return True

    async def _begin(self, request: h11.Request) -> bool:
        await self.send(Updated(idle=False))
        if (request.method, request.target, request.http_version) == (b"PRI", b"*", b"2.0"):
            if self.keep_alive_requests:  # only a connection's first request may switch
                await self.send(Closed())
                return False
            raise H2ProtocolAssumedError(b"PRI * HTTP/2.0\r\n\r\n" + self.connection.trailing_data[0])
        status = fault(request, max_header_bytes=self.config.max_header_bytes)
        if status:
            await self._refuse(status)
            return False
        self._content_length, self._num_body_bytes = body_length(request), 0
        self._takes_chunks = request.http_version >= b"1.1" and request.method != b"HEAD"
        await self._create_stream(_as_origin_form(request))
        if (
            self.stream is not None and self.stream.closed
        ):  # answered by hypercorn: not one of our server names
            await self._maybe_recycle()
        return True

    def _must_close(self) -> bool:
        if self._is_draining():
            return True
        if self.connection.their_state is not h11.SEND_BODY:
            return False
        if self._content_length is None:
            return True
        return self._content_length - self._num_body_bytes > self.config.discard_bytes

    async def _refuse(self, status: int) -> None:
        """Answer what is no valid request, if an answer still fits, and end the connection."""
        await self._close_stream()
        if self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            text = _FAULTS.get(status, b"This is not a valid HTTP request.")
            body = (
                b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":null}}' % text
            )
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
                *self.config.response_headers("h11"),
            ]
            with contextlib.suppress(h11.LocalProtocolError):
                await self._send_h11_event(h11.Response(status_code=status, headers=headers))
                await self._send_h11_event(h11.Data(data=body))
                await self._send_h11_event(h11.EndOfMessage())
        await self.send(Closed())

    async def _maybe_recycle(self) -> None:
        """The response has ended. The stream hears of it last: the app may take that as its own end."""
        stream, self.stream = self.stream, None
        await self._recycle()
        if stream is not None:
            await stream.handle(StreamClosed(stream_id=STREAM_ID))

    async def _recycle(self) -> None:
        """Make ready for the next request, wait for the rest of this one's body, or close."""
        states = self.connection.our_state, self.connection.their_state
        self._resumed.tell()
        if states == (h11.DONE, h11.SEND_BODY):
            await self.send(Updated(idle=True))
            return
        if states == (h11.DONE, h11.DONE):
            with contextlib.suppress(h11.LocalProtocolError):
                self.connection.start_next_cycle()
                if self.connection.trailing_data[0]:
                    self.task_group.spawn(self._resume)
                else:
                    await self.send(Updated(idle=True))
                return
        await self.send(Closed())

    async def _resume(self) -> None:
        """Take up what came behind the request before."""
        await self._handle_events()
        if self.stream is None:
            await self.send(Updated(idle=True))


class _UsualStream:
    """The usual request that runs, in the place of hypercorn's stream."""

    put: Callable[[Message], Awaitable[None]]
    """Takes the client's messages."""

    def __init__(self, protocol: Http1Protocol, num_missing: int) -> None:
        self.num_missing = num_missing
        """Bytes of the body that are to come."""
        self._protocol = protocol
        self._answer = UsualAnswer()
        self._has_left = False

    async def take(self, data: bytes) -> None:
        """A part of the body, or the end of an empty one."""
        self.num_missing -= len(data)
        await self.put({"type": "http.request", "body": data, "more_body": self.num_missing > 0})

    async def leave(self) -> None:
        """The client is gone, or has its answer."""
        if not self._has_left:
            self._has_left = True
            await self.put({"type": "http.disconnect"})

    async def send(self, message: Message | None) -> None:
        """The app's messages, None after the last."""
        if message is not None:
            await self._write(self._framed(message))
            if self._answer.state is ASGIHTTPState.CLOSED and not self._has_left:
                await self._protocol.end_usual(closes=self._answer.closes)
        elif not self._has_left:
            if self._answer.state is ASGIHTTPState.REQUEST:
                await self._write(self._begin(500, [(b"content-length", b"0")], must_close=True))
                await self._write(self._answer.part(b"", more=False))
            await self._protocol.end_usual(closes=True)

    def _framed(self, message: Message) -> bytes:
        kind, state = message["type"], self._answer.state
        if kind == "http.response.start" and state is ASGIHTTPState.REQUEST:
            must_close = self._protocol.must_close_after_usual(self.num_missing)
            return self._begin(int(message["status"]), message.get("headers", ()), must_close=must_close)
        if kind == "http.response.body" and state is ASGIHTTPState.RESPONSE:
            return self._answer.part(bytes(message.get("body", b"")), more=message.get("more_body", False))
        raise UnexpectedMessageError(state, kind)

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]], *, must_close: bool) -> bytes:
        ours = self._protocol.config.response_headers("h11")
        return self._answer.begin(status, chain(headers, ours), must_close=must_close)

    async def _write(self, data: bytes) -> None:
        self._protocol.is_in_chunks = self._answer.is_in_chunks
        if data:
            await self._protocol.send(RawData(data=data))


def _has_chunks(event: StreamEvent) -> bool:
    """Whether it begins a response whose body h11 sends in chunks, to a client that takes them."""
    if not isinstance(event, Response) or event.status_code < 200 or event.status_code in BODILESS:
        return False
    return not _has_length(event.headers)


def _has_length(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() == b"content-length" for name, _ in headers)


def _as_origin_form(request: h11.Request) -> h11.Request:
    target = origin_form(request.target, method=request.method)
    if target is None or target == request.target:
        return request
    return h11.Request(
        method=request.method, target=target, headers=request.headers, http_version=request.http_version
    )
