"""One socket: reads, writes with a deadline, and closes without losing a reply.

Takes the place of hypercorn's ``TCPServer``, whose sends block in a shield without end when a client stops reading, and
whose closes answer unread bytes with a reset that may overtake the reply.
"""

import contextlib
import logging
import math
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H2ProtocolAssumedError
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from trioserve.server.config import ServerConfig
from trioserve.server.exchange import ASGIApp, Census, Exchanges
from trioserve.server.http1 import Http1Protocol
from trioserve.server.http2 import Http2Protocol
from trioserve.server.usual import chunk

logger = logging.getLogger("trioserve.server")

_MAX_RECV: Final = 64 * 1024
_FAREWELL_DELAY_S: Final = 0.1
"""Between the last answer on an HTTP/2 connection and its end, while the server closes."""
_TLS_RECORDS: Final = 64 * 1024
"""Bytes that one TLS send covers: its deadline is for so many."""


class Commons:
    """What all connections of one server share."""

    def __init__(self, app: ASGIApp, config: ServerConfig, is_draining: Callable[[], bool]) -> None:
        self.app = app
        self.config = config
        self.is_draining = is_draining
        """Whether HTTP/1.1 answers carry ``Connection: close``."""
        self.is_closing = False
        """Whether a connection closes as soon as it is idle."""
        self.census = Census()
        self.context = WorkerContext(config.max_requests)
        self.state: dict[str, Any] = {}
        """What the app's lifespan left for its requests."""
        self.connections: set[Connection] = set()


