"""hypercorn's HTTP/2, with its faults fixed at their cause.

* Data for a stream that has been answered already, such as the body of a request refused by its headers, raised a
  KeyError that ended the connection and every other stream on it. Here it is acknowledged and dropped.
* A client that opened no window let the response pile up in memory. Here the app waits, and is cancelled in the end.
* A client that left with its window full held the end of its answer up until a deadline. Here that ends with it.
* Priorities of a thousand streams, or one of a stream that has ended, ended the connection. Here they are passed over.
* A response that its app left unfinished kept the client waiting for ever. Here the stream is reset.
* A client may open streams and reset them without end, each at the price of a request that it need not wait for. Here
  the connection ends when it has reset many more than it has let be answered.
* A method or path outside ASCII, and a CONNECT without a path, ended the connection; a method in small letters became
  another. Here the stream is reset.
"""

import contextlib
from typing import Final

import h2.errors
import h2.events
import h2.exceptions
from hypercorn.events import Closed, Event
from hypercorn.protocol.events import EndBody, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import BUFFER_HIGH_WATER, BufferCompleteError, H2Protocol, StreamBuffer
from priority.priority import PriorityError

from trioserve.server.target import is_method, origin_form

_MAX_RESETS: Final = 200
"""Streams that a client may have reset beyond those that were answered."""


class Http2Protocol(H2Protocol):
    """One HTTP/2 connection, from bytes to ASGI calls and back."""

    _num_resets = 0
    """By the client, less what was answered since."""

    async def handle(self, event: Event) -> None:
        await super().handle(event)
        if isinstance(event, Closed):
            for buffer in list(self.stream_buffers.values()):  # whoever waits for a window waits in vain
                await buffer.close()

    async def farewell(self) -> None:
        """Tell the client to open no more streams here; only while none is open, as it ends those too."""
        self.connection.close_connection()
        await self._flush()

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, StreamClosed):
            buffer = self.stream_buffers.get(event.stream_id)
            if buffer is not None and not buffer.complete:
                await buffer.close()
                await self._reset(event.stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        if isinstance(event, EndBody):
            self._num_resets = max(0, self._num_resets - 1)
        await super().stream_send(event)

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        assert request.stream_id is not None
        pseudo = {name: value for name, value in request.headers or () if name.startswith(b":")}
        method, path = pseudo[b":method"], pseudo.get(b":path", b"")
        # To WebSocket (RFC 8441) CONNECT means something else than a tunnel.
        is_fit = path.startswith(b"/") if b":protocol" in pseudo else origin_form(path, method=method) == path
        if not (is_method(method) and path.isascii() and is_fit):
            await self._reset(request.stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)
            return
        await super()._create_stream(request)
        self.stream_buffers[request.stream_id] = _BoundedBuffer(self.context.event_class)

    async def _reset(self, stream_id: int, code: h2.errors.ErrorCodes) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):  # the client has reset it before
            self.connection.reset_stream(stream_id, code)
            await self._flush()

    async def _leave_out(self, event: h2.events.Event) -> None:
        """The tree of priorities has no place for the stream of ``event``, or does not know it any more."""
        if isinstance(event, h2.events.RequestReceived) and event.stream_id is not None:
            self.streams.pop(event.stream_id, None)
            self.stream_buffers.pop(event.stream_id, None)
            await self._reset(event.stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                await self._flush()
                continue
            if isinstance(event, h2.events.StreamReset):
                self._num_resets += 1
            if self._num_resets > _MAX_RESETS:
                self.connection.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                await self._flush()
                await self.send(Closed())
                return
            try:
                await super()._handle_events([event])
            except PriorityError:
                await self._leave_out(event)
        await self._flush()


class _BoundedBuffer(StreamBuffer):
    """Data of one stream that waits for the client's window."""

    async def push(self, data: bytes) -> None:
        """Take ``data``; returns once less than the high water mark waits."""
        if self._complete:
            raise BufferCompleteError
        self.buffer.extend(data)
        await self._is_empty.clear()
        while len(self.buffer) >= BUFFER_HIGH_WATER and not self._complete:
            await self._paused.clear()
            await self._paused.wait()
