"""Which pages in browsers may use this server: the CORS protocol of the Fetch standard, off by default."""

import re
from collections.abc import Mapping
from typing import Final

from quart import Request, Response

from trioserve.settings import AccessSettings

_MAX_AGE_S: Final = 600
"""How long a browser may remember what it was told."""
_EXPOSED: Final = ", ".join(
    (
        "x-request-id",
        "retry-after",
        "x-should-retry",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
    )
)
_HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~ ,-]{1,4096}")
_ALL: Final = ("", "*")


class Cors:
    """The policy of one server."""

    def __init__(self, settings: AccessSettings, *, methods: str) -> None:
        """``methods``: those of the routes, as a header lists them."""
        self._origins = frozenset(settings.allowed_origins)
        self._methods = methods if _is_all(settings.allowed_methods) else ", ".join(settings.allowed_methods)
        self._headers = None if _is_all(settings.allowed_headers) else ", ".join(settings.allowed_headers)
        self._with_credentials = settings.allow_credentials

    def is_preflight(self, request: Request) -> bool:
        """Whether a browser asks what a page may send. It never sends a key along."""
        return (
            bool(self._origins)
            and request.method == "OPTIONS"
            and "origin" in request.headers
            and "access-control-request-method" in request.headers
        )

    def allows(self, request: Request) -> bool:
        """Whether pages of the request's origin may read the answer."""
        origin = request.headers.get("origin", "").lower()
        return bool(origin) and ("*" in self._origins or origin in self._origins)

    def mark(self, request: Request, response: Response) -> None:
        """Say in ``response``, be it an error or a stream, whether the page that asked may read it."""
        if not self._origins:
            return
        response.vary.add("origin")
        if self.allows(request):
            origin = "*" if "*" in self._origins else request.headers["origin"]
            response.headers["access-control-allow-origin"] = origin
            response.headers["access-control-expose-headers"] = _EXPOSED
            if self._with_credentials:
                response.headers["access-control-allow-credentials"] = "true"

    def preflight_headers(self, request: Request) -> Mapping[str, str]:
        """What the answer to a preflight says besides.

        Header names are repeated as they were asked for: a ``*`` would leave ``authorization`` out.
        """
        asked = request.headers.get("access-control-request-headers", "")
        names = (
            self._headers if self._headers is not None else asked if _HEADER_NAMES.fullmatch(asked) else ""
        )
        return {
            "access-control-allow-methods": self._methods,
            "access-control-allow-headers": names,
            "access-control-max-age": str(_MAX_AGE_S),
            "vary": "access-control-request-method, access-control-request-headers",
        }


def _is_all(items: tuple[str, ...]) -> bool:
    return not items or "*" in items
