"""Every answer that is an error: the only place that knows status codes, and that catches whatever is raised."""

import logging
import math
import traceback
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Final

import msgspec
from quart import Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from trioserve.errors import (
    CompletionNotFound,
    Draining,
    EngineError,
    ModelNotFound,
    NotReady,
    Overloaded,
    RateLimited,
    RequestError,
    RequestTimeout,
    TooManySessions,
    TrioserveError,
    TryAgain,
    Unavailable,
)
from trioserve.http import sse
from trioserve.http.request_id import request_id_of

log = logging.getLogger(__name__)

_MAX_LOGGED_LINE_CHARS: Final = 300


class BodyTooLarge(RequestError):
    """The body is longer than ``max_body_bytes``; 413."""

    code = "body_too_large"


class UnsupportedMediaType(RequestError):
    """The body says that it is something else than JSON; 415."""

    code = "unsupported_media_type"


class BodyTimeout(RequestTimeout):
    """The body did not arrive within ``body_timeout_s``; 408."""


class InvalidApiKey(RequestError):
    """The request needs a key and has none that is right; 401."""

    code = "invalid_api_key"


class OriginNotAllowed(RequestError):
    """A browser asks for a page that may not use this server; 403."""

    code = "origin_not_allowed"


class Failure(msgspec.Struct, frozen=True):
    """``error`` of an answer; all four fields are always there."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """What OpenAI's clients read of an error."""

    error: Failure


_STATUS: Final[tuple[tuple[type[TrioserveError], int, str, str | None], ...]] = (
    # the first that fits: class, status, type, code where the exception has none of its own
    (InvalidApiKey, 401, "invalid_request_error", None),
    (OriginNotAllowed, 403, "invalid_request_error", None),
    (ModelNotFound, 404, "invalid_request_error", None),
    (CompletionNotFound, 404, "invalid_request_error", None),
    (BodyTooLarge, 413, "invalid_request_error", None),
    (UnsupportedMediaType, 415, "invalid_request_error", None),
    (RequestError, 400, "invalid_request_error", None),
    (TooManySessions, 429, "rate_limit_error", "too_many_sessions"),
    (RateLimited, 429, "rate_limit_error", "rate_limit_exceeded"),
    (Overloaded, 429, "rate_limit_error", "queue_full"),
    (NotReady, 503, "server_error", "not_ready"),
    (Draining, 503, "server_error", "draining"),
    (Unavailable, 503, "server_error", "unavailable"),
    (RequestTimeout, 408, "timeout_error", "request_timeout"),
    (EngineError, 503, "server_error", "engine_error"),
)


def describe(exc: Exception, request_id: str) -> tuple[int, Failure]:
    """Status and body that ``exc`` deserves; what nobody foresaw is logged and told as little of as can be."""
    for kind, status, type_, code in _STATUS:
        if isinstance(exc, kind):
            param = exc.param if isinstance(exc, RequestError) else None
            own_code = exc.code if isinstance(exc, RequestError) else None
            return status, Failure(str(exc), type_, param, own_code or code)
    if isinstance(exc, HTTPException) and exc.code is not None and exc.code < 500:
        return exc.code, _failure_of_http(exc)
    _log_unforeseen(exc, request_id)
    return 500, Failure("the server failed to answer this request", "server_error", None, "internal_error")


async def on_error(exc: Exception) -> Response:
    """Quart's handler for everything that a request raised."""
    status, failure = describe(exc, request_id_of(request))
    response = Response(
        msgspec.json.encode(ErrorBody(failure)), status=status, content_type="application/json"
    )
    response.headers.update(_headers(exc, status))
    return response


async def guarded(
    events: AsyncGenerator[bytes, None],
    request_id: str,
    *,
    tell: Callable[[ErrorBody], bytes] = sse.event,
) -> AsyncGenerator[bytes, None]:
    """``events``, ended by what ``tell`` makes of the error should they fail: the status was sent already.

    The request is over for Quart by then, and its context gone.
    """
    try:
        async with aclosing(events):
            async for event in events:
                yield event
    except Exception as exc:  # noqa: BLE001  # logged, and told to the client
        _, failure = describe(exc, request_id)
        yield tell(ErrorBody(failure))


def _headers(exc: Exception, status: int) -> Mapping[str, str]:
    if isinstance(exc, TryAgain):
        return {"retry-after": str(max(1, math.ceil(exc.retry_after_s))), "x-should-retry": "true"}
    if status == 503:
        return {"retry-after": "1", "x-should-retry": "true"}
    if isinstance(exc, MethodNotAllowed):
        return {"allow": ", ".join(sorted(exc.valid_methods or ()))}
    if isinstance(exc, InvalidApiKey):
        return {"www-authenticate": "Bearer"}
    if isinstance(exc, RequestTimeout):
        return {"x-should-retry": "false"}
    return {}


def _failure_of_http(exc: HTTPException) -> Failure:
    """What the router found wrong."""
    message, code = exc.description or exc.name, exc.name.lower().replace(" ", "_")
    if isinstance(exc, NotFound):
        message = f"there is no {request.path[:200]} here"
    elif isinstance(exc, MethodNotAllowed):
        message = (
            f"{request.path[:200]} takes {', '.join(sorted(exc.valid_methods or ()))}, not {request.method}"
        )
    return Failure(message, "invalid_request_error", None, code)


def _log_unforeseen(exc: Exception, request_id: str) -> None:
    """A traceback shows code, no variables; its lines are cut, should a message quote what the client sent."""
    lines = "".join(traceback.format_exception(exc)).splitlines()
    text = "\n".join(line[:_MAX_LOGGED_LINE_CHARS] for line in lines)
    log.error("request %s failed\n%s", request_id, text)
