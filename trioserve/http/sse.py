"""Server-sent events, as bytes."""

import secrets
from collections.abc import Callable
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


class Stencil:
    """Events that differ in one text only, wherever it stands in them: all else is encoded once."""

    def __init__(self, make: Callable[[str], bytes]) -> None:
        """``make``: from a text to its event, which has the text as a whole JSON string and nothing else of it."""
        mark = secrets.token_hex(16)
        self._parts = make(mark).split(_encode(mark))

    def event(self, text: str) -> bytes:
        """What ``make`` would make of ``text``."""
        return _encode(text).join(self._parts)


def response(events: Any) -> Response:
    """The answer that streams ``events``, an async generator of bytes."""
    return Response(events, content_type="text/event-stream; charset=utf-8", headers=_HEADERS)
