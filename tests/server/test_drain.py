"""From the first notice to the last connection, in this process."""

import pytest
import trio

from tests.server.apps import TinyApp
from tests.server.serving import request, serving
from trioserve.engine.lifecycle import ServerState
from trioserve.errors import SettingsError


async def test_the_lame_duck_serves_everyone_and_says_close() -> None:
    async with serving(drain_delay_s=0.4) as server, await server.connect() as old:
        assert (await old.fetch("/ready")).status == 200
        server.notices.tell()
        await trio.sleep(0.05)
        async with await server.connect() as new:
            answer = await new.fetch("/ready")
            assert (answer.status, answer.body, answer.closes) == (503, b"lame_duck", True)
            assert await new.read_to_end() == b""
        answer = await old.fetch("/work")
        assert (answer.status, answer.closes) == (200, True)
        assert await old.read_to_end() == b""
        with trio.fail_after(1):
            await server.ended.wait()
        assert server.exit_code == 0


async def test_closing_refuses_new_connections_and_lets_running_requests_finish() -> None:
    async with serving(drain_timeout_s=5) as server, await server.connect() as busy:
        await busy.get("/stream?n=20")
        await busy.read_some()
        server.notices.tell()
        await trio.sleep(0.1)
        assert server.app.lifecycle.state is ServerState.CLOSING
        with pytest.raises(OSError, match="all attempts"):
            await server.connect()
        assert (await busy.read_to_end()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        with trio.fail_after(1):
            await server.ended.wait()
        assert (server.exit_code, server.app.lifecycle.state) == (0, ServerState.STOPPED)


async def test_a_request_on_an_open_connection_is_answered_while_closing() -> None:
    """Its headers have begun to arrive, so the connection is not idle."""
    async with (
        serving(drain_timeout_s=5) as server,
        await server.connect() as busy,
        await server.connect() as late,
    ):
        await busy.get("/stream?n=20")
        head = request("GET", "/work")
        await late.send(head[:10])
        await trio.sleep(0.05)
        server.notices.tell()
        await trio.sleep(0.05)
        await late.send(head[10:])
        answer = await late.answer()
        assert (answer.status, answer.body, answer.closes) == (503, b"closing", True)


async def test_who_was_accepted_last_is_still_served() -> None:
    async with serving() as server, await server.connect() as client:
        server.notices.tell()
        await trio.sleep(0.1)
        answer = await client.fetch("/work")
        assert (answer.status, answer.closes) == (200, True)


async def test_connections_in_the_kernels_queue_are_served() -> None:
    """They connected before the listener closed; without a word they would be reset."""
    async with serving() as server:
        server.notices.tell()
        async with trio.open_nursery() as nursery:

            async def visit() -> None:
                async with await server.connect() as client:
                    assert (await client.fetch("/work")).status == 200

            for _ in range(20):
                nursery.start_soon(visit)


async def test_two_hundred_idle_connections_close_within_a_second() -> None:
    async with serving(drain_timeout_s=20) as server, trio.open_nursery() as nursery:
        clients = [await server.connect() for _ in range(200)]
        for client in clients:
            nursery.start_soon(client.fetch, "/hello")
        await trio.testing.wait_all_tasks_blocked(0.05)
        server.notices.tell()
        with trio.fail_after(1):
            for client in clients:
                assert await client.read_to_end() == b""
            await server.ended.wait()
        for client in clients:
            await client.stream.aclose()
        assert server.exit_code == 0


async def test_the_deadline_aborts_with_error_events_and_exit_code_75() -> None:
    async with serving(drain_timeout_s=0.2) as server, await server.connect() as client:
        await client.get("/stream?n=1000")
        await client.read_some()
        assert await server.drain(within_s=2) == 75
        assert b'data: {"error": "aborted"}\n\n\r\n0\r\n\r\n' in await client.read_to_end()


async def test_a_second_notice_aborts_at_once_even_in_the_lame_duck() -> None:
    async with serving(drain_delay_s=60, drain_timeout_s=60) as server, await server.connect() as client:
        await client.get("/stream?n=1000")
        await client.read_some()
        server.notices.tell()
        await trio.sleep(0.05)
        assert await server.drain(within_s=2) == 75
        assert b'"error"' in await client.read_to_end()


async def test_a_handler_that_hears_no_abort_is_cut_off_after_five_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trioserve.server.serve.ABORT_S", 0.2)
    async with serving(drain_timeout_s=0.1) as server, await server.connect() as client:
        await client.get("/stubborn")
        await trio.sleep(0.05)
        assert await server.drain(within_s=2) == 75
        assert server.app.how_ended("/stubborn") == ["cancelled"]
        assert await client.read_to_end() == b""


async def test_a_drain_while_the_model_loads_needs_no_lame_duck() -> None:
    async with serving(TinyApp(load_s=60), drain_delay_s=60) as server, await server.connect() as client:
        assert (await client.fetch("/ready")).body == b"starting"
        assert await server.drain(within_s=1) == 0


async def test_a_failed_engine_ends_the_server_with_its_exit_code() -> None:
    async with serving() as server, await server.connect() as client:
        await client.get("/stream?n=1000")
        await client.read_some()
        server.app.lifecycle.fail("the works kept dying", exit_code=70)
        with trio.fail_after(2):
            await server.ended.wait()
        assert server.exit_code == 70
        assert b'"error"' in await client.read_to_end()


@pytest.mark.parametrize(
    ("fault", "exit_code"), [(RuntimeError("a bug"), 70), (SettingsError("No such model."), 78)]
)
async def test_an_app_whose_lifespan_raises_is_not_served_on(fault: Exception, exit_code: int) -> None:
    class Failing(TinyApp):
        async def _load(self) -> None:
            await trio.sleep(0.05)
            raise fault

    async with serving(Failing()) as server:
        with trio.fail_after(2):
            await server.ended.wait()
        assert server.exit_code == exit_code
