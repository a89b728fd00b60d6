"""The usual request: what is taken for one, and that it is read and answered as h11 would."""

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.serving import request, serving
from trioserve.server.usual import UsualAnswer, read_head

LIMIT = 32 * 1024

_NAMES = st.sampled_from(
    [
        "Host",
        "host",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Accept",
        "X-A",
        "Expect",
        "X y",
        "",
    ]
)
_VALUES = st.one_of(
    st.sampled_from(["x", "3", "03", "3, 3", "+3", "keep-alive", "close", "chunked", "a\tb", "\xe9", " x "]),
    st.text(st.characters(max_codepoint=255), max_size=6),
)
_LINES = st.lists(st.tuples(_NAMES, st.sampled_from([":", ": ", " : ", ":\t", ""]), _VALUES), max_size=5)
_STARTS = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["", "\r\n"]),
    st.sampled_from(["GET", "POST", "get", "PUT"]),
    st.sampled_from([" ", "  "]),
    st.sampled_from(["/", "/a?b=%20", "*", "http://x/", "/\x7f", "/a b"]),
    st.sampled_from([" HTTP/1.1", " HTTP/1.0", " HTTP/2.0", ""]),
)


def _as_h11_reads(data: bytes) -> tuple[str, bytes, list[tuple[bytes, bytes]], int, bytes]:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    head = connection.next_event()
    assert isinstance(head, h11.Request)
    body, event = b"", connection.next_event()
    while isinstance(event, h11.Data):
        body += event.data
        event = connection.next_event()
    assert isinstance(event, h11.EndOfMessage)
    return (
        head.method.decode(),
        head.target,
        list(head.headers),
        len(body),
        body + connection.trailing_data[0],
    )


@settings(max_examples=500, deadline=None)
@given(_STARTS, _LINES, st.sampled_from(["\r\n", "\n"]), st.booleans())
def test_what_is_taken_for_usual_is_what_h11_reads(
    start: str, lines: list[tuple[str, str, str]], end: str, has_host: bool
) -> None:
    headers = ["Host: x"] * has_host + ["".join(line) for line in lines]
    data = end.join([start, *headers, "", ""]).encode("latin-1")
    head = read_head(data + b"abcdef" * 4, max_header_bytes=LIMIT)
    if head is not None:
        body = b"abcdef" * 4 + b"z" * head.num_body_bytes
        assert head.num_bytes == len(data)
        assert _as_h11_reads(data + body) == (*head[:4], body)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_bytes_anywhere_in_a_head_are_usual_or_not_and_never_an_error(before: bytes, after: bytes) -> None:
    data = b"GET /" + before + b" HTTP/1.1\r\nHost: x\r\nA: " + after + b"\r\n\r\n"
    head = read_head(data, max_header_bytes=LIMIT)
    if head is not None and head.num_bytes == len(data):
        assert _as_h11_reads(data)[:4] == head[:4]


def test_the_plainest_request_is_usual() -> None:
    data = request("POST", "/v1/x?y", "Content-Length: 2", "connection: Keep-Alive", body=b"{}")
    head = read_head(data + b"GET", max_header_bytes=LIMIT)
    assert head is not None
    assert (head.method, head.target, head.num_body_bytes) == ("POST", b"/v1/x?y", 2)
    assert data[head.num_bytes :] == b"{}"
    assert (head.scope()["path"], head.scope()["query_string"]) == ("/v1/x", b"y")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: x\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"1" * 30 + b"\r\n\r\nx",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 1000 + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_anything_else_is_left_to_h11(data: bytes) -> None:
    assert read_head(data, max_header_bytes=LIMIT) is None


@given(st.lists(st.binary(max_size=30), max_size=5), st.booleans())
def test_an_answer_arrives_as_it_was_given(parts: list[bytes], has_length: bool) -> None:
    headers = [(b"Content-Type", b"text/plain"), (b"x-empty", b"")]
    if has_length:
        headers.append((b"content-length", b"%d" % sum(map(len, parts))))
    answer = UsualAnswer()
    data = answer.begin(200, headers, must_close=False)
    data += b"".join(answer.part(part, more=True) for part in parts) + answer.part(b"", more=False)
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    head, body = client.next_event(), b""
    assert isinstance(head, h11.Response)
    assert set(head.headers) >= {(b"content-type", b"text/plain"), (b"x-empty", b"")}
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert (body, client.trailing_data[0]) == (b"".join(parts), b"")
    client.start_next_cycle()


@pytest.mark.parametrize(
    "header",
    [
        (b"a", b"b\r\nset-cookie: c"),
        (b"a", b"b\nc"),
        (b"a", b"\x00"),
        (b"a b", b"c"),
        (b"a:b", b"c"),
        (b"", b"c"),
        (b"a\r\nb", b"c"),
        (b"content-length", b"x"),
        (b"content-length", b"-1"),
    ],
)
def test_an_answer_whose_header_is_none_is_refused(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="headers of an answer"):
        UsualAnswer().begin(200, [header], must_close=False)


@pytest.mark.parametrize("parts", [[b"abc", b"d"], [b"a", b""], [b""]])
def test_an_answer_is_as_long_as_it_says(parts: list[bytes]) -> None:
    answer = UsualAnswer()
    answer.begin(200, [(b"content-length", b"3")], must_close=False)
    for part in parts[:-1]:
        answer.part(part, more=True)
    with pytest.raises(ValueError, match="not as long"):
        answer.part(parts[-1], more=False)


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_has_none(status: int) -> None:
    answer = UsualAnswer()
    assert answer.begin(status, [], must_close=False) == b""
    assert not answer.is_in_chunks
    assert answer.part(b"nothing", more=False).endswith(b" \r\n\r\n")


async def test_hypercorns_names_of_the_server_are_asked_for() -> None:
    def configure(config: object) -> None:
        config.server_names = ["good"]  # type: ignore[attr-defined]

    async with serving(configure=configure) as server, await server.connect() as client:
        await client.send(b"GET /hello HTTP/1.1\r\nHost: bad\r\n\r\n")
        assert (await client.answer()).status == 404
        async with await server.connect() as other:
            await other.send(b"GET /hello HTTP/1.1\r\nHost: good\r\n\r\n")
            assert (await other.answer()).body == b"hello"


async def test_usual_and_unusual_requests_take_turns_on_one_connection() -> None:
    chunked = request("POST", "/echo", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n")
    usual = request("POST", "/echo", "Content-Length: 4", body=b"abcd")
    async with serving() as server, await server.connect() as client:
        for _ in range(2):
            for data, body in ((usual, b"4"), (chunked, b"3"), (usual + chunked, b"4"), (b"", b"3")):
                await client.send(data)
                assert (await client.answer()).body == body


async def test_a_body_in_many_parts_with_a_request_behind_it() -> None:
    data = request("POST", "/echo", "Content-Length: 10", body=b"0123456789") + request("GET", "/hello")
    for size in (1, 7, 60, 68):
        async with serving() as server, await server.connect() as client:
            for start in range(0, len(data), size):
                await client.send(data[start : start + size])
            assert [(await client.answer()).body for _ in range(2)] == [b"10", b"hello"]


async def test_after_so_many_requests_the_connection_ends_as_hypercorn_has_it() -> None:
    def configure(config: object) -> None:
        config.keep_alive_max_requests = 2  # type: ignore[attr-defined]

    async with serving(configure=configure) as server, await server.connect() as client:
        assert [(await client.fetch("/hello")).closes for _ in range(2)] == [False, True]
        assert await client.read_to_end() == b""
