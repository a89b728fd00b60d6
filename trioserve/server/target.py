"""What a request is for, in one form whatever form it came in: who judges a path and who routes it must read alike."""

import re
from typing import Final

_UNFIT: Final = re.compile(rb"[^!-~]")
_METHOD: Final = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Z]+")
_ABSOLUTE: Final = re.compile(rb"https?://[^/?#]+(?P<path>[/?].*)?", re.IGNORECASE | re.DOTALL)


def is_method(method: bytes) -> bool:
    """Whether it is one that everybody reads alike: hypercorn makes small letters capital, and others do not."""
    return _METHOD.fullmatch(method) is not None


def origin_form(target: bytes, *, method: bytes) -> bytes | None:
    """``target`` as a path with its query; None where it is none, is not printable ASCII, or asks for a tunnel.

    Proxies are sent ``http://host/path``, and servers have to understand it too; the host in it changes nothing here.
    """
    if _UNFIT.search(target) or method == b"CONNECT":
        return None
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        return None
    path = absolute["path"] or b"/"
    return path if path.startswith(b"/") else b"/" + path
