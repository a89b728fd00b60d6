"""Server-sent events, as bytes."""

from typing import Any, Final

import msgspec
from quart import Response

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"
"""A comment: clients skip it, proxies see that the stream lives."""

_HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_encode: Final = msgspec.json.Encoder().encode


def event(data: Any) -> bytes:
    """One event with ``data`` as JSON."""
    return b"data: %b\n\n" % _encode(data)


def response(events: Any) -> Response:
    """The answer that streams ``events``, an async generator of bytes."""
    return Response(events, content_type="text/event-stream; charset=utf-8", headers=_HEADERS)
