"""Requests as every server reads them, or not at all.

h11 takes a bare LF for the end of a line, joins a line that is folded to the one before, and lets control characters
stand in values and a CR in what follows a chunk's size. A server in front that reads these otherwise sees other headers
than this one, or another end of the body.
"""

import re
from typing import Final

import h11
from h11._receivebuffer import ReceiveBuffer

from trioserve.server.target import is_method, origin_form
from trioserve.server.usual import HEADER_OVERHEAD_BYTES

_DAMAGE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BLANK: Final = re.compile(rb"\n\r?\n")
_CHUNK: Final = re.compile(rb"[0-9a-fA-F]{1,16}(?:;[\t -~\x80-\xff]*)?\r\n")
_VERSIONS: Final = frozenset({b"1.0", b"1.1"})


class StrictBuffer(ReceiveBuffer):
    """h11's buffer, whose lines end with CR LF and hold no other control character than a tab."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines up to a blank one, as h11 does; None while it is still to come.

        Raises:
            h11.LocalProtocolError: A line ends otherwise, is folded, or holds what no line may. h11 makes it the
                client's fault.
        """
        if not self._data.startswith(b"\r\n"):  # else there is none, and what follows is another request's
            blank = _BLANK.search(self._data, self._multiple_lines_search)
            is_damaged = blank is not None and _DAMAGE.search(self._data, 0, blank.end())
            if is_damaged or self._data.startswith(b"\n"):
                raise h11.LocalProtocolError("a line ends or goes on as it must not")
        return super().maybe_extract_lines()

    def maybe_extract_next_line(self) -> bytearray | None:
        """The line with the size of a chunk.

        Raises:
            h11.LocalProtocolError: It is none.
        """
        line = super().maybe_extract_next_line()
        if line is not None and _CHUNK.fullmatch(line) is None:
            raise h11.LocalProtocolError("the size of a chunk is none")
        return line


def read_strictly(connection: h11.Connection) -> None:
    """Have a connection that has not received anything read lines strictly."""
    connection._receive_buffer = StrictBuffer()  # noqa: SLF001 - h11 has no other way


def body_length(request: h11.Request) -> int | None:
    """Bytes of the body as the head tells them; None for one in chunks."""
    headers = dict(request.headers)  # h11 lets no two of those in that are read here
    return None if b"transfer-encoding" in headers else int(headers.get(b"content-length", b"0"))


def fault(request: h11.Request, *, max_header_bytes: int) -> int:
    """The status that refuses a request whose head h11 has read, or 0."""
    names = [name for name, _ in request.headers]
    is_old = request.http_version == b"1.0"
    if request.http_version not in _VERSIONS:
        return 505
    if b"transfer-encoding" in names and (b"content-length" in names or is_old):
        return 400
    target = origin_form(request.target, method=request.method)
    if target is None or not is_method(request.method):
        return 400
    num_bytes = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
    return 431 if num_bytes + HEADER_OVERHEAD_BYTES * len(names) > max_header_bytes else 0
