"""Tools through the OpenAI SDK and plain HTTP: the built-in model calls what it is offered, by names it never saw."""

import asyncio
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema_rs
import openai
import pytest

from tests.e2e.harness import Server
from trioserve.builtin.corpus.draw import Draw
from trioserve.builtin.corpus.tools import tool_use

CHAT = "/v1/chat/completions"


def function(name: str, description: str, **properties: str) -> Any:
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": schema},
    }


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


WEATHER = function("kolu_meva", "Get the weather in a city", town="string")
ADD = function("rasi_beto", "Add two numbers", first="integer", second="integer")
SEARCH = function("get_fano", "Search the web", query="string")
TOOLS = [WEATHER, ADD, SEARCH]
RAIN = "What is the weather in Rome?"
STORY = "Tell me a short story."
NUM_HELD_OUT = 40


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def whole(http: httpx.Client, **body: Any) -> Any:
    answer = http.post(CHAT, json={"temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def chunks_of(http: httpx.Client, **body: Any) -> list[Any]:
    with http.stream("POST", CHAT, json={"temperature": 0, **body, "stream": True}) as answer:
        assert answer.status_code == 200
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def calls_of(message: Any) -> list[tuple[str, Any]]:
    """The functions that a message of the SDK calls."""
    made = message.tool_calls or []
    return [(each.function.name, json.loads(each.function.arguments)) for each in made]


# ---- the model chooses -----------------------------------------------------------------------------------------------


def answers_to_held_out_requests(
    http: httpx.Client, num_tools: int, **fields: Any
) -> list[tuple[Any, list[Any], Any]]:
    """What was expected, the tools and the choice, for each of some requests that the model was not trained on."""

    def ask(seed: int) -> tuple[Any, list[Any], Any]:
        messages, tools = tool_use(Draw(random.Random(seed), held_out=True), num_tools=num_tools)
        expected = [call["function"] for call in messages[1]["tool_calls"]]
        return expected, tools, whole(http, messages=messages[:1], tools=tools, **fields)["choices"][0]

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, range(NUM_HELD_OUT)))


