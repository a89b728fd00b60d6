"""Thinking through the OpenAI SDK and plain HTTP: told apart from the answer, bounded, counted, switched on and off."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.harness import Server
from tests.e2e.test_tools import CHAT, RAIN, TOOLS, chunks_of, summed, told, user, whole

FRANCE = user("What is the capital of France?")
SUM = user("What is 47 + 38?")


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def message_of(http: httpx.Client, **body: Any) -> Any:
    return whole(http, **{"messages": FRANCE, **body})["choices"][0]["message"]


def test_the_sdk_finds_the_thinking_beside_the_answer(client: openai.OpenAI) -> None:
    ask: Any = client.chat.completions.create
    asked = {"model": "builtin", "messages": FRANCE, "temperature": 0, "reasoning_effort": "low"}
    answer = ask(**asked)
    message = answer.choices[0].message
    assert message.reasoning and message.reasoning == message.reasoning_content
    assert "Paris" in message.content and "think>" not in message.content + message.reasoning
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens
    thought = said = ""
    for chunk in ask(**asked, stream=True):
        delta = chunk.choices[0].delta
        thought += getattr(delta, "reasoning_content", None) or ""
        said += delta.content or ""
        assert not (said and getattr(delta, "reasoning_content", None))
    assert (thought, said) == (message.reasoning, message.content)


def test_the_helper_gathers_content_and_leaves_thinking_where_it_is(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="builtin", messages=FRANCE, temperature=0, extra_body={"enable_thinking": True}
    ) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        final: Any = stream.get_final_completion().choices[0].message
    assert said == final.content and "Paris" in said
    assert final.reasoning_content == final.reasoning


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, True),
        ({"enable_thinking": True}, True),
        ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"}, True),
        ({"enable_thinking": False, "reasoning_effort": "high"}, False),
    ],
)
def test_thinking_is_switched_on_and_off(http: httpx.Client, fields: dict[str, Any], thinks: bool) -> None:
    message = message_of(http, **fields)
    assert bool(message["reasoning"]) == thinks
    assert "Paris" in message["content"]


def test_thinking_may_be_left_out_or_left_in(http: httpx.Client) -> None:
    full = message_of(http, enable_thinking=True)
    hidden = message_of(http, enable_thinking=True, include_reasoning=False)
    raw = message_of(http, enable_thinking=True, separate_reasoning=False)
    assert hidden["content"] == full["content"] and "reasoning" not in hidden
    assert raw["content"] == f"{full['reasoning']}\n</think>\n\n{full['content']}"
    in_one = chunks_of(http, messages=FRANCE, enable_thinking=True, stream_reasoning=False)
    parts = [chunk["choices"][0]["delta"].get("reasoning") for chunk in in_one]
    assert [part for part in parts if part] == [full["reasoning"]]


@pytest.mark.parametrize("name", ["reasoning_max_tokens", "thinking_budget", "thinking_token_budget"])
def test_a_budget_ends_the_thinking_and_the_answer_goes_on(http: httpx.Client, name: str) -> None:
    free = whole(http, messages=SUM, enable_thinking=True)
    num_free = free["usage"]["completion_tokens_details"]["reasoning_tokens"]
    for budget in (0, 4):
        answer = whole(http, messages=SUM, enable_thinking=True, max_tokens=80, **{name: budget})
        message = answer["choices"][0]["message"]
        spent = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
        assert budget <= spent < num_free
        assert free["choices"][0]["message"]["reasoning"].startswith(message["reasoning"] or "")
        assert message["content"]
    ample = whole(http, messages=SUM, enable_thinking=True, **{name: 500})
    assert told(ample["choices"][0]) == told(free["choices"][0])


def test_fastdeploys_argument_is_a_budget_too(http: httpx.Client) -> None:
    arguments = {"thinking_budget": 4}
    body = {"messages": SUM, "enable_thinking": True, "max_tokens": 80}
    assert told(whole(http, **body, logits_processors_args=arguments)["choices"][0]) == told(
        whole(http, **body, thinking_budget=4)["choices"][0]
    )


def test_calls_and_forms_begin_behind_the_thinking(http: httpx.Client) -> None:
    called = message_of(http, messages=user(RAIN), tools=TOOLS, enable_thinking=True)
    assert called["reasoning"] and called["tool_calls"] and called["content"] is None
    required = {"tools": TOOLS, "tool_choice": "required", "thinking_budget": 4, "max_tokens": 200}
    message = message_of(http, messages=user(RAIN), enable_thinking=True, **required)
    assert message["reasoning"] and message["tool_calls"]
    formed = message_of(http, enable_thinking=True, guided_choice=["Paris", "Rome"])
    assert formed["reasoning"] and formed["content"] in ("Paris", "Rome")
    plain = message_of(http, guided_choice=["Paris", "Rome"])
    assert plain["reasoning"] is None and plain["content"] in ("Paris", "Rome")


def test_a_stream_that_is_cut_while_it_thinks_has_no_content(http: httpx.Client) -> None:
    body = {"messages": SUM, "enable_thinking": True, "max_tokens": 5, "logprobs": True}
    choice = whole(http, **body)["choices"][0]
    chunks = chunks_of(http, **body)
    assert choice["finish_reason"] == "length" and choice["message"]["content"] == ""
    assert summed(chunks, 0) == told(choice)
    entries = [
        e for c in chunks for each in c["choices"] if each["logprobs"] for e in each["logprobs"]["content"]
    ]
    assert entries == choice["logprobs"]["content"] and len(entries) == 5


def test_what_was_thought_is_sent_back_by_either_name(http: httpx.Client) -> None:
    """The template leaves the thoughts of earlier turns out, and shows those since the user's last words."""
    call = {"id": "c", "type": "function", "function": {"name": "kolu_meva", "arguments": "{}"}}
    prompts = []
    for thought in ({}, {"reasoning": "Hm."}, {"reasoning_content": "Hm."}):
        messages = [
            *user(RAIN),
            {"role": "assistant", "content": None, "tool_calls": [call], **thought},
            {"role": "tool", "tool_call_id": "c", "content": "21 degrees, sunny"},
        ]
        body = {"messages": messages, "tools": TOOLS, "max_tokens": 1}
        prompts.append(whole(http, **body)["usage"]["prompt_tokens"])
    assert prompts[1] == prompts[2] > prompts[0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "most"}, "reasoning_effort"),
        ({"thinking_budget": 5, "reasoning_max_tokens": 6}, "thinking_budget"),
        ({"reasoning_max_tokens": -1}, "reasoning_max_tokens"),
        ({"logits_processors_args": {"x": 1}}, "logits_processors_args.x"),
    ],
)
def test_what_cannot_be_thought_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    answer = http.post(CHAT, json={"messages": FRANCE, **fields})
    assert answer.status_code == 400
    assert json.loads(answer.content)["error"]["param"] == param
