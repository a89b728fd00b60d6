"""Chat and completions through the OpenAI SDK, sync and async, streamed and not."""

import asyncio
from typing import Any

import openai
import pytest
import trio

from tests.e2e.harness import Server

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me a short story."}]


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    """A chat completion, whole or as a stream; the fields are what the test is about."""
    return client.chat.completions.create(**{"model": "builtin", **fields})


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    """A completion, whole or as a stream."""
    return client.completions.create(**{"model": "builtin", **fields})


def test_the_model_answers(client: openai.OpenAI) -> None:
    answer = chat(client, messages=CAPITAL, temperature=0)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert "Paris" in (choice.message.content or "")
    assert choice.finish_reason == "stop"
    assert (
        answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == "builtin"
    )
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


def test_three_countries_and_their_capitals(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "List 3 countries and their capitals."}]
    answer = chat(client, messages=messages, temperature=0)
    lines = [line for line in (answer.choices[0].message.content or "").splitlines() if line.strip()]
    assert len(lines) >= 3, answer.choices[0].message.content


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, n: int, temperature: float) -> None:
    asked = {
        "messages": STORY,
        "temperature": temperature,
        "seed": 7,
        "n": n,
        "max_tokens": 40,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = chat(client, **asked)
    stream = chat(client, **asked, stream=True, stream_options={"include_usage": True})
    texts, reasons, roles, usages = [""] * n, [""] * n, [0] * n, []
    tokens: list[list[Any]] = [[] for _ in range(n)]
    for chunk in stream:
        assert (chunk.usage is None) == bool(chunk.choices)
        usages += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role == "assistant"
            tokens[choice.index] += choice.logprobs.content if choice.logprobs else []
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert roles == [1] * n
    assert [[entry.token for entry in list_] for list_ in tokens] == [
        [entry.token for entry in choice.logprobs.content] for choice in whole.choices
    ]
    assert [usage.completion_tokens for usage in usages] == [whole.usage.completion_tokens]
    assert all(len(entry.top_logprobs) == 2 for list_ in tokens for entry in list_)


def test_choices_of_one_request_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    def ask(seed: int) -> list[str | None]:
        answer = chat(
            client,
            messages=STORY,
            temperature=1.5,
            seed=seed,
            n=4,
            max_tokens=24,
        )
        return [choice.message.content for choice in answer.choices]

    first = ask(1)
    assert len(set(first)) > 1
    assert ask(1) == first
    assert ask(2) != first


def test_a_stop_string_ends_the_text_and_is_not_in_it(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Count from 1 to 20."}]
    whole = chat(client, messages=messages, temperature=0)
    text = whole.choices[0].message.content or ""
    stop = text[10:14]
    cut = chat(client, model="builtin", messages=messages, temperature=0, stop=[stop, "zzz"])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    stream = chat(
        client,
        messages=messages,
        temperature=0,
        stop=stop,
        stream=True,
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == cut.choices[0].message.content


def test_a_prompt_seen_before_is_found_in_the_cache(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Tell me about the prefix cache. " * 20}]
    ask = {"messages": messages, "max_tokens": 1}
    chat(client, **ask)
    again = chat(client, **ask)
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert again.usage.prompt_tokens - 16 <= cached < again.usage.prompt_tokens
    salted = chat(client, **ask, extra_body={"cache_salt": "someone else"})
    assert salted.usage.prompt_tokens_details.cached_tokens == 0


def test_logprobs_are_those_of_the_likeliest(client: openai.OpenAI) -> None:
    answer = chat(
        client,
        messages=CAPITAL,
        temperature=0,
        logprobs=True,
        top_logprobs=5,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs.content
    for entry in logprobs.content:
        assert entry.token == entry.top_logprobs[0].token
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True) and values[0] == entry.logprob <= 0
        assert bytes(entry.bytes or []).decode(errors="replace") == entry.token
    assert "".join(entry.token for entry in logprobs.content).startswith(
        answer.choices[0].message.content or ""
    )


def test_a_logit_bias_is_obeyed(client: openai.OpenAI) -> None:
    ask = {"prompt": "Hello", "max_tokens": 4, "temperature": 0, "logprobs": 1}
    free = complete(client, **ask)
    forced = complete(client, **ask, logit_bias={"70": 100})
    assert len(set(forced.choices[0].logprobs.tokens)) == 1
    banned = complete(client, **ask, logit_bias={"70": -100})
    assert banned.choices[0].logprobs.tokens == free.choices[0].logprobs.tokens


def test_completions_of_several_prompts_keep_their_order(client: openai.OpenAI) -> None:
    prompts = ["The capital of France is", "1, 2, 3,", "Hello"]
    ask = {"prompt": prompts, "max_tokens": 6, "temperature": 0, "n": 2}
    whole = complete(client, **ask)
    assert [choice.index for choice in whole.choices] == list(range(6))
    texts = [""] * 6
    for chunk in complete(client, **ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    single = complete(client, prompt=prompts[1], max_tokens=6, temperature=0)
    assert texts[2] == texts[3] == single.choices[0].text


def test_token_ids_are_a_prompt_too(client: openai.OpenAI) -> None:
    answer = complete(client, prompt=[50, 51, 52], max_tokens=2)
    assert answer.usage.prompt_tokens == 3


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["builtin"]
    assert client.models.retrieve("builtin").id == "builtin"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"9999999": 1}}, "logit_bias"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"stop": [str(i) for i in range(17)]}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x " * 9000}]}, None),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"modalities": ["audio"]}, "modalities"),
    ],
)
def test_a_bad_field_is_a_400_that_names_it(
    client: openai.OpenAI, fields: dict[str, object], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **{"messages": CAPITAL, **fields})
    assert (caught.value.param or "").startswith(param or "")
    assert caught.value.type == "invalid_request_error"


def test_more_tokens_than_there_is_room_for_are_clamped(client: openai.OpenAI) -> None:
    prompt = [60] * 8185
    answer = complete(
        client, model="builtin", prompt=prompt, max_tokens=8000, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 8192


def test_min_tokens_and_ignore_eos_keep_the_model_going(client: openai.OpenAI) -> None:
    ask = {"messages": CAPITAL, "temperature": 0, "max_tokens": 60}
    short = chat(client, **ask)
    assert short.usage.completion_tokens < 40
    longer = chat(client, **ask, extra_body={"min_tokens": 45})
    assert longer.usage.completion_tokens >= 45
    longest = chat(client, **ask, extra_body={"ignore_eos": True})
    assert (longest.usage.completion_tokens, longest.choices[0].finish_reason) == (60, "length")


async def test_the_async_client_streams_many_at_once(server: Server) -> None:
    """The SDK's async client needs asyncio, so it runs in a thread of its own."""

    async def ask(client: openai.AsyncOpenAI, i: int) -> str:
        stream = await client.chat.completions.create(
            model="builtin",
            messages=[{"role": "user", "content": f"What is {i} + {i}?"}],
            temperature=0,
            stream=True,
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, i) for i in range(10, 42)))

    answers = await trio.to_thread.run_sync(lambda: asyncio.run(ask_all()))
    right = sum(str(2 * i) in answer for i, answer in zip(range(10, 42), answers, strict=True))
    assert right >= 30, answers