def made_calls(choice: Any) -> list[Any]:
    return [
        {"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])}
        for call in choice["message"].get("tool_calls", [])
    ]


@pytest.mark.parametrize("num_tools", [1, 2])
def test_tools_that_the_model_never_saw_are_called_as_they_should(http: httpx.Client, num_tools: int) -> None:
    num_right = 0
    for expected, _, choice in answers_to_held_out_requests(http, num_tools):
        made = made_calls(choice)
        assert (choice["finish_reason"] == "tool_calls") == bool(made)
        num_right += made == expected
    assert num_right >= 0.9 * NUM_HELD_OUT


@pytest.mark.parametrize("num_tools", [1, 2])
def test_every_required_call_is_valid(http: httpx.Client, num_tools: int) -> None:
    for _, tools, choice in answers_to_held_out_requests(http, num_tools, tool_choice="required"):
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        made = made_calls(choice)
        assert made and choice["finish_reason"] == "tool_calls"
        for call in made:
            jsonschema_rs.validate(schemas[call["name"]], call["arguments"])


def test_a_call_its_result_and_the_answer(client: openai.OpenAI) -> None:
    ask: Any = client.chat.completions.create
    messages: list[Any] = user(RAIN)
    first = ask(model="builtin", messages=messages, tools=TOOLS[:2], temperature=0).choices[0]
    assert first.finish_reason == "tool_calls"
    assert calls_of(first.message) == [("kolu_meva", {"town": "Rome"})]
    assert first.message.content is None
    result = {
        "role": "tool",
        "tool_call_id": first.message.tool_calls[0].id,
        "content": '{"temperature": 21, "condition": "sunny"}',
    }
    second = ask(
        model="builtin", messages=[*messages, first.message, result], tools=TOOLS[:2], temperature=0
    ).choices[0]
    assert second.finish_reason == "stop" and not second.message.tool_calls
    assert "21" in second.message.content and "sunny" in second.message.content


def test_several_calls_in_one_answer_and_only_one_where_that_is_asked_for(http: httpx.Client) -> None:
    asked = {"messages": user("What is the weather in Paris and Rome?"), "tools": [WEATHER]}
    both = whole(http, **asked)["choices"][0]
    one = whole(http, **asked, parallel_tool_calls=False)["choices"][0]
    assert [json.loads(call["function"]["arguments"]) for call in both["message"]["tool_calls"]] == [
        {"town": "Paris"},
        {"town": "Rome"},
    ]
    assert len({call["id"] for call in both["message"]["tool_calls"]}) == 2
    assert len(one["message"]["tool_calls"]) == 1
    assert both["finish_reason"] == one["finish_reason"] == "tool_calls"


def test_nothing_is_called_where_the_client_forbids_it(http: httpx.Client) -> None:
    body = {"messages": user(RAIN), "tools": TOOLS}
    message = whole(http, **body, tool_choice="none")["choices"][0]["message"]
    assert message == whole(http, messages=user(RAIN))["choices"][0]["message"]


# ---- a call is required ----------------------------------------------------------------------------------------------


def name_of(tool: Any) -> Any:
    return {"type": tool["type"], tool["type"]: {"name": tool[tool["type"]]["name"]}}


def schema_holds(call: dict[str, Any]) -> bool:
    """Whether the arguments are what the tool of that name takes."""
    (tool,) = (each for each in TOOLS if each["function"]["name"] == call["function"]["name"])
    kinds = {"string": str, "integer": int}
    arguments = json.loads(call["function"]["arguments"])
    properties = tool["function"]["parameters"]["properties"]
    return arguments.keys() == properties.keys() and all(
        type(arguments[name]) is kinds[schema["type"]] for name, schema in properties.items()
    )


def test_a_required_call_comes_whatever_was_said(http: httpx.Client) -> None:
    body = {"messages": user(STORY), "tools": TOOLS, "tool_choice": "required", "max_tokens": 300}
    asked = {**body, "temperature": 1.3, "n": 12, "seed": 3}
    for choice in whole(http, **asked)["choices"]:
        assert choice["message"]["content"] is None
        calls = choice["message"]["tool_calls"]
        if choice["finish_reason"] == "length":
            calls.pop()
            continue
        assert choice["finish_reason"] == "tool_calls" and calls
        assert all(map(schema_holds, calls))
    single = whole(http, **asked, parallel_tool_calls=False)["choices"]
    assert all(len(choice["message"]["tool_calls"]) == 1 for choice in single)


def test_a_named_function_is_called_and_no_other(client: openai.OpenAI) -> None:
    for tool in TOOLS:
        answer = client.chat.completions.create(
            model="builtin",
            messages=user(STORY),
            tools=TOOLS,
            tool_choice=name_of(tool),
            max_tokens=200,
            temperature=1,
            seed=1,
        )
        choice = answer.choices[0]
        ((name, _),) = calls_of(choice.message)
        assert name == tool["function"]["name"] and choice.finish_reason == "stop"


def test_only_allowed_tools_are_called(http: httpx.Client) -> None:
    for mode in ("auto", "required"):
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [name_of(ADD)]}}
        message = whole(http, messages=user(RAIN), tools=TOOLS, tool_choice=choice)["choices"][0]["message"]
        made = message.get("tool_calls", [])
        assert all(call["function"]["name"] == "rasi_beto" and schema_holds(call) for call in made)
        assert made or mode == "auto"


