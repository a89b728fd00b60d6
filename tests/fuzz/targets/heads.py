"""A request over HTTP/1.1 is read alike however it is cut, and by the pattern for usual requests as by h11."""

# ruff: noqa: E501  # many words stand on few lines

import re
from typing import Any

import h11

from tests.fuzz.source import Source
from trioserve.server.strict import body_length, fault, read_strictly
from trioserve.server.usual import read_head

_LIMIT = 32 * 1024
_WORDS = (
    *("GET ", "POST ", " HTTP/1.1\r\n", " HTTP/1.0\r\n", "Host: x\r\n", "\r\n", "\r\n\r\n", "/", "/a?b=%20", "http://x/"),
    *("Content-Length: 3\r\n", "Content-Length: ", "Transfer-Encoding: chunked\r\n", "Connection: close\r\n", "Connection: "),
    *("abc", "3\r\nabc\r\n", "0\r\n\r\n", "keep-alive", "Expect: 100-continue\r\n", "A: b\r\n", ": ", "é", "\n", "\r", "\0", "\t"),
)  # fmt: skip
SEEDS = (
    b"\0GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\0POST /v1/x?y HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabc",
    b"\0POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nA: b\r\n\r\n",
    b"\0GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"\0GET / HTTP/1.0\r\n\r\n",
    b"\0PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\1\x28\x80\x87\x82\x84\x85",
    b"\1\x28\x81\x87\x82\x84\x8a\x85\x90",
)
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def check(data: bytes) -> None:
    """Read the same bytes whole, cut, one by one, and by the pattern."""
    source = Source(data)
    is_made = source.flag()
    places = Source(source.some(20))
    stream = source.text(_WORDS, 60).encode("latin-1", "replace") if is_made else source.rest()
    whole = read([stream])
    assert read(places.cut(stream)) == whole
    if len(stream) < 300:
        assert read([stream[at : at + 1] for at in range(len(stream))]) == whole
    usual = read_head(stream, max_header_bytes=_LIMIT)
    if usual is not None:
        assert not _BARE.search(stream, 0, usual.num_bytes)
        method, target, headers, length, *_ = whole[0]
        assert (method.decode(), target, headers, length) == usual[:4]


def read(pieces: list[bytes]) -> list[tuple[Any, ...]]:
    """Every request of a connection up to the first that is refused, each with as much of its body as there is."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_LIMIT)
    read_strictly(connection)
    found: list[list[Any]] = []
    for piece in pieces:
        if connection.their_state is h11.MUST_CLOSE or not piece:
            continue
        connection.receive_data(piece)
        if not _take(connection, found):
            break
    return [tuple(each) for each in found]


def _take(connection: h11.Connection, found: list[list[Any]]) -> bool:
    """All events that there are; False once something is refused."""
    while connection.their_state is not h11.MUST_CLOSE:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            found.append(["refused"])
            return False
        match event:
            case h11.Request():
                if status := fault(event, max_header_bytes=_LIMIT):
                    found.append(["refused", status])
                    return False
                found.append(
                    [event.method, event.target, list(event.headers), body_length(event), b"", "unfinished"]
                )
            case h11.Data():
                found[-1][4] += bytes(event.data)
            case h11.EndOfMessage():
                found[-1][5] = "whole"
                _answer(connection)
            case _:
                return True
    return True


def _answer(connection: h11.Connection) -> None:
    connection.send(h11.Response(status_code=204, headers=[]))
    connection.send(h11.EndOfMessage())
    if connection.their_state is h11.DONE and connection.our_state is h11.DONE:
        connection.start_next_cycle()
