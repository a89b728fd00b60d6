"""hypercorn's HTTP/1.1, with its faults fixed at their cause.

* A reply sent before the request's body was read left h11 waiting for a body that nobody took, and the next request on
  the connection hung. Here a short rest is read and dropped; a long one is announced with ``Connection: close``.
* A request that arrives behind another parked the reader, so that a client that left went unseen. Here the reader goes
  on, up to a bound, and the next request is taken up when the first is done.
* ``Content-Length`` beside ``Transfer-Encoding`` is refused, as two servers in a row may read it differently; so is
  ``Transfer-Encoding`` in HTTP/1.0.
* A target of ``http://host/path`` reached the app as it was, and one that is no path at all failed there. Here the app
  sees a path, or the request is refused.
* ``Upgrade: h2c`` led past proxies that judge paths. Here it is ignored, as it may be.
"""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import h11
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, Data, EndBody, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import (
    STREAM_ID,
    H2ProtocolAssumedError,
    H11Protocol,
    H11WSConnection,
)
from hypercorn.typing import H11SendableEvent

from trioserve.server.config import ServerConfig
from trioserve.server.target import origin_form

_MAX_WAITING_BYTES: Final = 64 * 1024
"""Of requests that arrive behind the running one; then reading stops until it is done."""
_HEADER_OVERHEAD_BYTES: Final = 32
"""What a header counts besides its text, as in HTTP/2: thousands of short ones cost more than their bytes."""
_BODILESS: Final = frozenset({204, 304})
_FAULTS: Final = {
    431: b"The request line and headers are too long.",
    501: b"The transfer encoding is not supported.",
}


class Http1Protocol(H11Protocol):
    """One HTTP/1.1 connection, from bytes to ASGI calls and back."""

    config: ServerConfig

    def __init__(self, *args: Any, is_draining: Callable[[], bool]) -> None:
        super().__init__(*args)
        self.is_in_chunks = False
        """Whether a response is under way whose body goes out in chunks: then ``chunk`` frames a part of it."""
        self._held_head = b""
        """Of a response whose body follows at once: both are sent as one, so that the client wakes once."""
        self._is_draining = is_draining
        self._takes_chunks = False
        self._pulling = False
        self._content_length: int | None = None
        self._num_body_bytes = 0
        self._resumed = trio.Event()

    async def handle(self, event: Event) -> None:
        if isinstance(event, RawData):
            self.connection.receive_data(event.data)
            await self._handle_events()
        elif isinstance(event, Closed):
            await self._close_stream()

    async def wait_room(self) -> None:
        """Wait while too much has come behind the running request."""
        while self.stream is not None and not isinstance(self.connection, H11WSConnection):
            if self.connection.their_state is not h11.DONE:
                return
            if len(self.connection.trailing_data[0]) < _MAX_WAITING_BYTES:
                return
            await self._resumed.wait()

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
            raise H2ProtocolAssumedError(b"PRI * HTTP/2.0\r\n\r\n" + self.connection.trailing_data[0])
        fault = self._fault(request)
        if fault:
            await self._refuse(fault)
            return False
        self._takes_chunks = request.http_version >= b"1.1" and request.method != b"HEAD"
        await self._create_stream(_as_origin_form(request))
        if (
            self.stream is not None and self.stream.closed
        ):  # answered by hypercorn: not one of our server names
            await self._maybe_recycle()
        return True

    def _fault(self, request: h11.Request) -> int:
        """The status that refuses this request, or 0."""
        self._content_length, self._num_body_bytes = 0, 0
        num_bytes, has_length = len(request.target), False
        for name, value in request.headers:
            num_bytes += len(name) + len(value) + _HEADER_OVERHEAD_BYTES
            if name == b"content-length":
                has_length, self._content_length = True, int(value)
            elif name == b"transfer-encoding":
                self._content_length = None
        if self._content_length is None and (has_length or request.http_version < b"1.1"):
            return 400
        if origin_form(request.target, method=request.method) is None:
            return 400
        return 431 if num_bytes > self.config.max_header_bytes else 0

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
        self._resumed.set()
        self._resumed = trio.Event()
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
        """Take up what came behind the request before. Only a connection's first request may switch to HTTP/2."""
        try:
            await self._handle_events()
            if self.stream is None:
                await self.send(Updated(idle=True))
        except H2ProtocolAssumedError:
            await self.send(Closed())


def chunk(data: bytes) -> bytes:
    """``data``, which is not empty, as a chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _has_chunks(event: StreamEvent) -> bool:
    """Whether it begins a response whose body h11 sends in chunks, to a client that takes them."""
    if not isinstance(event, Response) or event.status_code < 200 or event.status_code in _BODILESS:
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
