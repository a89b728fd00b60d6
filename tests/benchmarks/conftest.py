"""A scripted server and a driver for it, both in the nursery of the test."""

import socket
from collections.abc import Callable

import pytest
import trio

from benchmarks.load.drive import Driver
from benchmarks.load.prompts import Lengths, PromptMaker
from benchmarks.load.wire import Client, Hub
from tests.benchmarks.scripted_server import serve_scripted

MakeDriver = Callable[..., Driver]


@pytest.fixture
async def url(nursery: trio.Nursery) -> str:
    (url,) = await nursery.start(serve_scripted)
    assert isinstance(url, str)
    return url


@pytest.fixture
async def hub(nursery: trio.Nursery) -> Hub:
    hub = Hub()
    nursery.start_soon(hub.run)
    return hub


@pytest.fixture
async def make_driver(hub: Hub, url: str) -> MakeDriver:
    def make(
        *,
        endpoint: str = "chat",
        output_tokens: str = "8",
        timeout_s: float = 5,
        at: str = url,
        **fields: object,
    ) -> Driver:
        prompts = PromptMaker(1, endpoint, Lengths.parse("40"), Lengths.parse(output_tokens), 0, fields)
        return Driver(Client(hub, at), prompts, timeout_s)

    return make


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port
