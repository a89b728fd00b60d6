"""Reads a request's body within the limits on its size, its time and its kind."""

import math
import re
from typing import Final

import trio
from quart import Request, g

from trioserve.core.extensions import WHOLE_BODY
from trioserve.errors import InvalidRequest
from trioserve.http.errors import BodyTimeout, BodyTooLarge, UnsupportedMediaType
from trioserve.settings import LimitSettings

_NUMBERS: Final = 16
"""That may be for each text, list or object that may: they cost as much less to read."""
_PART: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[{,]', re.DOTALL)
_COMMA: Final = b","[0]


async def read_json_body(request: Request, limits: LimitSettings) -> bytes:
    """The bytes of a body that should be JSON; those handed back are the first to be read again.

    Raises:
        UnsupportedMediaType: It says that it is something else; saying nothing is fine.
        BodyTooLarge, BodyTimeout: Names the limit.
        InvalidRequest: It holds more values than it may.
    """
    handed_back: bytes | None = g.pop("json_body", None)
    if handed_back is not None:
        return handed_back
    body = await _read(request, limits)
    check_values(body, limits.max_body_values)
    return body


def hand_back(body: bytes) -> None:
    """Leave ``body`` for the handler that this request is passed on to."""
    g.json_body = body


async def _read(request: Request, limits: LimitSettings) -> bytes:
    _check_media_type(request)
    if (request.content_length or 0) > limits.max_body_bytes:
        raise _too_large(limits)
    if WHOLE_BODY in (request.scope.get("extensions") or {}):
        whole = b"".join(
            [piece async for piece in request.body]
        )  # one, and no turn for others as by awaiting it
        if len(whole) > limits.max_body_bytes:
            raise _too_large(limits)
        return whole
    body = bytearray()
    with trio.move_on_after(limits.body_timeout_s or math.inf):
        async for piece in request.body:
            body += piece
            if len(body) > limits.max_body_bytes:
                raise _too_large(limits)
        return bytes(body)
    raise BodyTimeout(f"the body did not arrive within {limits.body_timeout_s:g} s")


def check_values(body: bytes, limit: int) -> None:
    """Refuse JSON of too many values before it is made objects of, which would hold everyone up for seconds.

    Args:
        limit: Texts, lists and objects that it may hold.

    Raises:
        InvalidRequest: Names the limit.
    """
    most_numbers = _NUMBERS * limit
    most_told = body.count(b'"') // 2 + body.count(b"[") + body.count(b"{")
    if most_told <= limit and body.count(b",") <= most_numbers:
        return  # even if all of them are no part of a text
    num_values = num_commas = 0
    for part in _PART.finditer(body):
        if body[part.start()] == _COMMA:
            num_commas += 1
        else:
            num_values += 1
        if num_values > limit:
            raise InvalidRequest(
                f"the body holds more than max_body_values = {limit} texts, lists and objects"
            )
        if num_commas > most_numbers:
            raise InvalidRequest(
                f"the body holds more than {most_numbers} values, {_NUMBERS} times max_body_values = {limit}"
            )


def _check_media_type(request: Request) -> None:
    if request.headers.get("content-type") == "application/json":
        return
    kind = request.mimetype
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    is_json = kind in {"", "application/json"} or (kind.startswith("application/") and kind.endswith("+json"))
    if not is_json or charset not in {"utf-8", "utf8", "us-ascii"}:
        given = request.headers.get("content-type", "")[:100]
        raise UnsupportedMediaType(f"content-type must be application/json in UTF-8, not {given!r}")


def _too_large(limits: LimitSettings) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body has more than {limits.max_body_bytes} bytes, the most that max_body_bytes allows"
    )
