"""``x-request-id``: the client's own where it is fit to be echoed and logged, else a new one."""

import re
import secrets
from typing import Final

from quart import Request, g

HEADER: Final = "x-request-id"
_FIT: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def request_id_of(request: Request) -> str:
    """The id of the request at hand; the same at every call."""
    known: str | None = g.get("request_id")
    if known is None:
        given = request.headers.get(HEADER, "")
        known = g.request_id = given if _FIT.fullmatch(given) else f"req_{secrets.token_hex(16)}"
    return known
