"""Tools and thinking in requests: what is offered, what is refused and by which path."""

import json
from typing import Any

import pytest

from trioserve.errors import RequestError
from trioserve.protocol.chat import ChatCompletionRequest
from trioserve.protocol.common import parse
from trioserve.protocol.tools import ToolOffer
from trioserve.settings import LimitSettings

USER = {"role": "user", "content": "hi"}


def function(name: str = "look", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def custom(name: str = "draw", **fields: Any) -> dict[str, Any]:
    return {"type": "custom", "custom": {"name": name, **fields}}


def chat(limits: LimitSettings | None = None, **fields: Any) -> ChatCompletionRequest:
    request = parse(ChatCompletionRequest, json.dumps({"messages": [USER], **fields}).encode())
    request.check(limits or LimitSettings())
    return request


def refusal(limits: LimitSettings | None = None, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as info:
        chat(limits, **fields)
    return info.value


def offer(**fields: Any) -> ToolOffer:
    found = chat(**{"tools": [function("look"), function("dig"), custom("draw")], **fields}).tool_offer()
    assert found is not None
    return found


def names(found: ToolOffer) -> tuple[list[str], list[str]]:
    return [tool.name for tool in found.tools], [tool.name for tool in found.callable]


ALL = ["look", "dig", "draw"]


@pytest.mark.parametrize(
    ("choice", "callable_", "is_required", "is_named"),
    [
        (None, ALL, False, False),
        ("auto", ALL, False, False),
        ("required", ALL, True, False),
        ({"type": "function", "function": {"name": "dig"}}, ["dig"], True, True),
        ({"type": "custom", "custom": {"name": "draw"}}, ["draw"], True, True),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [custom(), function()]}},
            ["look", "draw"],
            False,
            False,
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [function()]}},
            ["look"],
            True,
            False,
        ),
    ],
)
def test_a_choice_says_what_may_be_called_and_what_must(
    choice: Any, callable_: list[str], is_required: bool, is_named: bool
) -> None:
    found = offer(tool_choice=choice)
    assert names(found) == (ALL, callable_)
    assert (found.is_required, found.is_named) == (is_required, is_named)
    assert found.is_restricted == (callable_ != ALL)


def test_calls_are_parallel_unless_that_is_not_wanted() -> None:
    assert [offer(parallel_tool_calls=value).is_parallel for value in (None, True, False)] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": []},
        {"tools": None, "tool_choice": "none"},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"tools": [function()], "tool_choice": "none"},
    ],
)
def test_nothing_may_be_offered(fields: dict[str, Any]) -> None:
    assert chat(**fields).tool_offer() is None


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"tool_choice": "required"}, "tool_choice", "only allowed when tools are specified"),
        ({"tool_choice": function(), "tools": []}, "tool_choice", "only allowed when tools are specified"),
        ({"tools": [function()], "tool_choice": "any"}, "tool_choice", "auto"),
        ({"tools": [function()], "tool_choice": 5}, "tool_choice", "an object that names tools, not 5"),
        ({"tools": [function()], "tool_choice": {"type": "tool"}}, "tool_choice.type", "not 'tool'"),
        ({"tools": [function()], "tool_choice": {"type": "function"}}, "tool_choice.function", "required"),
        (
            {"tools": [function()], "tool_choice": function("x")},
            "tool_choice.function.name",
            "no function 'x'",
        ),
        ({"tools": [function()], "tool_choice": custom("look")}, "tool_choice.custom.name", "no custom tool"),
        (
            {
                "tools": [function()],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [function(), function("y")]},
                },
            },
            "tool_choice.allowed_tools.tools.1.function.name",
            "no function 'y'",
        ),
        (
            {"tools": [function()], "tool_choice": {"type": "allowed_tools"}},
            "tool_choice.allowed_tools",
            "required",
        ),
        ({"tools": {}}, "tools", "input should be"),
        ({"tools": [{"type": "retrieval"}]}, "tools.0.type", "not 'retrieval'"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "required"),
        ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools.0.custom", "required"),
        ({"tools": [function("")]}, "tools.0.function.name", "1 to 64 letters"),
        ({"tools": [function("a b")]}, "tools.0.function.name", "not 'a b'"),
        ({"tools": [function("x" * 65)]}, "tools.0.function.name", "1 to 64"),
        ({"tools": [function(), custom("ä")]}, "tools.1.custom.name", "not 'ä'"),
        ({"tools": [function(), custom("look")]}, "tools.1.custom.name", "the only tool of its name"),
        ({"tools": [function(parameters=[])]}, "tools.0.function.parameters", "an object"),
        (
            {"tools": [function(parameters={"type": "string"})]},
            "tools.0.function.parameters.type",
            "an object, not 'string'",
        ),
        (
            {"tools": [custom(format={"type": "grammar"})]},
            "tools.0.custom.format.grammar",
            "required",
        ),
        (
            {"tools": [custom(format={"type": "grammar", "grammar": {"syntax": "bnf", "definition": ""}})]},
            "tools.0.custom.format.grammar.syntax",
            "not 'bnf'",
        ),
        ({"tools": [function()], "parallel_tool_calls": "no"}, "parallel_tool_calls", "boolean"),
        ({"functions": [{"name": "f"}]}, "functions", "use tools"),
        ({"function_call": {"name": "f"}}, "function_call", "use tool_choice"),
    ],
)
def test_wrong_tools_are_refused_by_their_path(fields: dict[str, Any], param: str, reason: str) -> None:
    error = refusal(**fields)
    assert error.param == param
    assert reason in str(error)


def test_there_may_be_max_tools() -> None:
    tools = [function(f"t{i}") for i in range(4)]
    assert chat(LimitSettings(max_tools=4), tools=tools).tool_offer() is not None
    assert "at most max_tools = 3, not 4" in str(refusal(LimitSettings(max_tools=3), tools=tools))


def test_a_million_wrong_tools_make_one_error() -> None:
    body = (
        b'{"messages": [{"role": "user", "content": "x"}], "tools": [' + b",".join([b"5"] * 1_000_000) + b"]}"
    )
    with pytest.raises(RequestError) as info:
        parse(ChatCompletionRequest, body)
    assert info.value.param == "tools.0" and len(str(info.value)) < 200


def test_a_call_of_an_earlier_turn_says_what_it_called() -> None:
    for made, param in (({}, "function"), ({"type": "custom", "function": {"name": "f"}}, "custom")):
        request = chat(messages=[USER, {"role": "assistant", "tool_calls": [made]}])
        with pytest.raises(RequestError) as info:
            request.template_messages()
        assert info.value.param == f"messages.1.tool_calls.0.{param}"


# ---- thinking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"reasoning_effort": "extreme"}, "reasoning_effort", "not 'extreme'"),
        ({"reasoning_max_tokens": -1}, "reasoning_max_tokens", "greater than or equal to 0"),
        ({"thinking_budget": 5, "reasoning_max_tokens": 6}, "thinking_budget", "here 6 and 5"),
        (
            {"thinking_token_budget": 5, "logits_processors_args": {"thinking_budget": 7}},
            "logits_processors_args.thinking_budget",
            "here 5 and 7",
        ),
        (
            {"logits_processors_args": {"think_stop_sentence": "Stop."}},
            "logits_processors_args.think_stop_sentence",
            "leave it out",
        ),
        ({"include_reasoning": "no"}, "include_reasoning", "boolean"),
    ],
)
def test_wrong_wishes_about_thinking_are_refused(fields: dict[str, Any], param: str, reason: str) -> None:
    error = refusal(**fields)
    assert error.param == param
    assert reason in str(error)
