"""Logprobs of prompts through the application, on both endpoints."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.answers import assembled, reduced
from tests.http.house import House, open_house, recited
from trioserve.core.delta import TokenLogprob, TopToken
from trioserve.http import writer as writer_module
from trioserve.http.chat import ChatWriter
from trioserve.http.completions import CompletionWriter, _Prompt
from trioserve.http.event_writer import PromptPart
from trioserve.http.exchange import Exchange
from trioserve.http.reading import reading_of
from trioserve.protocol.chat import ChatCompletionRequest
from trioserve.protocol.completion import CompletionRequest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": list(range(17)), "prompt_logprobs": 2, "n": 2}),
        (
            CHAT,
            {"messages": list(range(17)), "prompt_logprobs": 0, "return_token_ids": True, "logprobs": True},
        ),
        (TEXT, {"prompt": ["abc", "üx"], "prompt_logprobs": 1, "n": 2}),
        (TEXT, {"prompt": ["abc", "üx"], "echo": True, "logprobs": 2, "return_token_ids": True}),
        (TEXT, {"prompt": ["abc", "d"], "echo": True, "logprobs": 1, "prompt_logprobs": 2, "max_tokens": 0}),
    ],
)
async def test_streamed_equals_whole(path: str, fields: dict[str, Any], autojump_clock: MockClock) -> None:
    body = {"max_tokens": 5, **fields}
    async with open_house() as house:
        whole = await house.json(path, {**body, "cache_salt": "a"})
        options = {"include_usage": True}
        events = await house.events(path, {**body, "cache_salt": "b", "stream_options": options})
    assert assembled(events) == reduced(whole)


async def test_they_have_vllms_form_in_vllms_places(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.json(CHAT, {"messages": [5, 40, 41], "prompt_logprobs": 1, "max_tokens": 1})
        *chunks, _ = await house.events(
            CHAT, {"messages": [5, 40, 41], "prompt_logprobs": 1, "max_tokens": 1}
        )
        text = await house.json(TEXT, {"prompt": [5, 40, 41], "prompt_logprobs": 1, "max_tokens": 1})
    first, second, third = chat["prompt_logprobs"]
    assert first is None
    assert set(second) == {"40", "41"}
    assert second["40"]["logprob"] == pytest.approx(-4.0)
    assert second["40"]["rank"] == 41, "its true place, though it is none of the likeliest"
    assert (second["41"]["logprob"], second["41"]["rank"]) == (-1.0, 1)
    assert set(third) == {"41", "42"}
    assert text["choices"][0]["prompt_logprobs"] == chat["prompt_logprobs"]
    assert chunks[0]["prompt_logprobs"] == chat["prompt_logprobs"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("prompt_logprobs" not in chunk for chunk in chunks[1:])


async def test_an_echo_with_logprobs_scores_the_prompt(autojump_clock: MockClock) -> None:
    """As lm-eval-harness asks: what each token of the prompt was worth, and whether it was the likeliest."""
    async with open_house() as house:
        body = {"prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 1}
        choice = (await house.json(TEXT, body))["choices"][0]
        only = (await house.json(TEXT, {**body, "max_tokens": 0}))["choices"][0]
        ids = house.services.model.renderer.tokenizer.encode("abc", add_special_tokens=False)
    logprobs = choice["logprobs"]
    assert choice["text"] == "abc" + recited(3, 1)
    assert logprobs["tokens"][:3] == ["a", "b", "c"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:] == pytest.approx([-ids[1] / 10, -ids[2] / 10, -0.5])
    assert logprobs["text_offset"] == [0, 1, 2, 3]
    assert {name: values[:3] for name, values in logprobs.items()} == only["logprobs"]


# ---- long prompts ----------------------------------------------------------------------------------------------------

LONG = 3000
TOP = 20


def found_of_a_long_prompt() -> PromptPart:
    top = tuple(TopToken(i, b"x", -1.0 - i) for i in range(TOP))
    return [None, *(TokenLogprob(i % 250, b"y", -2.0, top, 5) for i in range(1, LONG))]


def writer_of(house: House, path: str) -> ChatWriter | CompletionWriter:
    ids = [i % 250 for i in range(LONG)]
    served, settings = house.services.model, house.services.settings
    if path == CHAT:
        chat = Exchange(
            ChatCompletionRequest(messages=ids, prompt_logprobs=TOP), served, settings, started_at=0.0
        )
        return ChatWriter(chat, chat.heading("x"), [ids], reading_of(chat.asked, None, chat.served, ids))
    text = Exchange(CompletionRequest(prompt=ids, echo=True, logprobs=TOP), served, settings, started_at=0.0)
    return CompletionWriter(text, [_Prompt(ids, "y" * LONG)])


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_others_run_while_the_logprobs_of_a_long_prompt_are_written(path: str) -> None:
    """Between any two of their turns come some two thousand numbers, however long the prompt is."""
    turns = 0

    async def other_client() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with open_house() as house, trio.open_nursery() as nursery:
        writer = writer_of(house, path)
        nursery.start_soon(other_client)
        await trio.lowlevel.checkpoint()
        before = turns
        await writer.read_prompt(0, found_of_a_long_prompt())
        assert turns - before >= LONG * (1 + TOP) // writer_module._VALUES_AT_A_TIME
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"messages": list(range(50)), "prompt_logprobs": 1, "n": 2}, "prompt_logprobs"),
        (TEXT, {"prompt": ["a" * 50, "b" * 50], "prompt_logprobs": 1}, "prompt_logprobs"),
        (TEXT, {"prompt": "a" * 50, "echo": True, "logprobs": 3}, "logprobs"),
        (TEXT, {"prompt": "a" * 50, "echo": True, "logprobs": 0, "best_of": 4}, "logprobs"),
    ],
)
async def test_there_is_a_bound_on_what_one_request_may_ask_of_prompts(
    path: str, fields: dict[str, Any], param: str, autojump_clock: MockClock
) -> None:
    async with open_house(max_prompt_logprob_values=199) as house:
        answer = await house.post(path, {"max_tokens": 1, **fields})
        assert answer.status == 400
        assert answer.error["param"] == param
        assert "at most max_prompt_logprob_values = 199" in answer.error["message"]
        assert answer.error["message"].count(" 200 ") == 1
        await house.json(path, {"max_tokens": 1, **fields, param: None})
