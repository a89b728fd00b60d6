"""A connection asks the app the same, and answers the same, however what came on it was cut."""

import re
from typing import Any

import trio
import trio.testing
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H2ProtocolAssumedError
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from tests.fuzz.source import Source
from trioserve.server.config import ServerConfig
from trioserve.server.exchange import Census, Exchanges
from trioserve.server.http1 import Http1Protocol
from trioserve.settings import Settings

_CONFIG = ServerConfig.build(Settings())
_REQUESTS = (
    b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"PUT /d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx",
    b"HEAD /e HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://y/f HTTP/1.1\r\nHost: x\r\nConnection: TE\r\n\r\n",
    b"POST /g HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nxy",
    b"GET /h HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /i HTTP/1.0\r\n\r\n",
    b"POST /j HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /k HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    (
        b"GET /m HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"nonsense\r\n\r\n",
    b"POST /l HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc",
)
SEEDS = tuple(
    bytes([2, first, second, 0, 2, 0, 20, 0, 30]) for first in range(len(_REQUESTS)) for second in (0, 1, 2)
)
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r]*\r\n")


def check(data: bytes) -> None:
    """Send some requests, changed a little, whole, cut and one by one."""
    source = Source(data)
    stream = b"".join(source.pick(_REQUESTS) for _ in range(source.byte() % 5))
    for _ in range(source.byte() % 3):
        at = source.number(len(stream))
        stream = stream[:at] + source.some(4) + stream[at + source.byte() % 3 :]
    pieces = source.cut(stream)
    whole = trio.run(_talk, [stream])
    assert trio.run(_talk, pieces) == whole
    if len(stream) < 150:
        assert trio.run(_talk, [bytes([byte]) for byte in stream]) == whole


async def _talk(pieces: list[bytes]) -> tuple[list[Any], list[bytes], bool]:
    """What the app was asked, the statuses that went out, and whether the connection has ended."""
    asked: list[Any] = []
    written = bytearray()
    has_ended = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            asked.append(scope["raw_path"])
            await send({"type": "websocket.close"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        asked.append((scope["method"], scope["raw_path"], scope["headers"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def take(event: Event) -> None:
        nonlocal has_ended
        if isinstance(event, RawData):
            written.extend(event.data)
        elif isinstance(event, Closed):
            has_ended = True

    async with trio.open_nursery() as nursery:
        protocol = _protocol(nursery, app, take)
        try:
            for piece in pieces:
                if piece and not has_ended:
                    await protocol.handle(RawData(piece))
                    await trio.testing.wait_all_tasks_blocked()
        except H2ProtocolAssumedError:
            asked.append("HTTP/2")
        await protocol.handle(Closed())
        nursery.cancel_scope.cancel()
    statuses = [status for status in _STATUS.findall(bytes(written)) if status != b"100"]
    # A websocket that is refused gets the one where data came with its handshake, the other where none did.
    return asked, [b"400" if status == b"403" else status for status in statuses], has_ended


def _protocol(nursery: trio.Nursery, app: Any, take: Any) -> Http1Protocol:
    async def flush() -> None:
        """Nothing is held back."""

    exchanges = Exchanges(nursery, app, census=Census(), config=_CONFIG, flush=flush, outlet=None)
    ends = ("127.0.0.1", 1), ("127.0.0.1", 2)
    context: Any = WorkerContext(None)
    arguments: Any = (app, _CONFIG, context, exchanges, ConnectionState({}), False, *ends, take)
    return Http1Protocol(*arguments, is_draining=lambda: False)
