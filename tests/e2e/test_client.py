"""APIClient and AsyncAPIClient against the real server."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
import trio

from tests.e2e.harness import Server
from trioserve.client import APIClient, APIError, AsyncAPIClient

CAPITAL = "What is the capital of France?"


@pytest.fixture
def api(server: Server) -> Iterator[APIClient]:
    with APIClient(server.url) as client:
        yield client


def texts_of(chunks: Iterator[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


def test_the_readme_of_lmdeploy_works(api: APIClient) -> None:
    model_name = api.available_models[0]
    messages = [{"role": "user", "content": CAPITAL}]
    answers = list(api.chat_completions_v1(model=model_name, messages=messages, temperature=0))
    assert model_name == "builtin" and len(answers) == 1
    assert answers[0]["choices"][0]["message"]["content"] == "The capital of France is Paris."
    for item in api.completions_v1(model=model_name, prompt="Hi", max_tokens=3, ignore_eos=True):
        assert item["usage"]["completion_tokens"] == 3


def test_streams_say_the_same(api: APIClient) -> None:
    ask: dict[str, Any] = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(api.chat_completions_v1("builtin", CAPITAL, **ask))
    assert texts_of(iter(chunks)) == "The capital of France is Paris."
    assert chunks[-1]["usage"]["completion_tokens"] > 5
    # long enough that the tokens do not all come while the first is being written
    long: dict[str, Any] = {"temperature": 0, "max_tokens": 80, "ignore_eos": True}
    (whole,) = api.completions_v1("builtin", "1, 2, 3,", **long)
    pieces = list(api.completions_v1("builtin", "1, 2, 3,", stream=True, **long))
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole["choices"][0]["text"]
    assert len(pieces) > 2


def test_a_wrong_field_is_named(api: APIClient) -> None:
    with pytest.raises(APIError) as caught:
        next(api.chat_completions_v1("builtin", CAPITAL, temperature=-1, stream=True))
    error = caught.value
    assert (error.status, error.param, error.type) == (400, "temperature", "invalid_request_error")
    assert error.request_id and error.request_id in str(error)


def is_busy(server: Server) -> bool:
    return bool(server.health()["num_running"] == 1)


def test_leaving_a_stream_frees_the_blocks(server: Server, api: APIClient) -> None:
    server.wait_idle()
    chunks = api.chat_completions_v1("builtin", CAPITAL, ignore_eos=True, max_tokens=8000, stream=True)
    assert texts_of(itertools.islice(chunks, 5))
    assert is_busy(server)
    chunks.close()
    server.wait_idle()
    assert api.available_models == ["builtin"], "the client can be used further"


def run_trio(work: Callable[[], Awaitable[None]]) -> None:
    trio.run(work)


def run_asyncio(work: Callable[[], Any]) -> None:
    asyncio.run(work())


@pytest.mark.parametrize("run", [run_trio, run_asyncio])
def test_the_async_client_streams_fails_and_leaves(
    server: Server, run: Callable[[Callable[[], Awaitable[None]]], None]
) -> None:
    async def work() -> None:
        async with AsyncAPIClient(server.url) as api:
            assert await api.available_models == ["builtin"]
            text = ""
            async for chunk in api.chat_completions_v1("builtin", CAPITAL, temperature=0, stream=True):
                text += texts_of(iter([chunk]))
            assert text == "The capital of France is Paris."
            with pytest.raises(APIError, match="top_p"):
                await anext(api.completions_v1("builtin", "Hi", top_p=7))
            endless = api.completions_v1("builtin", "Hi", ignore_eos=True, max_tokens=8000, stream=True)
            async with aclosing(endless) as chunks:
                await anext(chunks)
                assert is_busy(server)

    server.wait_idle()
    run(work)
    server.wait_idle()


async def test_cancelling_a_task_stops_its_answer(server: Server) -> None:
    server.wait_idle()
    async with AsyncAPIClient(server.url) as api:
        with trio.move_on_after(20) as scope:
            async for _ in api.completions_v1("builtin", "Hi", ignore_eos=True, max_tokens=8000, stream=True):
                scope.cancel()
        assert scope.cancelled_caught
        await trio.to_thread.run_sync(server.wait_idle)
        assert await api.available_models == ["builtin"]


def test_the_server_keeps_a_session_until_it_is_ended(server: Server, api: APIClient) -> None:
    ask: dict[str, Any] = {"session_id": 4711, "temperature": 0}
    assert list(api.chat(CAPITAL, **ask)) == [("The capital of France is Paris.", 10, "stop")]
    pieces = list(api.chat("And of Spain?", **ask, stream=True))
    assert "".join(text for text, _, _ in pieces) == "The capital of Spain is Madrid."
    counts = [tokens for _, tokens, _ in pieces]
    assert counts == sorted(counts) and counts[-1] > counts[0]
    assert [reason for _, _, reason in pieces] == [None] * (len(pieces) - 1) + ["stop"]

    def history_tokens() -> int:
        (answer,) = api.chat_interactive_v1("Hi", **ask, interactive_mode=True, request_output_len=1)
        return int(answer["history_tokens"])

    assert history_tokens() > 30
    api.end_session(4711)
    assert history_tokens() == 0
    api.end_session(4711)
    server.wait_idle()


def test_leaving_a_turn_of_a_session_frees_the_blocks(server: Server, api: APIClient) -> None:
    server.wait_idle()
    turn = api.chat("Hello", 4712, 8000, stream=True, ignore_eos=True)
    assert next(turn)[2] is None
    assert is_busy(server)
    turn.close()
    server.wait_idle()
    api.end_session(4712)


def test_a_wrong_field_of_a_session_is_named(api: APIClient) -> None:
    with pytest.raises(APIError) as caught:
        next(api.chat("Hello", 4713, top_p=7))
    assert (caught.value.status, caught.value.param) == (400, "top_p")
    with pytest.raises(APIError, match="session_id"):
        next(api.chat_interactive_v1("Hello", cancel=True))


async def test_a_session_of_the_async_client(server: Server) -> None:
    async with AsyncAPIClient(server.url) as api:
        turn = api.chat(CAPITAL, 4714, stream=True, temperature=0)
        texts = [text async for text, _, _ in turn]
        assert "".join(texts) == "The capital of France is Paris."
        await api.end_session(4714)


def test_token_ids_are_those_of_the_model(api: APIClient) -> None:
    ids, length = api.encode("The capital of France")
    assert length == len(ids) > 0
    (answer,) = api.completions_v1("builtin", ids, max_tokens=1)
    assert answer["usage"]["prompt_tokens"] == length
    lists, lengths = api.encode(["The capital of France", "Hi"])
    assert lists[0] == ids and lengths == [length, len(lists[1])]
    assert api.encode("Hi", do_preprocess=True)[1] > lengths[1]


async def test_token_ids_of_the_async_client(server: Server) -> None:
    async with AsyncAPIClient(server.url) as api:
        ids, length = await api.encode("The capital of France")
        assert len(ids) == length > 0
