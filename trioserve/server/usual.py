"""The usual request, without what the unusual ones need.

Usual is a GET or a POST in HTTP/1.1 whose head has come in one piece and in the plainest form there is. ``read_head``
takes nothing else, and judges nothing: what it leaves goes to h11 as it came, so that one parser says what is wrong.
What it takes it reads as h11 would.
"""

import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from hypercorn.protocol.http_stream import ASGIHTTPState

Headers = list[tuple[bytes, bytes]]

_HEAD: Final = re.compile(
    rb"(GET|POST) (/[!-~]*+) HTTP/1\.1\r\n((?:[-!#$%&'*+.^_`|~0-9a-zA-Z]++:[\t -~\x80-\xff]*+\r\n)++)\r\n"
)
_ANSWER_LINES: Final = re.compile(rb"(?:[-!#$%&'*+.^_`|~0-9a-zA-Z]++: [^\x00\r\n\f\v]*+\r\n)*+")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_TELLING: Final = frozenset(
    {b"host", b"content-length", b"connection", b"transfer-encoding", b"expect", b"upgrade"}
)
"""Headers that say how a request is framed, or what becomes of its connection."""
HEADER_OVERHEAD_BYTES: Final = 32
"""What a header counts besides its text, as in HTTP/2: thousands of short ones cost more than their bytes."""
BODILESS: Final = frozenset({204, 304})


class UsualHead(NamedTuple):
    """What the head of a usual request says."""

    method: str
    target: bytes
    headers: Headers
    """Names in lower case, values without the space around them."""
    num_body_bytes: int
    """Of the body that comes behind it."""
    num_bytes: int
    """Of the head itself."""

    def scope(self) -> dict[str, Any]:
        """What ASGI says of a request; what it says of the connection is left to add."""
        path, _, query_string = self.target.partition(b"?")
        return {
            "type": "http",
            "http_version": "1.1",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": self.method,
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query_string,
            "headers": self.headers,
            "extensions": {},
        }


def read_head(data: bytes, *, max_header_bytes: int) -> UsualHead | None:
    """The usual head with which ``data`` begins; None where h11 has to look at it."""
    match = _HEAD.match(data)
    if match is None:
        return None
    method, target, block = match.groups()
    headers: Headers = []
    told: dict[bytes, bytes] = {}
    for line in block.splitlines():
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        headers.append((name, value))
        if name in _TELLING:
            if name in told:
                return None
            told[name] = value
    length = told.pop(b"content-length", b"0")
    is_kept = told.pop(b"connection", b"keep-alive").lower() == b"keep-alive"
    if not (is_kept and told.keys() == {b"host"} and _LENGTH.fullmatch(length)):
        return None
    if match.end() + len(headers) * HEADER_OVERHEAD_BYTES > max_header_bytes:
        return None
    return UsualHead(method.decode("ascii"), target, headers, int(length), match.end())


class UsualAnswer:
    """Frames the answer to a usual request: from ASGI's messages to bytes, sync and total.

    The head of an answer with a length goes out with the body, so that the client wakes once.
    """

    def __init__(self) -> None:
        self.state = ASGIHTTPState.REQUEST
        self.is_in_chunks = False
        """Whether a part of the body goes out as a chunk now."""
        self.closes = False
        """Whether the connection ends with the answer."""
        self._held_head = b""
        self._has_body = True
        self._num_left = 0
        """Bytes that the length has promised and that are still to come."""

    def begin(self, status: int, headers: Iterable[tuple[bytes, bytes]], *, must_close: bool) -> bytes:
        """Take the start; returns what goes out at once.

        Raises:
            ValueError: A header is none.
        """
        lines: list[bytes] = []
        length = None
        self.closes = must_close
        for name, value in headers:
            kind, value = name.lower(), value.strip()
            if kind == b"connection":
                self.closes = self.closes or b"close" in value.lower()
                continue
            if kind == b"transfer-encoding":
                continue
            if kind == b"content-length":
                length = value
            lines.append(b"%b: %b\r\n" % (name, value))
        self._has_body = status not in BODILESS
        self.is_in_chunks = length is None and self._has_body
        if self.is_in_chunks:
            lines.append(b"transfer-encoding: chunked\r\n")
        if self.closes:
            lines.append(b"connection: close\r\n")
        self._num_left = _length(length)
        head = b"HTTP/1.1 %d \r\n%b\r\n" % (status, _block(lines))
        self.state = ASGIHTTPState.RESPONSE
        if self.is_in_chunks:
            return head
        self._held_head = head
        return b""

    def part(self, data: bytes, *, more: bool) -> bytes:
        """Take a part of the body; returns what goes out.

        Raises:
            ValueError: The body is not as long as the head says.
        """
        framed = self._framed(data, more=more)
        if not more:
            self.state, self.is_in_chunks = ASGIHTTPState.CLOSED, False
        head, self._held_head = self._held_head, b""
        return head + framed

    def _framed(self, data: bytes, *, more: bool) -> bytes:
        if self.is_in_chunks:
            end = b"" if more else b"0\r\n\r\n"
            return chunk(data) + end if data else end
        if not self._has_body:
            return b""
        self._num_left -= len(data)
        if self._num_left < 0 or (self._num_left and not more):
            raise ValueError("the body is not as long as its head says")
        return data


def _length(value: bytes | None) -> int:
    if value is None:
        return 0
    if _LENGTH.fullmatch(value) is None:
        raise ValueError(f"content-length {value!r} among the headers of an answer is none")
    return int(value)


def _block(lines: list[bytes]) -> bytes:
    """The lines of an answer's head; a value with a line's end in it would be two of them."""
    block = b"".join(lines)
    if block.count(b"\n") != len(lines) or _ANSWER_LINES.fullmatch(block) is None:
        raise ValueError(f"the headers of an answer are none: {block!r}")
    return block


def chunk(data: bytes) -> bytes:
    """``data``, which is not empty, as a chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
