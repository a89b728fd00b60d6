"""Streams over a real connection, whose usual events are written past their tasks."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.http.house import House, open_house
from tests.server.apps import TinyApp
from tests.server.serving import Server, request, serving
from trioserve.engine.mailbox import Deltas
from trioserve.http.shortcut import Shortcut
from trioserve.parsers.parser import Parser

CHAT = "/v1/chat/completions"
ASKED = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 30, "stream": True, "seed": 1}


class Front(TinyApp):
    """The house, as a server serves it."""

    def __init__(self, house: House) -> None:
        super().__init__()
        self._house = house

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
        else:
            await self._house.app(scope, receive, send)


class Watched:
    """How often deltas were offered to the shortcut, and taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_taken = self.num_left = 0
        take = Shortcut.take

        def watched(shortcut: Shortcut, deltas: Deltas) -> bool:
            is_taken = take(shortcut, deltas)
            self.num_taken += is_taken
            self.num_left += not is_taken
            return is_taken

        monkeypatch.setattr(Shortcut, "take", watched)


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[tuple[House, Server]]:
    async with open_house(**settings) as house, serving(Front(house)) as server:
        yield house, server


def post(path: str, asked: dict[str, Any]) -> bytes:
    body = json.dumps(asked).encode()
    return request("POST", path, "Content-Type: application/json", f"Content-Length: {len(body)}", body=body)


async def streamed(server: Server, path: str, asked: dict[str, Any]) -> list[Any]:
    async with await server.connect() as client:
        await client.send(post(path, asked))
        text = (await client.answer(5)).body.decode()
    return [
        event[6:] if event == "data: [DONE]" else json.loads(event[6:])
        for event in text.split("\n\n")
        if event and not event.startswith(":")
    ]


def without_ids(events: list[Any]) -> list[Any]:
    changing = ("id", "created", "obfuscation")
    return [e if isinstance(e, str) else {k: v for k, v in e.items() if k not in changing} for e in events]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"n": 3},
        {"stop": ["世"]},
        {"logprobs": True, "top_logprobs": 2},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"stream_options": {"include_obfuscation": True}},
        {"return_token_ids": True},
        {"prompt_logprobs": 1},
        {"store": True},
    ],
)
async def test_both_ways_tell_the_same(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    async with served(enable_prefix_caching=False) as (house, server):
        short = await streamed(server, CHAT, ASKED | more)
        assert watched.num_taken > 10
        long = (await house.post(CHAT, ASKED | more)).events
    assert short[-1] == "[DONE]"
    assert without_ids(short) == without_ids(long)


async def test_only_the_first_and_the_last_delta_wake_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    async with served() as (_, server):
        events = await streamed(server, CHAT, ASKED)
    assert len(events) > 20
    assert watched.num_left <= 2


async def test_silence_is_counted_from_the_last_event_that_was_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch)
    async with served(step_s=0.05, sse_keep_alive_s=0.3) as (_, server), await server.connect() as client:
        await client.send(post(CHAT, ASKED | {"max_tokens": 12}))
        body = (await client.answer(5)).body
    assert watched.num_taken > 5
    assert b": keep-alive" not in body


async def test_a_parser_that_fails_ends_its_own_stream_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served() as (house, server):
        with monkeypatch.context() as patch:
            patch.setattr(Parser, "is_verbatim", property(lambda parser: 1 / 0))
            broken = await streamed(server, CHAT, ASKED)
        assert broken[-1]["error"]["code"] == "internal_error"
        assert (await streamed(server, CHAT, ASKED))[-1] == "[DONE]"
        assert house.engine.statistics().num_running == 0


async def test_a_client_that_leaves_ends_its_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    async with served() as (house, server):
        async with await server.connect() as client:
            await client.send(post(CHAT, ASKED | {"max_tokens": 200}))
            with trio.fail_after(3):
                while watched.num_taken < 5:
                    await client.stream.receive_some()
        await trio.sleep(0.1)
        assert house.engine.statistics().num_streams == 0
