"""One connection: replies, the two faults of the stack below, clients that leave."""

import socket

import pytest
import trio

from tests.server.apps import TinyApp
from tests.server.quart_apps import TinyQuart
from tests.server.serving import request, serving


@pytest.fixture(params=[(), ("Connection: TE",)], ids=["usual", "unusual"])
def kind(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Headers of a request that goes past h11, or not."""
    return request.param  # type: ignore[no-any-return]


async def test_a_connection_serves_one_request_after_the_other(kind: tuple[str, ...]) -> None:
    async with serving() as server, await server.connect() as client:
        for _ in range(3):
            answer = await client.fetch("/hello", *kind)
            assert (answer.status, answer.body, answer.closes) == (200, b"hello", False)
            assert answer.headers["server"] == "trioserve"


async def test_pipelined_requests_are_answered_in_their_order(kind: tuple[str, ...]) -> None:
    async with serving() as server, await server.connect() as client:
        await client.send(
            request("GET", "/sleep?s=0.05", *kind)
            + request("GET", "/hello", *kind)
            + request("GET", "/early", *kind)
        )
        assert [(await client.answer()).body for _ in range(3)] == [b"slept", b"hello", b"no"]


@pytest.mark.parametrize(("make_app", "path"), [(TinyApp, "/early"), (TinyQuart, "/nowhere")])
@pytest.mark.parametrize("together", [True, False], ids=["in one piece", "in two"])
async def test_a_reply_before_the_body_was_read_leaves_the_connection_usable(
    make_app: type[TinyApp], path: str, together: bool, kind: tuple[str, ...]
) -> None:
    """hypercorn closed without a word or, under quart-trio, left h11 waiting for a body and the next request hung."""
    async with serving(make_app()) as server, await server.connect() as client:
        head, body = request("POST", path, *kind, "Content-Length: 5000"), b"x" * 100
        for part in [head + body] if together else [head, body]:
            await client.send(part)
            await trio.sleep(0.02)
        answer = await client.answer()
        assert (answer.status in (401, 404), answer.closes) == (True, False)
        await trio.sleep(0.02)
        await client.send(b"x" * 4900)
        assert (await client.fetch("/hello", *kind)).status == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_reply_before_a_long_body_arrives_whole_and_closes(
    chunked: bool, kind: tuple[str, ...]
) -> None:
    """No reset may overtake the reply, though the client only looks for it once it has sent all."""
    size = 4 << 20
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    async with serving() as server, await server.connect() as client:
        await client.send(request("POST", "/early?status=413", *kind, framing))
        await trio.sleep(0.05)
        await client.send((b"%x\r\n" % size if chunked else b"") + b"x" * size)
        answer = await client.answer()
        assert (answer.status, answer.closes) == (413, True)
        assert await client.read_to_end() == b""


async def test_an_app_that_never_reads_a_long_body_does_not_block_its_reply(kind: tuple[str, ...]) -> None:
    """Over a megabyte waits for the app when it answers, more than its queue holds."""
    async with serving() as server, await server.connect() as client:
        await client.send(
            request("POST", "/sleep?s=0.1", *kind, "Content-Length: 2000000", body=b"x" * 2_000_000)
        )
        assert (await client.answer()).body == b"slept"


async def test_a_large_body_reaches_the_app_in_order(kind: tuple[str, ...]) -> None:
    app, body = TinyApp(), bytes(range(256)) * 8192
    async with serving(app) as server, await server.connect() as client:
        await client.send(request("POST", "/echo", *kind, f"Content-Length: {len(body)}") + body)
        assert (await client.answer()).body == str(len(body)).encode()
    assert app.bodies == [body]


async def test_the_last_send_under_quart_leaves_a_connection_that_can_be_closed(
    kind: tuple[str, ...],
) -> None:
    """hypercorn's http.disconnect cancelled quart-trio's task inside the recycling; drains took their whole time."""
    async with serving(TinyQuart(), drain_timeout_s=10) as server:
        clients = [await server.connect() for _ in range(40)]
        for client in clients:
            assert (await client.fetch("/hello", *kind)).status == 200
            assert (await client.fetch("/stream", *kind)).body.count(b"data:") == 3
        assert await server.drain(within_s=1.5) == 0
        for client in clients:
            assert await client.read_to_end(0.1) == b""
            await client.stream.aclose()


@pytest.mark.parametrize("way", ["close", "reset", "half-close"])
@pytest.mark.parametrize("path", ["/sleep?s=5", "/stream?n=500"])
async def test_a_client_that_leaves_cancels_the_handler_at_once(
    way: str, path: str, kind: tuple[str, ...]
) -> None:
    async with serving() as server, await server.connect() as client:
        await client.get(path, *kind)
        await trio.sleep(0.05)
        if way == "close":
            await client.stream.aclose()
        elif way == "reset":
            await client.reset()
        else:
            await client.stream.send_eof()
        how, after_s = await server.app.wait_ended(path.partition("?")[0])
        assert (how, after_s < 0.1) == ("cancelled", True)


async def test_a_client_that_leaves_is_seen_with_another_request_waiting(kind: tuple[str, ...]) -> None:
    async with serving() as server, await server.connect() as client:
        await client.send(request("GET", "/sleep?s=5", *kind) + request("GET", "/hello", *kind))
        await trio.sleep(0.05)
        await client.stream.aclose()
        assert (await server.app.wait_ended("/sleep"))[0] == "cancelled"
        assert server.app.how_ended("/hello") == []


async def test_a_client_that_leaves_in_the_middle_of_its_body_cancels_the_handler(
    kind: tuple[str, ...],
) -> None:
    async with serving() as server, await server.connect() as client:
        await client.send(request("POST", "/echo", *kind, "Content-Length: 5000", body=b"x" * 100))
        await trio.sleep(0.05)
        await client.stream.aclose()
        assert (await server.app.wait_ended("/echo"))[0] == "cancelled"


async def test_a_client_that_stops_reading_is_dropped_after_send_timeout(kind: tuple[str, ...]) -> None:
    async with serving(send_timeout_s=1) as server, await server.connect() as client:
        client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await client.get("/flood", *kind)
        how, after_s = await server.app.wait_ended("/flood", within_s=3)
        assert how == "cancelled"
        assert 0.8 < after_s < 2.5


async def test_a_client_that_neither_reads_nor_is_read_from_is_dropped(kind: tuple[str, ...]) -> None:
    async with serving(send_timeout_s=0.5) as server, await server.connect() as client:
        await client.send(request("POST", "/flood", *kind, "Content-Length: 9000000"))
        with trio.move_on_after(0.2):
            await client.send(b"x" * 9_000_000)
        assert (await server.app.wait_ended("/flood", within_s=2))[0] == "cancelled"


async def test_a_reader_that_is_only_slow_is_not_dropped() -> None:
    async with serving(send_timeout_s=0.5) as server, await server.connect() as client:
        await client.get("/flood")
        for _ in range(12):
            await trio.sleep(0.1)
            assert await client.stream.receive_some(1 << 20)
        assert server.app.ended == []


async def test_slow_headers_are_cut_off() -> None:
    def configure(config: object) -> None:
        config.headers_timeout_s = 0.3  # type: ignore[attr-defined]

    async with serving(configure=configure) as server, await server.connect() as client:
        await client.send(b"GET /hello HTTP/1.1\r\n")
        for byte in b"Host: slow":
            await trio.sleep(0.02)
            await client.send(bytes([byte]))
        assert await client.read_to_end(0.5) == b""


async def test_an_idle_connection_is_closed_after_keep_alive(kind: tuple[str, ...]) -> None:
    async with serving(keep_alive_timeout_s=0.2) as server, await server.connect() as client:
        await client.fetch("/sleep?s=0.4", *kind)
        assert await client.read_to_end(0.5) == b""


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /hello HTTP/1.1\r\nHost: x\r\nBig: " + b"x" * 40_000 + b"\r\n\r\n", 431),
        (
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n", 501),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\nabc", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 40_000, 431),
        (
            b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"y" * 40_000,
            431,
        ),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET /" + b"x" * 400_000, 431),
        (b"GET /hello HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 10_000 + b"\r\n", 431),
        (b"GET /hello HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /hello HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n", 400),
        (b"GET hello HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET ?hello HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET http:///hello HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT host:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT /hello HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
)
async def test_what_is_no_valid_request_gets_an_answer_and_an_end(head: bytes, status: int) -> None:
    async with serving() as server, await server.connect() as client:
        await client.send(head)
        answer = await client.answer()
        assert (answer.status, answer.closes) == (status, True)
        assert answer.body.startswith(b'{"error":')
        assert await client.read_to_end() == b""


async def test_a_url_as_target_is_served_as_its_path() -> None:
    async with serving() as server, await server.connect() as client:
        for target in ("http://elsewhere/hello", "HTTP://x:1/hello", "/hello"):
            assert (await client.fetch(target)).body == b"hello"


async def test_an_offer_of_http2_without_tls_is_passed_over() -> None:
    """Behind a proxy that judges paths it would carry requests past the judge."""
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: !!!")
    async with serving() as server, await server.connect() as client:
        for _ in range(2):
            assert (await client.fetch("/hello", *offer)).body == b"hello"


@pytest.mark.parametrize("data", [b"", b"\x81\x00", b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"])
@pytest.mark.parametrize("path", ["/hello", "/sleep?s=5"])
async def test_a_websocket_handshake_that_fails_ends_the_connection(path: str, data: bytes) -> None:
    """With data behind it hypercorn answered and then held the connection for ever."""
    handshake = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    async with serving() as server, await server.connect() as client:
        await client.send(request("GET", path, *(handshake if data else handshake[:2])) + data)
        assert (await client.read_to_end()).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    ("trusted", "expected"), [("", "127.0.0.1"), ("127.0.0.0/8", "203.0.113.9"), ("10.0.0.1", "127.0.0.1")]
)
async def test_the_access_log_names_the_client(
    trusted: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="trioserve.access"):
        async with serving(forwarded_allow_ips=trusted.split()) as server, await server.connect() as client:
            await client.fetch("/sleep?s=0.01", "X-Forwarded-For: 1.2.3.4, 203.0.113.9")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "trioserve.access"]
    assert line.startswith(f"{expected} GET /sleep 200 ")
    assert "?" not in line and "0.01" not in line


async def test_an_app_that_raises_harms_nobody_else(kind: tuple[str, ...]) -> None:
    async with serving() as server, await server.connect() as bystander, await server.connect() as client:
        await bystander.get("/stream?n=20", *kind)
        assert (await client.fetch("/fault", *kind)).status == 500
        async with await server.connect() as other:
            await other.get("/half", *kind)
            assert not (await other.read_to_end()).endswith(b"0\r\n\r\n")
        assert (await bystander.answer()).body.endswith(b"[DONE]\n\n")


async def test_a_cancelled_send_does_not_break_the_framing(kind: tuple[str, ...]) -> None:
    """Bytes that the protocol has framed go out first with the next send."""

    class Impatient(TinyApp):
        async def _get_hello(self, exchange: "object") -> None:
            await exchange.start(200, [])  # type: ignore[attr-defined]
            for _ in range(10):
                with trio.move_on_after(0.005):
                    await exchange.body(b"x" * 500_000)  # type: ignore[attr-defined]
            await exchange.body(b"end", more=False)  # type: ignore[attr-defined]

    async with serving(Impatient()) as server, await server.connect() as client:
        await client.get("/hello", *kind)
        await trio.sleep(0.1)
        body = (await client.answer(5)).body
        assert body == b"x" * (10 * 500_000) + b"end"
        assert (await client.fetch("/ready", *kind)).status == 200