def test_a_strict_tool_is_called_by_its_schema_where_the_model_chooses(http: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"town": {"type": "string", "enum": ["OSLO", "CAIRO"]}},
        "required": ["town"],
        "additionalProperties": False,
    }
    tool = {**WEATHER, "function": {**WEATHER["function"], "strict": True, "parameters": schema}}
    message = whole(http, messages=user(RAIN), tools=[tool])["choices"][0]["message"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"])["town"] in ("OSLO", "CAIRO")
    unneeded = whole(http, messages=user("What is the capital of France?"), tools=[tool])["choices"][0]
    assert "Paris" in unneeded["message"]["content"]


def test_json_is_written_where_nothing_is_called(http: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"tools": [WEATHER], "response_format": form, "max_tokens": 200}
    called = whole(http, messages=user(RAIN), **body)["choices"][0]["message"]
    assert called["tool_calls"][0]["function"]["name"] == "kolu_meva"
    said = whole(http, messages=user("What is the capital of France?"), **body)["choices"][0]["message"]
    assert said["content"] is None or list(json.loads(said["content"])) == ["city"]


def test_custom_tools_take_texts_of_any_form_and_of_theirs(http: httpx.Client) -> None:
    def draw(format_: Any = None) -> Any:
        return {"type": "custom", "custom": {"name": "tab_loki", "description": "Handle tab_loki", **format_}}

    def grammar(syntax: str, definition: str) -> Any:
        return {"format": {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}}

    asked = {
        "messages": user("Could you use tab_loki on apple?"),
        "tool_choice": "required",
        "max_tokens": 100,
    }
    for format_, allowed in (
        ({}, None),
        ({"format": {"type": "text"}}, None),
        (grammar("regex", "(red|blue)"), {"red", "blue"}),
        (grammar("lark", 'start: ("mul" | "add") " " ("1" | "2")'), {"mul 1", "mul 2", "add 1", "add 2"}),
    ):
        choice = whole(http, **asked, tools=[draw(format_)])["choices"][0]
        (made,) = choice["message"]["tool_calls"]
        assert (made["type"], made["custom"]["name"]) == ("custom", "tab_loki")
        assert allowed is None or made["custom"]["input"] in allowed
        parts = [
            part["custom"]
            for chunk in chunks_of(http, **asked, tools=[draw(format_)])
            for choice in chunk["choices"]
            for part in choice["delta"].get("tool_calls", [])
        ]
        assert "".join(part["input"] for part in parts) == made["custom"]["input"]
        assert [part["name"] for part in parts if "name" in part] == ["tab_loki"]


# ---- streams ---------------------------------------------------------------------------------------------------------


def told(choice: Any) -> Any:
    """A choice of a whole answer, ids of calls left out."""
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls", [])]
    return message["content"] or "", message["reasoning"] or "", calls, choice["finish_reason"]


def summed(chunks: list[Any], index: int) -> Any:
    """The same of a stream's choice."""
    content = reasoning = reason = ""
    calls: list[dict[str, str]] = []
    for chunk in chunks:
        for choice in (each for each in chunk["choices"] if each["index"] == index):
            delta = choice["delta"]
            content += delta.get("content") or ""
            reasoning += delta.get("reasoning") or ""
            for part in delta.get("tool_calls", []):
                if "id" in part:
                    assert part["index"] == len(calls) and part["id"].startswith("call_")
                    calls.append({"name": part["function"]["name"], "arguments": ""})
                calls[part["index"]]["arguments"] += part["function"]["arguments"]
            reason = choice["finish_reason"] or reason
    return content, reasoning, calls, reason


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize(
    "fields",
    [{}, {"tool_choice": "required"}, {"max_tokens": 30}, {"n": 2, "temperature": 1.0, "seed": 5}],
    ids=str,
)
def test_a_stream_says_what_the_whole_answer_says(
    http: httpx.Client, fields: dict[str, Any], thinks: bool
) -> None:
    for question in ("What is the weather in Paris and Rome?", "Who are you?"):
        body = {
            "messages": user(question),
            "tools": TOOLS,
            "enable_thinking": thinks,
            "max_tokens": 150,
            **fields,
        }
        answer = whole(http, **body)
        chunks = chunks_of(http, **body)
        for choice in answer["choices"]:
            assert summed(chunks, choice["index"]) == told(choice)


def test_a_call_that_is_cut_ends_with_length(http: httpx.Client) -> None:
    body = {"messages": user(RAIN), "tools": TOOLS}
    complete = whole(http, **body)
    (made,) = complete["choices"][0]["message"]["tool_calls"]
    num_tokens = complete["usage"]["completion_tokens"]
    for max_tokens in range(1, num_tokens - 4, 4):
        for extra in ({}, {"tool_choice": "required"}):
            choice = whole(http, **body, **extra, max_tokens=max_tokens)["choices"][0]
            assert choice["finish_reason"] == "length"
            for cut in choice["message"].get("tool_calls", []):
                assert made["function"]["arguments"].startswith(cut["function"]["arguments"])


def test_the_sdks_helper_tells_arguments_as_they_come(client: openai.OpenAI) -> None:
    tool: Any = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    with client.chat.completions.stream(
        model="builtin", messages=user(RAIN), tools=[tool], temperature=0
    ) as stream:
        events = [event for event in stream if event.type.startswith("tool_calls")]
        final = stream.get_final_completion()
    deltas = [
        event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta"
    ]
    done: Any = events[-1]
    assert done.type == "tool_calls.function.arguments.done"
    assert (done.name, done.arguments, done.parsed_arguments) == (
        "kolu_meva",
        "".join(deltas),
        {"town": "Rome"},
    )
    assert len(deltas) > 2
    assert final.choices[0].finish_reason == "tool_calls"
    assert calls_of(final.choices[0].message) == [("kolu_meva", {"town": "Rome"})]


def test_the_async_client_and_raw_responses_find_calls_too(server: Server) -> None:
    async def ask() -> tuple[Any, str, list[Any]]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none") as client:
            create: Any = client.chat.completions.with_raw_response.create
            raw = await create(model="builtin", messages=user(RAIN), tools=TOOLS, temperature=0)
            stream: Any = await client.chat.completions.create(
                model="builtin", messages=user(RAIN), tools=TOOLS, temperature=0, stream=True
            )
            return raw.parse(), raw.headers["x-request-id"], [chunk async for chunk in stream]

    answer, request_id, chunks = asyncio.run(ask())
    assert request_id and calls_of(answer.choices[0].message) == [("kolu_meva", {"town": "Rome"})]
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    assert json.loads("".join(part.function.arguments for part in parts)) == {"town": "Rome"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_stored_answers_and_their_conversations_keep_their_calls(http: httpx.Client) -> None:
    made = {"id": "c", "type": "function", "function": {"name": "kolu_meva", "arguments": '{"town": "Oslo"}'}}
    messages = [
        *user("What is the weather in Oslo?"),
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "c", "content": "3 degrees, snowy"},
        *user(RAIN),
    ]
    chunks = chunks_of(http, messages=messages, tools=TOOLS, tool_choice="required", store=True)
    stored = http.get(f"{CHAT}/{chunks[0]['id']}").json()
    assert told(stored["choices"][0]) == summed(chunks, 0)
    kept = http.get(f"{CHAT}/{chunks[0]['id']}/messages").json()["data"]
    assert kept[1]["tool_calls"] == [made] and kept[2]["tool_call_id"] == "c"


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools.1.function.name"),
        ({"tools": TOOLS, "tool_choice": name_of(function("x", ""))}, "tool_choice.function.name"),
        ({"tools": [function("x" * 65, "")]}, "tools.0.function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": TOOLS, "guided_regex": "x"}, "guided_regex"),
        ({"functions": [WEATHER["function"]]}, "functions"),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/nowhere"}}}
                ],
                "tool_choice": "required",
            },
            "tools.0.function.parameters",
        ),
    ],
)
def test_what_cannot_be_done_with_tools_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    answer = http.post(CHAT, json={"messages": user(RAIN), **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
