"""What every request passes before its handler, and every answer after it: keys, browsers' origins, the root path."""

from collections.abc import Iterator
from typing import Any, Final

from quart import Request, Response, g

from trioserve.http.cors import Cors
from trioserve.http.errors import InvalidApiKey, OriginNotAllowed
from trioserve.http.keys import Keyring

OPEN_ROUTES: Final = frozenset({"/live", "/ready"})
"""Answered to everyone: orchestrators send no keys."""


class Door:
    """Lets requests in, or not."""

    def __init__(self, keyring: Keyring, cors: Cors) -> None:
        self._keyring = keyring
        self._cors = cors

    def admit(self, request: Request) -> Response | None:
        """Let ``request``, the one at hand, pass; answers a browser's preflight, which carries no key.

        What counts is the route that the router has chosen, not how the path was spelt, and where it has found none a
        key is needed too. ``g.key_digest`` tells handlers whose request it is: empty where nobody needs a key.

        Raises:
            InvalidApiKey: A key is needed and this request has none.
            OriginNotAllowed: A preflight from an origin that is not allowed.
        """
        g.key_digest = ""
        if self._cors.is_preflight(request):
            if not self._cors.allows(request):
                raise OriginNotAllowed("this origin is not among allowed_origins")
            return Response(b"", status=204, headers=dict(self._cors.preflight_headers(request)))
        rule = request.url_rule
        if not self._keyring.is_locked or (rule is not None and rule.rule in OPEN_ROUTES):
            return None
        digest = self._keyring.find(_keys_of(request))
        if digest is None:
            raise InvalidApiKey(
                "missing or incorrect API key: send one as Authorization: Bearer KEY or as x-api-key: KEY"
            )
        g.key_digest = digest
        return None

    def mark(self, request: Request, response: Response) -> None:
        """Tell browsers whether the page that asked may read ``response``."""
        self._cors.mark(request, response)


def _keys_of(request: Request) -> Iterator[str]:
    """At most two: that of each header, the first where one is there twice."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield credentials.strip()
    key = request.headers.get("x-api-key")
    if key is not None:
        yield key.strip()


def under_root_path(scope: Any) -> Any:
    """``scope`` with a path that holds the root path, as ASGI has it, whether or not a proxy has stripped it."""
    root, path = scope["root_path"], scope["path"] or "/"
    if root and not path.startswith(root + "/"):
        path = root + ("/" if path == root else path)
    return {**scope, "path": path}
