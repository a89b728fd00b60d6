"""What form an answer must have, given tools, the request's own form and the thinking before it."""

from typing import Any

import pytest

from trioserve.core.forms import (
    AnswerForm,
    CallsForm,
    GrammarForm,
    JsonArguments,
    JsonForm,
    RegexForm,
    ThinkingForm,
)
from trioserve.errors import RequestError
from trioserve.http.answer_form import Asked, answer_form, given_input, thinking_form
from trioserve.parsers.dialects import ToolDialect
from trioserve.parsers.reasoning import ReasoningFormat
from trioserve.parsers.reasoning_dialects import REASONING_DIALECTS
from trioserve.parsers.tool_dialects import TOOL_DIALECTS
from trioserve.protocol.chat import ChatCompletionRequest

HERMES = TOOL_DIALECTS["hermes"]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def function(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **fields}}


def custom(name: str, syntax: str | None = None, definition: str = "[a-z]+") -> dict[str, Any]:
    grammar = {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}
    return {"type": "custom", "custom": {"name": name, **({"format": grammar} if syntax else {})}}


def named(name: str, kind: str = "function") -> dict[str, Any]:
    return {"type": kind, kind: {"name": name}}


def allowed(mode: str, *tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


def wanted(
    tools: list[dict[str, Any]],
    asked: Asked | None = None,
    *,
    dialect: ToolDialect | None = HERMES,
    thinking: ThinkingForm | None = None,
    **fields: Any,
) -> tuple[AnswerForm, str] | None:
    request = ChatCompletionRequest(messages=[{"role": "user", "content": "x"}], tools=tools, **fields)  # type: ignore[arg-type]  # as JSON has it
    return answer_form(asked, request.tool_offer(), dialect, thinking)


def calls(tools: list[dict[str, Any]], asked: Asked | None = None, **fields: Any) -> CallsForm:
    found = wanted(tools, asked, **fields)
    assert found is not None
    assert isinstance(found[0].body, CallsForm)
    return found[0].body


def names(form: CallsForm) -> list[str]:
    return [call.name for call in form.format.calls]


TWO = [function("one"), function("two")]


def test_a_model_that_may_choose_among_lenient_tools_writes_what_it_likes() -> None:
    assert wanted(TWO) is None
    assert wanted(TWO, tool_choice="auto", parallel_tool_calls=True) is None
    assert wanted(TWO, tool_choice=allowed("auto", named("one"), named("two"))) is None
    assert wanted([custom("draw")]) is None


@pytest.mark.parametrize(
    ("tools", "fields", "param", "reason"),
    [
        ([function("one"), function("two", strict=True)], {}, "tools", "tools.1.function.strict"),
        (TWO, {"parallel_tool_calls": False}, "tools", "parallel_tool_calls"),
        (TWO, {"tool_choice": allowed("auto", named("two"))}, "tools.1.function.parameters", "tool_choice"),
        ([custom("draw", "regex")], {}, "tools.0.custom.format", "tools.0.custom.format"),
    ],
)
def test_a_promise_about_calls_needs_a_form_even_where_the_model_may_choose(
    tools: list[dict[str, Any]], fields: dict[str, Any], param: str, reason: str
) -> None:
    found = wanted(tools, **fields)
    assert found is not None
    assert found[1] == param
    assert not calls(tools, **fields).is_required
    with pytest.raises(RequestError) as caught:
        wanted(tools, dialect=TOOL_DIALECTS["pythonic"], **fields)
    assert caught.value.param == reason


def test_a_required_call_is_of_any_tool_and_there_may_be_several() -> None:
    form = calls(TWO, tool_choice="required")
    assert form.is_required and names(form) == ["one", "two"] and form.format.max_calls is None
    assert form.format.calls[0].arguments == JsonArguments(SCHEMA)
    assert calls(TWO, tool_choice="required", parallel_tool_calls=False).format.max_calls == 1


def test_a_named_tool_is_called_once() -> None:
    form = calls(TWO, tool_choice=named("two"))
    assert form.is_required and names(form) == ["two"] and form.format.max_calls == 1


def test_only_allowed_tools_are_called() -> None:
    form = calls(TWO, tool_choice=allowed("required", named("two")))
    assert form.is_required and names(form) == ["two"] and form.format.max_calls is None
    assert names(calls(TWO, tool_choice=allowed("auto", named("two")))) == ["two"]


def test_parameters_that_say_nothing_are_those_of_an_object() -> None:
    tools = [
        {"type": "function", "function": {"name": "one"}},
        {"type": "function", "function": {"name": "two", "parameters": {"properties": {}}}},
    ]
    form = calls(tools, tool_choice="required")
    schemas = [call.arguments.schema for call in form.format.calls]
    assert all(schema["type"] == "object" for schema in schemas)


def test_the_input_of_a_custom_tool_is_one_argument_that_its_regular_expression_binds() -> None:
    form = calls([custom("draw", "regex"), custom("say")], tool_choice="required")
    bound, free = (call.arguments.schema["properties"]["input"] for call in form.format.calls)
    assert bound == {"type": "string", "pattern": "^(?:[a-z]+)$"}
    assert free == {"type": "string"}


def test_a_lark_grammar_is_the_whole_answer_where_its_tool_is_the_only_one_that_may_be_called() -> None:
    tools = [custom("draw", "lark", "start: /x+/"), function("one")]
    for choice in (named("draw", "custom"), allowed("required", named("draw", "custom"))):
        found = wanted(tools, tool_choice=choice)
        assert found == (
            AnswerForm(body=GrammarForm("start: /x+/")),
            "tools.0.custom.format.grammar.definition",
        )
    offer = ChatCompletionRequest(tools=tools[:1], tool_choice="required").tool_offer()  # type: ignore[arg-type]
    assert given_input(offer) is not None


@pytest.mark.parametrize("choice", ["auto", "required", allowed("auto", named("draw", "custom"))])
def test_elsewhere_a_lark_grammar_is_refused(choice: Any) -> None:
    with pytest.raises(RequestError) as caught:
        wanted([custom("draw", "lark"), function("one")], tool_choice=choice)
    assert caught.value.param == "tools.0.custom.format.grammar.syntax"
    assert wanted([custom("draw", "lark"), function("one")], tool_choice=named("one")) is not None


def test_json_may_be_asked_for_where_nothing_is_called() -> None:
    asked = (JsonForm(schema="{}"), "response_format.json_schema.schema")
    form = calls(TWO, asked)
    assert not form.is_required and form.otherwise == JsonForm(schema="{}")
    assert calls(TWO, asked, tool_choice="required").otherwise is None
    found = wanted(TWO, asked)
    assert found is not None and found[1] == "response_format.json_schema.schema"
    assert wanted(TWO, asked, tool_choice="none") == (AnswerForm(body=asked[0]), asked[1])


def test_another_form_does_not_go_with_tools_that_may_be_called() -> None:
    with pytest.raises(RequestError) as caught:
        wanted(TWO, (RegexForm("x"), "guided_regex"))
    assert caught.value.param == "guided_regex"
    assert calls(TWO, (RegexForm("x"), "guided_regex"), tool_choice="required").otherwise is None


def test_calls_that_nothing_marks_can_be_required_but_not_told_from_text() -> None:
    pythonic = TOOL_DIALECTS["pythonic"]
    assert calls(TWO, dialect=pythonic, tool_choice="required").is_required
    with pytest.raises(RequestError, match=r"pythonic.*unless tool_choice requires them"):
        wanted([function("one", strict=True)], dialect=pythonic)


def test_a_family_without_a_form_of_calls_cannot_be_required_to_call() -> None:
    mine = ToolDialect(name="mine", open=HERMES.open)
    assert wanted(TWO, dialect=mine) is None
    with pytest.raises(RequestError, match="tool_call_parser mine"):
        wanted(TWO, dialect=mine, tool_choice="required")


def test_thinking_comes_before_every_form() -> None:
    think = ThinkingForm(begins=("<think>",), ends=("</think>",), is_open=True)
    found = wanted(TWO, tool_choice="required", thinking=think)
    assert found is not None and found[0].thinking == think
    own = answer_form((RegexForm("x"), "guided_regex"), None, None, think)
    assert own == (AnswerForm(body=RegexForm("x"), thinking=think), "guided_regex")
    assert answer_form(None, None, None, think) is None


QWEN3, R1 = (REASONING_DIALECTS[name].form for name in ("qwen3", "deepseek_r1"))


@pytest.mark.parametrize(
    ("form", "prompt", "is_open"),
    [
        (QWEN3, "unsaid", False),
        (QWEN3, "open", True),
        (R1, "unsaid", True),
        (R1, "open", True),
        (QWEN3, "closed", None),
        (R1, "closed", None),
    ],
)
def test_how_an_answer_may_think_depends_on_family_and_prompt(
    form: ReasoningFormat, prompt: Any, is_open: bool | None
) -> None:
    found = thinking_form(form, prompt)
    assert (None if found is None else found.is_open) == is_open
