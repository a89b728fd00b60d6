"""Frames of HTTP/2 in any order end their stream or the connection, and leave no call of the app behind."""

import struct
from typing import Any

import hpack
import trio
import trio.testing
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from tests.fuzz.source import Source
from trioserve.server.config import ServerConfig
from trioserve.server.exchange import Census, Exchanges
from trioserve.server.http2 import Http2Protocol
from trioserve.settings import Settings

_CONFIG = ServerConfig.build(Settings())
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_METHODS = (b"GET", b"POST", b"CONNECT", b"HEAD", b"OPTIONS", b"get")
_PATHS = (b"/a", b"/", b"*", b"x", b"/%00", b"http://x/")
_OTHERS = (
    (b"content-length", b"3"),
    (b"te", b"trailers"),
    (b"host", b"y"),
    (b":protocol", b"websocket"),
    (b"a", b"b"),
)
_STREAMS = (1, 3, 5, 7, 0, 2, 1 << 30)
_NUMBERS = (0, 1, 3, 100, 16384, (1 << 31) - 1, (1 << 32) - 1)
_DATA, _HEADERS, _PRIORITY, _RESET, _SETTINGS, _WINDOW = 0, 1, 2, 3, 4, 8
_END_STREAM, _END_HEADERS, _HAS_PRIORITY = 1, 4, 32
SEEDS = (
    bytes([2, 0, 0, 0, 0, 5, 0, 1, 0, 1, 0, 5]),
    bytes([3, 0, 0, 1, 0, 4, 1, 0, 3, 97, 98, 99, 2, 0, 4, 3]),
    bytes([4, 0, 0, 3, 0, 5, 2, 0, 0, 1, 3, 2, 4, 0, 1, 2, 5, 1, 1, 6]),
    bytes([6, *range(7, 90, 3)]),
    bytes([12, *range(250, 100, -7)]),
)


def check(data: bytes) -> None:
    """Send some frames, cut anywhere."""
    source = Source(data)
    encoder = hpack.Encoder()
    count = source.byte() % 16
    stream = _PREFACE + _frame(_SETTINGS, 0, 0, b"")
    stream += b"".join(_drawn(source, encoder) for _ in range(count))
    trio.run(_talk, source.cut(stream))


def _drawn(source: Source, encoder: hpack.Encoder) -> bytes:
    kind, stream_id = source.byte() % 8, source.pick(_STREAMS)
    match kind:
        case 0 | 1 | 2:
            return _request(source, encoder, stream_id)
        case 3:
            return _frame(_DATA, source.byte() & 9, stream_id, source.some(20))
        case 4:
            return _frame(_RESET, 0, stream_id, struct.pack(">I", source.pick(_NUMBERS)))
        case 5:
            return _frame(_PRIORITY, 0, stream_id, struct.pack(">IB", source.pick(_NUMBERS), source.byte()))
        case 6:
            return _frame(_WINDOW, 0, stream_id, struct.pack(">I", source.pick(_NUMBERS)))
        case _:
            if source.flag():
                value = struct.pack(">HI", source.byte() % 9, source.pick(_NUMBERS))
                return _frame(_SETTINGS, 0, 0, value)
            return _frame(source.byte() % 12, source.byte(), stream_id, source.some(16))


def _request(source: Source, encoder: hpack.Encoder, stream_id: int) -> bytes:
    headers = [(b":method", source.pick(_METHODS)), (b":path", source.pick(_PATHS))]
    headers += [(b":authority", b"x"), (b":scheme", b"http")]
    headers += [source.pick(_OTHERS) for _ in range(source.byte() % 3)]
    flags = source.byte() & (_END_STREAM | _HAS_PRIORITY) | _END_HEADERS
    payload = encoder.encode(headers)
    if flags & _HAS_PRIORITY:
        payload = struct.pack(">IB", source.pick(_NUMBERS), source.byte()) + payload
    return _frame(_HEADERS, flags, stream_id, payload)


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream_id) + payload


async def _app(scope: Any, receive: Any, send: Any) -> None:
    message = {"more_body": True}
    while message.get("more_body"):
        message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x" * 300, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _talk(pieces: list[bytes]) -> None:
    has_ended, census = False, Census()

    async def take(event: Event) -> None:
        nonlocal has_ended
        has_ended = has_ended or isinstance(event, Closed)

    async def flush() -> None:
        """Nothing is held back."""

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            exchanges = Exchanges(nursery, _app, census=census, config=_CONFIG, flush=flush, outlet=None)
            ends = ("127.0.0.1", 1), ("127.0.0.1", 2)
            context: Any = WorkerContext(None)
            arguments: Any = (_app, _CONFIG, context, exchanges, ConnectionState({}), False, *ends, take)
            protocol = Http2Protocol(*arguments)
            await protocol.initiate()
            for piece in pieces:
                if piece and not has_ended:
                    await protocol.handle(RawData(piece))
                    await trio.testing.wait_all_tasks_blocked()
            await protocol.handle(Closed())
            await trio.testing.wait_all_tasks_blocked()
            assert census.num_running == 0