class Connection:
    """One client's connection, in the task that calls ``run``.

    Invariants:
        * Bytes that the protocol has framed are sent in their order or not at all: a cancelled send leaves them in
          ``_unsent``, and the next one sends them first.
        * ``_reading.deadline`` is the only timer: headers, keep-alive or lingering; infinite while a request runs.
    """

    def __init__(self, commons: Commons, sock: socket.socket, *, tls: ssl.SSLContext | None = None) -> None:
        self._commons = commons
        self._config = commons.config
        self._sock = sock
        self._transport = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._tls = None
        if tls is not None:
            self._tls = trio.SSLStream(self._transport, tls, server_side=True, https_compatible=True)
        self._protocol: Http1Protocol | Http2Protocol | None = None
        self._nursery: trio.Nursery | None = None
        self._addresses: tuple[tuple[str, int] | None, tuple[str, int] | None] = (None, None)
        self._reading = trio.CancelScope()
        self._unsent = bytearray()
        self._send_lock = trio.Lock()
        self._send_timeout_s = self._config.send_timeout_s or math.inf
        self.is_fresh = True
        """Whether no byte has come yet."""
        self._idle = True
        self._is_running = False
        """Whether a request runs."""
        self._closing = False
        self._lost = False
        commons.connections.add(self)

    async def run(self) -> None:
        """Serve the connection to its end. What goes wrong on it is logged and stays here."""
        try:
            if self._tls is not None:
                with trio.fail_after(self._config.ssl_handshake_timeout):
                    await self._tls.do_handshake()
            self._addresses = (
                parse_socket_addr(self._sock.family, self._sock.getpeername()),
                parse_socket_addr(self._sock.family, self._sock.getsockname()),
            )
            await self._serve()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, OSError):
            pass  # the client left before it said anything
        except Exception:
            logger.exception("a connection failed")
        finally:
            self._commons.connections.discard(self)
            self.cut()

    def send_nowait(self, data: bytes | bytearray) -> int:
        """Hand to the kernel what it takes now; returns how many bytes. Plain connections with nothing unsent only."""
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.cut()
            return len(data)

    @property
    def is_clear(self) -> bool:
        """As ``core.extensions.Outlet``, for the response that is under way. Plain HTTP/1.1 only."""
        protocol = self._protocol
        return (
            isinstance(protocol, Http1Protocol) and protocol.is_in_chunks and not (self._unsent or self._lost)
        )

    def write_nowait(self, data: bytes) -> None:
        """As ``core.extensions.Outlet``."""
        framed = chunk(data)
        num_sent = self.send_nowait(framed)
        if num_sent < len(framed):
            assert self._nursery is not None
            self._unsent += framed[num_sent:]
            self._nursery.start_soon(self._flush)

    def close_if_idle(self) -> None:
        """Close unless a request runs or has begun to arrive; then it closes when that is done."""
        if self._idle and not self._lost and not self._has_bytes():
            if self._nursery is not None and isinstance(self._protocol, Http2Protocol):
                self._nursery.start_soon(self._say_farewell, self._protocol)
            else:
                self.cut()

    def cut(self) -> None:
        """Close the socket now; requests that run on it are cancelled."""
        self._lost = True
        self._unsent.clear()
        self._transport.socket.close()
        self._reading.cancel()  # the reader may be waiting for the app and not for the socket

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._reading.deadline = trio.current_time() + self._config.keep_alive_timeout
            try:
                alpn = self._tls.selected_alpn_protocol() if self._tls is not None else None
                self._protocol = self._new_protocol(Http2Protocol if alpn == "h2" else Http1Protocol, nursery)
                await self._protocol.initiate()
                with self._reading:
                    await self._read()
            finally:
                self.cut()
            await self._protocol.handle(Closed())

    def _new_protocol(
        self, kind: type[Http1Protocol | Http2Protocol], nursery: trio.Nursery
    ) -> Http1Protocol | Http2Protocol:
        commons, (client, server) = self._commons, self._addresses
        flush = self._flush if self._tls is None else self._flush_tls
        exchanges = Exchanges(
            nursery,
            commons.app,
            census=commons.census,
            config=self._config,
            flush=flush,
            outlet=self if self._tls is None and issubclass(kind, Http1Protocol) else None,
        )
        arguments: Any = (
            commons.app,
            self._config,
            commons.context,
            exchanges,
            ConnectionState(commons.state.copy()),
            self._tls is not None,
            client,
            server,
            self._on_event,
        )
        if issubclass(kind, Http1Protocol):
            return kind(*arguments, is_draining=commons.is_draining)
        return kind(*arguments)

    async def _read(self) -> None:
        """Until the client is gone, the deadline passes or the protocol has closed and the client knows it."""
        receive = self._receive if self._tls is None else self._receive_tls
        num_dropped = 0
        while True:
            if isinstance(self._protocol, Http1Protocol):
                await self._protocol.wait_room()
            data = await receive()
            if not data:
                return
            if self._closing:
                num_dropped += len(data)
                if num_dropped > self._config.linger_bytes:
                    return
            else:
                await self._take(data)

    async def _receive(self) -> bytes:
        """What has come; empty when the client is gone. Waits first, as a client seldom has more for us at once."""
        while not self._lost:
            try:
                await trio.lowlevel.wait_readable(self._sock)
                return self._sock.recv(_MAX_RECV)
            except BlockingIOError:
                continue
            except (trio.ClosedResourceError, OSError):
                break
        return b""

    async def _receive_tls(self) -> bytes:
        assert self._tls is not None
        try:
            return bytes(await self._tls.receive_some(_MAX_RECV))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def _take(self, data: bytes) -> None:
        self.is_fresh = False
        is_first, self._idle = self._idle, False
        assert self._protocol is not None
        try:
            await self._protocol.handle(RawData(data))
        except H2ProtocolAssumedError as exc:
            await self._switch(exc.data)
        if is_first and not (self._idle or self._is_running):  # a head that is not whole
            self._reading.deadline = trio.current_time() + self._config.headers_timeout_s
        if isinstance(self._protocol, Http2Protocol) and self._protocol.idle:
            self._rest()

    async def _switch(self, data: bytes) -> None:
        """HTTP/2 without TLS, by prior knowledge."""
        assert self._nursery is not None
        self._protocol = protocol = self._new_protocol(Http2Protocol, self._nursery)
        assert isinstance(protocol, Http2Protocol)
        await protocol.initiate()
        await protocol.handle(RawData(data))

    async def _on_event(self, event: Event) -> None:
        """What the protocol has to say: bytes, the end, or whether a request runs."""
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Closed):
            self._begin_close()
        elif isinstance(event, Updated):
            if event.idle:
                self._rest()
            else:
                self._idle, self._is_running = False, True
                self._reading.deadline = math.inf

    def _rest(self) -> None:
        """No request runs: close, or wait for the next one."""
        self._idle, self._is_running = True, False
        self._reading.deadline = trio.current_time() + self._config.keep_alive_timeout
        if self._commons.is_closing:
            if self._nursery is not None and isinstance(self._protocol, Http2Protocol):
                self._nursery.start_soon(self._leave_soon)
            else:
                self._begin_close()

    async def _write(self, data: bytes) -> None:
        if self._lost:
            await trio.lowlevel.checkpoint()  # where the cancellation that is on its way arrives
            return
        if self._tls is not None:
            self._unsent += data
            await self._flush_tls()
            return
        if not self._unsent:
            num_sent = self.send_nowait(data)
            if num_sent == len(data):
                return
            data = data[num_sent:]
        self._unsent += data
        await self._flush()

    async def _flush(self) -> None:
        """Send what is unsent; a client that takes nothing for ``send_timeout_s`` is dropped."""
        if not self._unsent:
            return
        async with self._send_lock:
            while self._unsent:
                with trio.move_on_after(self._send_timeout_s) as patience:
                    try:
                        await trio.lowlevel.wait_writable(self._sock)
                    except (trio.ClosedResourceError, OSError):
                        self.cut()
                if patience.cancelled_caught:
                    self._drop()
                if self._unsent:
                    num_sent = self.send_nowait(self._unsent)
                    del self._unsent[:num_sent]

    async def _flush_tls(self) -> None:
        """Shielded, as a TLS stream cannot be used after a cancelled send, and bounded, as every shield here."""
        assert self._tls is not None
        if not self._unsent:
            return
        async with self._send_lock:
            while self._unsent:
                data = bytes(self._unsent[:_TLS_RECORDS])
                del self._unsent[:_TLS_RECORDS]
                with trio.move_on_after(self._send_timeout_s, shield=True) as patience:
                    try:
                        await self._tls.send_all(data)
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        self.cut()
                if patience.cancelled_caught:
                    self._drop()

    def _drop(self) -> None:
        logger.info("a client has read nothing for %g s: dropped", self._send_timeout_s)
        self.cut()

    def _begin_close(self) -> None:
        """Close once all is sent, going on to read for a while: unread bytes would make the kernel send a reset."""
        if not self._closing and not self._lost:
            assert self._nursery is not None
            self._closing = True
            self._nursery.start_soon(self._finish)

    async def _finish(self) -> None:
        await (self._flush() if self._tls is None else self._flush_tls())
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            await self._transport.send_eof()
        self._reading.deadline = trio.current_time() + self._config.linger_s

    async def _leave_soon(self) -> None:
        """A farewell at the heels of an answer makes httpx drop what it has not read of the answer yet."""
        await trio.sleep(_FAREWELL_DELAY_S)
        self.close_if_idle()

    async def _say_farewell(self, protocol: Http2Protocol) -> None:
        await protocol.farewell()
        self._begin_close()

    def _has_bytes(self) -> bool:
        """Whether the client has sent what is not read yet."""
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False
