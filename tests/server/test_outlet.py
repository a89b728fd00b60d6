"""The short way of an answer's bytes to the socket, beside ASGI's messages."""

from collections.abc import Awaitable, Callable
from typing import Any

import h11
import pytest
import trio

from tests.server.apps import TinyApp
from tests.server.serving import request, serving
from trioserve.core.extensions import OUTLET, WHOLE_BODY, Outlet

Handler = Callable[[Any, Any, Any], Awaitable[None]]

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


class Served(TinyApp):
    """Has a function answer every request."""

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self._handler = handler

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
        else:
            await self._handler(scope, receive, send)


def part(data: bytes, *, more: bool = True) -> Any:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def test_both_ways_make_one_body_in_order() -> None:
    cleared = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        outlet: Outlet = scope["extensions"][OUTLET]
        cleared.append(outlet.is_clear)
        await send(START)
        await send(part(b"one, "))
        cleared.append(outlet.is_clear)
        outlet.write_nowait(b"two, ")
        outlet.write_nowait(b"three, ")
        await send(part(b"four"))
        await send(part(b"", more=False))
        cleared.append(outlet.is_clear)

    async with serving(Served(answer)) as server, await server.connect() as client:
        for _ in range(2):
            assert (await client.fetch("/")).body == b"one, two, three, four"
    assert cleared == [False, True, False] * 2


async def test_a_slow_reader_gets_all_and_is_not_clear_meanwhile() -> None:
    size, waited = 8 << 20, []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        outlet: Outlet = scope["extensions"][OUTLET]
        await send(START)
        outlet.write_nowait(b"a" * size)
        assert not outlet.is_clear
        await send(part(b"b"))
        waited.append(trio.current_time())
        await send(part(b"", more=False))

    async with serving(Served(answer)) as server, await server.connect() as client:
        await client.get("/")
        await trio.sleep(0.1)
        assert not waited
        assert (await client.answer(10)).body == b"a" * size + b"b"


async def test_the_rest_of_a_part_follows_without_another_send() -> None:
    size = 8 << 20

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        scope["extensions"][OUTLET].write_nowait(b"a" * size)
        await trio.sleep_forever()

    async with serving(Served(answer)) as server, await server.connect() as client:
        await client.get("/")
        connection = h11.Connection(h11.CLIENT)
        connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
        connection.send(h11.EndOfMessage())
        num_bytes = 0
        with trio.fail_after(5):
            while num_bytes < size:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await client.stream.receive_some())
                elif isinstance(event, h11.Data):
                    num_bytes += len(event.data)


async def test_it_is_closed_when_the_client_is_gone_and_with_its_own_answer() -> None:
    outlets: list[Outlet] = []
    under_way, left = trio.Event(), trio.Event()

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        outlets.append(scope["extensions"][OUTLET])
        await send(START)
        await send(part(b"x", more=scope["path"] != "/short"))
        if scope["path"] != "/short":
            under_way.set()
            try:
                await trio.sleep_forever()
            finally:
                left.set()

    async with serving(Served(answer)) as server:
        async with await server.connect() as client:
            await client.fetch("/short")
            await client.get("/long")
            await under_way.wait()
            assert [outlet.is_clear for outlet in outlets] == [False, True]
        with trio.fail_after(2):
            await left.wait()
        assert not outlets[1].is_clear


@pytest.mark.parametrize("first", [b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"])
async def test_it_is_never_clear_where_a_body_has_no_chunks(first: bytes) -> None:
    cleared = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(part(b"x"))
        cleared.append(scope["extensions"][OUTLET].is_clear)
        await send(part(b"y", more=False))

    async with serving(Served(answer)) as server, await server.connect() as client:
        await client.send(first)
        assert (await client.read_some()).startswith(b"HTTP/1.1 200")
    assert cleared == [False]


async def test_a_body_with_a_length_is_not_chunked_and_leaves_with_its_head() -> None:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(START | {"headers": [(b"Content-Length", b"2")]})
        assert not scope["extensions"][OUTLET].is_clear
        await send(part(b"ok", more=False))

    async with serving(Served(answer)) as server, await server.connect() as client:
        await client.get("/")
        assert (await client.read_some()).endswith(b"\r\n\r\nok")


async def test_a_body_that_came_whole_is_one_message_and_said_to_be() -> None:
    seen = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        is_whole, message = WHOLE_BODY in scope["extensions"], await receive()
        seen.append((is_whole, message["body"], message["more_body"]))
        await send(START | {"headers": [(b"content-length", b"2")]})
        await send(part(b"ok", more=False))

    async with serving(Served(answer)) as server, await server.connect() as client:
        await client.fetch("/")
        await client.send(request("POST", "/", "Content-Length: 4", body=b"body"))
        await client.answer()
        await client.send(request("POST", "/", "Content-Length: 4", body=b"bo"))
        await client.answer()
    assert seen == [(True, b"", False), (True, b"body", False), (False, b"bo", True)]
