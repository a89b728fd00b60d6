"""HTTP/2, with and without TLS, and TLS itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h2.errors
import h2.events
import h2.settings
import httpx
import pytest
import trio

from tests.certificates import Certificate, make_certificate
from tests.server.apps import TinyApp
from tests.server.h2_client import H2Client, ended
from tests.server.serving import Server, request, serving
from trioserve.server.config import ServerConfig
from trioserve.server.sockets import Listener, bind


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def serving_tls(certificate: Certificate, app: Any = None, **settings: Any) -> AsyncIterator[Server]:
    def configure(config: ServerConfig) -> None:
        config.certfile, config.keyfile = str(certificate.cert), str(certificate.key)

    listeners = [Listener(listener.sock, secure=True) for listener in bind("127.0.0.1", 0)]
    async with serving(app, configure=configure, listeners=listeners, **settings) as server:
        yield server


@pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "h2"])
async def test_tls_serves_answers_and_streams(certificate: Certificate, http2: bool) -> None:
    async with (
        serving_tls(certificate) as server,
        httpx.AsyncClient(verify=certificate.trusting(), http2=http2) as client,
    ):
        url = f"https://127.0.0.1:{server.port}"
        answer = await client.get(f"{url}/hello")
        assert (answer.text, answer.http_version) == ("hello", "HTTP/2" if http2 else "HTTP/1.1")
        answer = await client.post(f"{url}/echo", content=b"x" * 300_000)
        assert answer.text == "300000"
        assert (await client.get(f"{url}/stream?n=5")).text.endswith("[DONE]\n\n")
        answer = await client.post(f"{url}/early?status=413", content=b"x" * 50_000)
        assert answer.status_code == 413


async def test_tls_drops_a_client_that_stops_reading(certificate: Certificate) -> None:
    async with serving_tls(certificate, send_timeout_s=1) as server:
        stream = trio.SSLStream(
            await trio.open_tcp_stream("127.0.0.1", server.port),
            certificate.trusting(),
            server_hostname="127.0.0.1",
        )
        await stream.send_all(request("GET", "/flood"))
        assert (await server.app.wait_ended("/flood", within_s=3))[0] == "cancelled"
        await trio.aclose_forcefully(stream)


async def test_tls_to_a_client_that_speaks_plain_harms_nobody(certificate: Certificate) -> None:
    async with serving_tls(certificate) as server, await server.connect() as client:
        await client.get("/hello")
        with pytest.raises((trio.BrokenResourceError, AssertionError)):
            assert b"HTTP" in await client.read_to_end()


async def test_http2_without_tls_by_prior_knowledge() -> None:
    async with serving() as server, httpx.AsyncClient(http1=False, http2=True) as client:
        answer = await client.get(f"http://127.0.0.1:{server.port}/hello")
        assert (answer.text, answer.http_version, answer.headers["server"]) == (
            "hello",
            "HTTP/2",
            "trioserve",
        )


async def test_http2_data_for_an_answered_stream_does_not_end_the_others() -> None:
    """hypercorn raised KeyError, which took the whole connection along."""
    async with serving() as server, await server.connect() as raw:
        client = H2Client(raw.stream)
        client.ask(1, "/stream?n=20")
        client.ask(3, "/early", "POST")
        await client.send()
        await client.until(ended(3))
        client.connection.send_data(3, b"x" * 1000, end_stream=True)
        await client.send()
        await client.until(ended(1))
        assert client.body(1).endswith(b"[DONE]\n\n")


async def test_http2_reset_of_a_stream_cancels_its_handler_only() -> None:
    async with serving() as server, await server.connect() as raw:
        client = H2Client(raw.stream)
        client.ask(1, "/sleep?s=5")
        client.ask(3, "/sleep?s=0.2")
        await client.send()
        await trio.sleep(0.05)
        client.connection.reset_stream(1)
        await client.send()
        assert (await server.app.wait_ended("/sleep"))[0] == "cancelled"
        await client.until(ended(3))
        assert (await server.app.wait_ended("/sleep", count=2))[0] == "finished"


async def test_http2_client_that_opens_no_window_is_dropped() -> None:
    async with serving(TinyApp(), send_timeout_s=0.5) as server, await server.connect() as raw:
        client = H2Client(raw.stream)
        client.ask(1, "/flood")
        await client.send()
        assert (await server.app.wait_ended("/flood", within_s=2))[0] == "cancelled"


async def test_http2_client_that_leaves_with_its_window_full_holds_nothing_up() -> None:
    async with serving(TinyApp(), send_timeout_s=60, drain_timeout_s=30) as server:
        async with await server.connect() as raw:
            client = H2Client(raw.stream)
            client.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2})
            client.ask(1, "/hello")
            await client.send()
            await client.until(lambda event: isinstance(event, h2.events.DataReceived))
        assert await server.drain(within_s=2) == 0


async def test_http2_says_goaway_to_the_idle_and_lets_the_busy_finish() -> None:
    async with (
        serving(drain_timeout_s=5) as server,
        await server.connect() as idle_raw,
        await server.connect() as busy_raw,
    ):
        idle, busy = H2Client(idle_raw.stream), H2Client(busy_raw.stream)
        idle.ask(1, "/hello")
        await idle.send()
        await idle.until(ended(1))
        busy.ask(1, "/stream?n=20")
        await busy.send()
        await trio.sleep(0.05)
        server.notices.tell()
        await idle.until(lambda event: isinstance(event, h2.events.ConnectionTerminated), within_s=0.3)
        await busy.until(ended(1))
        assert busy.body(1).endswith(b"[DONE]\n\n")
        with trio.fail_after(1):
            await server.ended.wait()
        assert server.exit_code == 0


@pytest.mark.parametrize(
    "headers",
    [
        [(":method", "GET"), (":path", "http://x/hello"), (":authority", "x"), (":scheme", "http")],
        [(":method", "GET"), (":path", "hello"), (":authority", "x"), (":scheme", "http")],
        [(":method", "GET"), (":path", "/h\xe9llo"), (":authority", "x"), (":scheme", "http")],
        [(":method", "G\xc9T"), (":path", "/hello"), (":authority", "x"), (":scheme", "http")],
        [(":method", "CONNECT"), (":authority", "x:80")],
    ],
)
async def test_http2_request_that_is_none_resets_its_stream_and_leaves_the_others(
    headers: list[tuple[str, str]],
) -> None:
    """hypercorn raised UnicodeDecodeError and UnboundLocalError, which ended the connection."""
    async with serving() as server, await server.connect() as raw:
        client = H2Client(raw.stream)
        client.ask(1, "/stream?n=20")
        client.connection.config.validate_outbound_headers = False
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        client.connection.send_headers(3, encoded, end_stream=True)
        await client.send()
        await client.until(lambda event: isinstance(event, h2.events.StreamReset) and event.stream_id == 3)
        assert any(isinstance(event, h2.events.StreamReset) for event in client.seen)
        await client.until(ended(1), within_s=20)
        assert client.body(1).endswith(b"[DONE]\n\n")


async def test_http2_response_that_its_app_left_unfinished_is_reset() -> None:
    async with serving() as server, await server.connect() as raw:
        client = H2Client(raw.stream)
        client.ask(1, "/half")
        await client.send()
        await client.until(lambda event: isinstance(event, h2.events.StreamReset))
        client.ask(3, "/hello")
        await client.send()
        await client.until(ended(3))
        assert client.body(3) == b"hello"


async def test_http2_client_that_resets_stream_after_stream_is_cut_off() -> None:
    """Rapid reset: each costs the server a request, and the bound on streams at a time never counts it."""
    async with serving() as server, await server.connect() as raw, await server.connect() as other:
        client = H2Client(raw.stream)
        for stream_id in range(1, 1000, 2):
            client.ask(stream_id, "/sleep?s=5")
            client.connection.reset_stream(stream_id)
        await client.send()
        await client.until(lambda event: isinstance(event, h2.events.ConnectionTerminated))
        (told,) = (event for event in client.seen if isinstance(event, h2.events.ConnectionTerminated))
        assert told.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
        assert len(server.app.ended) < 250
        assert (await other.fetch("/hello")).status == 200


async def test_http2_client_that_lets_others_be_answered_may_reset_many() -> None:
    async with serving() as server, await server.connect() as raw:
        client = H2Client(raw.stream)
        for stream_id in range(1, 1200, 4):
            client.ask(stream_id, "/sleep?s=5")
            client.connection.reset_stream(stream_id)
            client.ask(stream_id + 2, "/hello")
            await client.send()
            await client.until(ended(stream_id + 2))
        assert not any(isinstance(event, h2.events.ConnectionTerminated) for event in client.seen)


async def test_http2_request_that_is_none_and_is_reset_at_once_ends_no_connection() -> None:
    async with serving() as server, await server.connect() as raw:
        client = H2Client(raw.stream)
        client.ask(1, "nowhere")
        client.connection.reset_stream(1)
        client.ask(3, "/hello")
        await client.send()
        await client.until(ended(3))
        assert client.body(3) == b"hello"


async def test_http2_priorities_of_many_streams_refuse_the_next_one_and_leave_the_others() -> None:
    async with serving() as server, await server.connect() as raw:
        client = H2Client(raw.stream)
        client.ask(1, "/stream?n=20")
        for stream_id in range(3, 2205, 2):
            client.connection.prioritize(stream_id, weight=5)
        client.ask(2207, "/hello")
        await client.send()
        await client.until(lambda event: isinstance(event, h2.events.StreamReset) and event.stream_id == 2207)
        await client.until(ended(1))
        assert client.body(1).endswith(b"[DONE]\n\n")
