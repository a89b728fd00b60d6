"""What two servers in a row could read differently is refused, or read in the one way that there is.

Behind each request comes another one, which nobody must hear of unless the first one was read to its end.
"""

import h2.events
import pytest
import trio

from tests.server.apps import TinyApp
from tests.server.h2_client import H2Client, ended
from tests.server.serving import Client, serving

SNEAK = b"GET /pid HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED, LENGTH, END = b"Transfer-Encoding: chunked", b"Content-Length: 3", b"0\r\n\r\n"


class Witness(TinyApp):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, scope: dict[str, str], receive: object, send: object) -> None:
        if scope["type"] != "lifespan":
            self.asked.append((scope["method"], scope["path"]))
        await super().__call__(scope, receive, send)


def post(*lines: bytes, body: bytes) -> bytes:
    return b"\r\n".join([b"POST /echo HTTP/1.1", b"Host: x", *lines, b"", b""]) + body


def get(*lines: bytes, start: bytes = b"GET /hello HTTP/1.1") -> bytes:
    return b"\r\n".join([start, b"Host: x", *lines, b"", b""])


def in_chunks(body: bytes) -> bytes:
    return post(CHUNKED, body=body)


REFUSED: dict[str, tuple[bytes, int]] = {
    # --- two framings, or one that is none
    "length, then chunks": (post(LENGTH, CHUNKED, body=END), 400),
    "chunks, then length": (post(CHUNKED, LENGTH, body=END), 400),
    "chunks, something else, then no length": (post(CHUNKED, b"A: b", b"content-length: 0", body=END), 400),
    "chunks before a comma": (post(CHUNKED + b",", body=END), 501),
    "chunks behind a comma": (post(b"Transfer-Encoding: , chunked", body=END), 501),
    "chunks behind a vertical tab": (post(b"Transfer-Encoding: \x0bchunked", body=END), 400),
    "chunks before a form feed": (post(CHUNKED + b"\x0c", body=END), 400),
    "chunks before a NUL": (post(CHUNKED + b"\x00", body=END), 400),
    "chunks behind a no-break space": (post(b"Transfer-Encoding: \xa0chunked", body=END), 501),
    "xchunked": (post(b"Transfer-Encoding: xchunked", body=END), 501),
    "chunks in quotes": (post(b'Transfer-Encoding: "chunked"', body=END), 501),
    "chunks with a parameter": (post(CHUNKED + b";q=1", body=END), 501),
    "chunks twice": (post(CHUNKED, CHUNKED, body=END), 501),
    "chunks in chunks": (post(CHUNKED + b", chunked", body=END), 501),
    "gzip in chunks": (post(b"Transfer-Encoding: gzip, chunked", body=END), 501),
    "identity beside a length": (post(b"Transfer-Encoding: identity", LENGTH, body=b"abc"), 501),
    "no coding beside a length": (post(b"Transfer-Encoding:", LENGTH, body=b"abc"), 501),
    "chunks with a space before the colon": (post(b"Transfer-Encoding : chunked", LENGTH, body=b"abc"), 400),
    "chunks with a tab before the colon": (post(b"Transfer-Encoding\t: chunked", LENGTH, body=b"abc"), 400),
    "chunks on a folded line": (post(b"Transfer-Encoding:\r\n chunked", body=END), 400),
    "chunks in a folded line": (post(b"A: b\r\n Transfer-Encoding: chunked", LENGTH, body=b"abc"), 400),
    "chunks behind a bare LF": (post(b"A: b\nTransfer-Encoding: chunked", body=END), 400),
    "chunks behind a bare CR": (post(b"A: b\rTransfer-Encoding: chunked", LENGTH, body=b"abc"), 400),
    "two lengths": (post(LENGTH, b"Content-Length: 4", body=b"abc"), 400),
    "two lengths in a line": (post(b"Content-Length: 3, 4", body=b"abc"), 400),
    "a length with a plus": (post(b"Content-Length: +3", body=b"abc"), 400),
    "a length with a minus": (post(b"Content-Length: -3", body=b"abc"), 400),
    "a length with a space in it": (post(b"Content-Length: 3 4", body=b"abc"), 400),
    "a length with an underscore": (post(b"Content-Length: 0_3", body=b"abc"), 400),
    "a length in hexadecimal": (post(b"Content-Length: 0x3", body=b"abc"), 400),
    "a length with a point": (post(b"Content-Length: 3.0", body=b"abc"), 400),
    "a length that is empty": (post(b"Content-Length:", body=b""), 400),
    "a length in other digits": (post("Content-Length: ٣".encode(), body=b"abc"), 400),
    "a length with a power": (post(b"Content-Length: \xb3", body=b"abc"), 400),
    "a length behind a vertical tab": (post(b"Content-Length: \x0b3", body=b"abc"), 400),
    "a length behind a no-break space": (post(b"Content-Length: \xa03", body=b"abc"), 400),
    "a length with a space before the colon": (post(b"Content-Length : 3", body=b"abc"), 400),
    "a length of 25 digits": (post(b"Content-Length: " + b"9" * 25, body=b"abc"), 400),
    "a length of 5,000 digits": (post(b"Content-Length: " + b"9" * 5000, body=b"abc"), 400),
    # --- chunks
    "a chunk with 0x": (in_chunks(b"0x3\r\nabc\r\n" + END), 400),
    "a chunk with a plus": (in_chunks(b"+3\r\nabc\r\n" + END), 400),
    "a chunk with a minus": (in_chunks(b"-3\r\nabc\r\n" + END), 400),
    "a chunk behind a space": (in_chunks(b" 3\r\nabc\r\n" + END), 400),
    "a chunk before a space": (in_chunks(b"3 \r\nabc\r\n" + END), 400),
    "a chunk with an underscore": (in_chunks(b"0_3\r\nabc\r\n" + END), 400),
    "a chunk in other digits": (in_chunks("٣\r\nabc\r\n".encode() + END), 400),
    "a chunk of many digits": (in_chunks(b"0" * 16 + b"3\r\nabc\r\n" + END), 400),
    "a chunk without a size": (in_chunks(b"\r\nabc\r\n" + END), 400),
    "chunks with bare LFs": (in_chunks(b"3\nabc\n0\n\n"), 400),
    "a chunk that ends with LF": (in_chunks(b"3\r\nabc\n" + END), 400),
    "a chunk that ends with other bytes": (in_chunks(b"3\r\nabcXX" + END), 400),
    "a chunk that is longer than its size": (in_chunks(b"3\r\nabcd\r\n" + END), 400),
    "an extension with a bare LF": (in_chunks(b"2;\nxx\r\n3\r\nabc\r\n" + END), 400),
    "an extension with a bare CR": (in_chunks(b"3;a\rb\r\nabc\r\n" + END), 400),
    "an extension with a NUL": (in_chunks(b"3;a\x00\r\nabc\r\n" + END), 400),
    "a trailer that is none": (in_chunks(b"0\r\nnonsense\r\n\r\n"), 400),
    "a trailer that ends with LF": (in_chunks(b"0\r\nA: b\n\r\n"), 400),
    "a trailer that is folded": (in_chunks(b"0\r\nA: b\r\n c\r\n\r\n"), 400),
    "trailers that end with a bare LF": (in_chunks(b"0\r\n\n"), 400),
    # --- lines
    "bare LFs": (get().replace(b"\r", b""), 400),
    "a header that ends with LF": (get(b"A: b\n"), 400),
    "a head that ends with LF": (get()[:-2] + b"\n", 400),
    "a bare CR in a value": (get(b"A: b\rc"), 400),
    "a folded line": (get(b"A: b\r\n c"), 400),
    "a line folded by a tab": (get(b"A: b\r\n\tc"), 400),
    "a header that begins with a space": (get(b" A: b"), 400),
    "a first header that begins with a space": (b"GET /hello HTTP/1.1\r\n A: b\r\nHost: x\r\n\r\n", 400),
    "a space before the colon": (get(b"A : b"), 400),
    "a header without a colon": (get(b"A"), 400),
    "a header without a name": (get(b": b"), 400),
    "a name beyond ASCII": (get("é: b".encode()), 400),
    "a NUL in a name": (get(b"A\x00: b"), 400),
    "a NUL in a value": (get(b"A: b\x00"), 400),
    "a control character in a value": (get(b"A: b\x01c"), 400),
    "an escape in a value": (get(b"A: b\x1bc"), 400),
    "a DEL in a value": (get(b"A: b\x7fc"), 400),
    "an empty line in front": (b"\r\n" + get(), 400),
    "two hosts": (get(b"Host: x"), 400),
    "no host": (b"GET /hello HTTP/1.1\r\n\r\n", 400),
    # --- first lines
    "a target with a space": (get(start=b"GET /hello /x HTTP/1.1"), 400),
    "two spaces": (get(start=b"GET  /hello HTTP/1.1"), 400),
    "tabs": (get(start=b"GET\t/hello\tHTTP/1.1"), 400),
    "a space at the end": (get(start=b"GET /hello HTTP/1.1 "), 400),
    "a method in small letters": (get(start=b"get /hello HTTP/1.1"), 400),
    "a method that is partly so": (get(start=b"GEt /hello HTTP/1.1"), 400),
    "HTTP in small letters": (get(start=b"GET /hello http/1.1"), 400),
    "no version": (get(start=b"GET /hello"), 400),
    "version 1.10": (get(start=b"GET /hello HTTP/1.10"), 400),
    "version 1.2": (get(start=b"GET /hello HTTP/1.2"), 505),
    "version 0.9": (get(start=b"GET /hello HTTP/0.9"), 505),
    "version 2.0": (get(start=b"GET /hello HTTP/2.0"), 505),
    "a URL of another kind": (get(start=b"GET ftp://x/hello HTTP/1.1"), 400),
    "chunks in version 1.0": (b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + END, 400),
    "chunks, then length, in version 1.0": (
        b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
        400,
    ),
}
"""What is sent, and the status that ends the connection."""
READ: dict[str, tuple[bytes, bytes]] = {
    "a length": (post(LENGTH, body=b"abc"), b"3"),
    "a length with zeros": (post(b"Content-Length: 003", body=b"abc"), b"3"),
    "a length between tabs": (post(b"Content-Length:\t3\t", body=b"abc"), b"3"),
    "a length twice": (post(LENGTH, LENGTH, body=b"abc"), b"3"),
    "a length twice in a line": (post(b"Content-Length: 3, 3", body=b"abc"), b"3"),
    "a length that a proxy may take out": (post(b"Connection: content-length", LENGTH, body=b"abc"), b"3"),
    "chunks": (in_chunks(b"3\r\nabc\r\n" + END), b"3"),
    "chunks in capitals": (post(b"TRANSFER-ENCODING: CHUNKED", body=b"A\r\n0123456789\r\n" + END), b"10"),
    "chunks with zeros": (in_chunks(b"003\r\nabc\r\n000\r\n\r\n"), b"3"),
    "an extension": (in_chunks(b'3;a="b;c"\r\nabc\r\n0;d\r\n\r\n'), b"3"),
    "trailers, which change nothing": (
        in_chunks(b"3\r\nabc\r\n0\r\nContent-Length: 50\r\nHost: y\r\n\r\n"),
        b"3",
    ),
    "a name with an underscore": (post(b"Transfer_Encoding: chunked", LENGTH, body=b"abc"), b"3"),
    "a GET with a body": (get(LENGTH) + b"abc", b"hello"),
    "an upgrade to nothing known": (post(b"Connection: upgrade", b"Upgrade: y", LENGTH, body=b"abc"), b"3"),
    "a URL": (get(start=b"GET http://y/hello HTTP/1.1"), b"hello"),
    "a URL with a user": (get(start=b"GET http://a:b@y/hello HTTP/1.1"), b"hello"),
}
"""What is sent, and the one answer to it."""
LAST: dict[str, tuple[bytes, bytes]] = {
    "version 1.0": (b"GET /hello HTTP/1.0\r\n\r\n", b"hello"),
    "version 1.0 that would be kept": (b"GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b"hello"),
    "a body in version 1.0": (b"POST /echo HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", b"3"),
    "no length in version 1.0": (b"POST /echo HTTP/1.0\r\n\r\n", b"0"),
    "close": (get(b"Connection: close"), b"hello"),
    "close among others": (post(b"Connection: TE, close", LENGTH, body=b"abc"), b"3"),
}
"""What is sent, and its answer, behind which the connection ends."""

in_every_way = pytest.mark.parametrize("way", ["whole", "in two", "in bytes"])
"""The usual request is known by its head in one piece: in pieces all goes to h11."""


async def send(client: Client, data: bytes, way: str) -> None:
    """The server takes each piece before the next one comes."""
    at = {"whole": len(data), "in two": 10, "in bytes": 1}[way]
    rest = 1 if way == "in bytes" else len(data)
    pieces = [data[:at], *(data[start : start + rest] for start in range(at, len(data), rest))]
    for piece in pieces:
        await client.send(piece)
        await trio.testing.wait_all_tasks_blocked()


@in_every_way
@pytest.mark.parametrize("name", REFUSED)
async def test_what_could_be_read_in_two_ways_ends_the_connection(name: str, way: str) -> None:
    app, (data, status) = Witness(), REFUSED[name]
    async with serving(app) as server, await server.connect() as client:
        await send(client, data + SNEAK, way)
        answer = await client.answer()
        assert (answer.status, answer.closes) == (status, True)
        assert await client.read_to_end() == b""
    assert [path for _, path in app.asked if path != "/echo"] == []
    assert app.bodies == []


@in_every_way
@pytest.mark.parametrize("name", READ)
async def test_what_can_be_read_in_one_way_is_and_so_is_what_comes_behind_it(name: str, way: str) -> None:
    app, (data, body) = Witness(), READ[name]
    async with serving(app) as server, await server.connect() as client:
        await send(client, data + SNEAK, way)
        answers = [await client.answer() for _ in range(2)]
        assert [(answer.status, answer.closes) for answer in answers] == [(200, False)] * 2
        assert answers[0].body == body
    assert [path for _, path in app.asked][1:] == ["/pid"]


@in_every_way
@pytest.mark.parametrize("name", LAST)
async def test_behind_the_last_request_comes_nothing(name: str, way: str) -> None:
    """What does come made the server answer 400 instead of what the request was answered with."""
    app, (data, body) = Witness(), LAST[name]
    async with serving(app) as server, await server.connect() as client:
        await send(client, data + SNEAK, way)
        answer = await client.answer()
        assert (answer.status, answer.closes, answer.body) == (200, True, body)
        assert await client.read_to_end() == b""
    assert len(app.asked) == 1


async def test_who_goes_on_sending_behind_the_last_request_gets_the_answer_to_it() -> None:
    async with serving() as server, await server.connect() as client:
        await client.get("/stream?n=20", "Connection: close")
        for _ in range(64):
            await client.send(b"x" * 65536)
        answer = await client.answer(5)
        assert answer.body.endswith(b"[DONE]\n\n")


async def test_behind_what_is_refused_nothing_is_heard_though_it_came_with_a_good_one() -> None:
    app = Witness()
    async with serving(app) as server, await server.connect() as client:
        await client.send(get() + post(CHUNKED, LENGTH, body=END) + SNEAK)
        assert [(await client.answer()).status for _ in range(2)] == [200, 400]
        assert await client.read_to_end() == b""
    assert app.asked == [("GET", "/hello")]


async def test_a_body_in_chunks_is_not_judged_by_the_request_behind_it() -> None:
    app = Witness()
    async with serving(app) as server, await server.connect() as client:
        await client.send(in_chunks(b"3\r\nabc\r\n" + END) + get(b"A: b\rc") + SNEAK)
        assert [(await client.answer()).status for _ in range(2)] == [200, 400]
        assert await client.read_to_end() == b""
    assert (app.bodies, app.asked) == ([b"abc"], [("POST", "/echo")])


async def test_only_the_first_request_of_a_connection_may_switch_to_http2() -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
    for pause in (False, True):
        async with serving() as server, await server.connect() as client:
            if pause:
                assert (await client.fetch("/hello")).status == 200
                await client.send(preface)
            else:
                await client.send(get() + preface)
                assert (await client.answer()).status == 200
            assert await client.read_to_end() == b""


POST = {b":method": b"POST", b":path": b"/echo", b":authority": b"x", b":scheme": b"http"}


def post2(*headers: tuple[bytes, bytes], **pseudo: bytes) -> list[tuple[bytes, bytes]]:
    """Headers of a request in HTTP/2; an empty value takes a pseudo-header out."""
    changed = POST | {b":" + name.encode(): value for name, value in pseudo.items()}
    return [*((name, value) for name, value in changed.items() if value), *headers]


REFUSED2 = {
    "chunks": post2((b"transfer-encoding", b"chunked")),
    "a header of the connection": post2((b"connection", b"close")),
    "an upgrade": post2((b"upgrade", b"h2c")),
    "another coding": post2((b"te", b"gzip")),
    "a length that is too short": post2((b"content-length", b"1")),
    "a length that is too long": post2((b"content-length", b"10")),
    "a length with a plus": post2((b"content-length", b"+3")),
    "a length with an underscore": post2((b"content-length", b"0_3")),
    "two lengths": post2((b"content-length", b"3"), (b"content-length", b"4")),
    "two paths": [(b":path", b"/hello"), *post2()],
    "two methods": [(b":method", b"GET"), *post2()],
    "a path behind a header": [*post2((b"a", b"b"), path=b""), (b":path", b"/echo")],
    "no path": post2(path=b""),
    "no method": post2(method=b""),
    "no scheme": post2(scheme=b""),
    "a pseudo-header that there is not": post2(x=b"y"),
    "a host that is not the authority": post2((b"host", b"y")),
    "a path with lines": post2(path=b"/hello HTTP/1.1\r\nHost: x"),
    "a path with a space": post2(path=b"/hello HTTP/1.1"),
    "a path with a NUL": post2(path=b"/hello\x00"),
    "a method with lines": post2(method=b"GET / HTTP/1.1\r\nA: "),
    "a method with a space": post2(method=b"GET /hello"),
    "a method in small letters": post2(method=b"post"),
    "a value with lines": post2((b"a", b"b\r\nTransfer-Encoding: chunked")),
    "a value with a NUL": post2((b"a", b"b\x00c")),
    "a name with lines": post2((b"a\r\nb", b"c")),
    "a name with a colon": post2((b"a:b", b"c")),
    "a name in capitals": post2((b"Content-Length", b"3")),
    "a name with a space": post2((b"a b", b"c")),
    "no name": post2((b"", b"c")),
}


@pytest.mark.parametrize("name", REFUSED2)
async def test_what_http2_could_carry_past_a_judge_ends_its_stream_or_the_connection(name: str) -> None:
    app = Witness()
    async with serving(app) as server, await server.connect() as raw:
        client = H2Client(raw.stream)
        client.connection.config.validate_outbound_headers = False
        client.connection.config.normalize_outbound_headers = False
        client.connection.send_headers(1, REFUSED2[name])
        client.connection.send_data(1, b"abc", end_stream=True)
        await client.send()
        ends = (h2.events.StreamReset, h2.events.ConnectionTerminated)
        await client.until(lambda event: isinstance(event, ends))
        assert not any(isinstance(event, h2.events.ResponseReceived) for event in client.seen)
    assert app.bodies == []


async def test_a_request_in_http2_is_read_in_one_way() -> None:
    app = Witness()
    async with serving(app) as server, await server.connect() as raw:
        client = H2Client(raw.stream)
        client.connection.send_headers(1, post2((b"content-length", b"3")))
        client.connection.send_data(1, b"abc", end_stream=True)
        await client.send()
        await client.until(ended(1))
        assert client.body(1) == b"3"
    assert app.bodies == [b"abc"]
