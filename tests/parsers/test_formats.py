"""What a grammar is told of a family is what its parser reads."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parsers.feeding import CLOCK, REGISTRY, WEATHER, events_of
from trioserve.core.forms import (
    Arguments,
    ArgumentTags,
    CallFormat,
    JsonArguments,
    PythonArguments,
    TaggedArguments,
    ToolFormat,
)
from trioserve.parsers.dialects import ToolDialect, open_parser
from trioserve.parsers.parser import gather

DIALECTS = sorted(REGISTRY.tools.values(), key=lambda dialect: dialect.name)
each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)

# What stands between tags cannot contain a tag, and a line end at its edges may belong to the tags.
words = st.text("ab ü🌍\"'\\{}[](),:=\n", max_size=9).map(lambda text: text.strip("\n"))
weather = st.fixed_dictionaries(
    {"city": words},
    optional={
        "days": st.integers(-(10**6), 10**6),
        "exact": st.booleans(),
        "places": st.lists(words, max_size=3),
        "options": st.fixed_dictionaries({"unit": st.sampled_from("CF")}),
    },
)


def written_call(call: CallFormat, arguments: dict[str, Any]) -> str:
    return call.begin + written_arguments(call.arguments, arguments) + call.end


def written_arguments(style: Arguments, arguments: dict[str, Any]) -> str:
    match style:
        case JsonArguments():
            return json.dumps(arguments)
        case PythonArguments():
            return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        case TaggedArguments(_, tags):
            return "".join(
                tags.begin + name + (tags.named if isinstance(value, str) else tags.named_json)
                + (value if isinstance(value, str) else json.dumps(value)) + tags.end
                for name, value in arguments.items()
            )  # fmt: skip


def the_format(dialect: ToolDialect, *, parallel: bool = True) -> ToolFormat:
    form = dialect.format([WEATHER, CLOCK], parallel=parallel)
    assert form is not None
    return form


@each_dialect
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_written_in_a_format_is_read_back(dialect: ToolDialect, data: st.DataObject) -> None:
    form = the_format(dialect)
    number = 1 if form.max_calls == 1 else data.draw(st.integers(1, 3))
    calls = [
        (call, data.draw(weather) if call.name == WEATHER.name else {})
        for call in data.draw(st.lists(st.sampled_from(form.calls), min_size=number, max_size=number))
    ]
    text = form.begin + form.separator.join(written_call(*call) for call in calls) + form.end
    found = gather(events_of(open_parser(None, dialect, offered=[WEATHER, CLOCK]), [text]))
    assert [(call.name, call.is_whole) for call in found.calls] == [(call.name, True) for call, _ in calls]
    assert [json.loads(call.arguments) for call in found.calls] == [arguments for _, arguments in calls]
    assert found.content == ""


@each_dialect
def test_a_trigger_is_a_beginning_of_a_call_of_every_tool(dialect: ToolDialect) -> None:
    form = the_format(dialect)
    for call in form.calls:
        for trigger in form.triggers:
            assert (form.begin + call.begin).startswith(trigger)


@each_dialect
def test_one_call_is_one_call(dialect: ToolDialect) -> None:
    assert the_format(dialect, parallel=False).max_calls == 1


def test_a_format_says_all_that_a_grammar_needs() -> None:
    form = the_format(REGISTRY.tools["hermes"])
    assert form == ToolFormat(
        calls=(
            CallFormat(
                "get_weather",
                '<tool_call>\n{"name": "get_weather", "arguments": ',
                JsonArguments(WEATHER.parameters),
                "}\n</tool_call>",
            ),
            CallFormat(
                "get_time",
                '<tool_call>\n{"name": "get_time", "arguments": ',
                JsonArguments({"type": "object"}),
                "}\n</tool_call>",
            ),
        ),
        begin="",
        separator="\n",
        end="",
        triggers=("<tool_call>",),
        max_calls=None,
    )
    tagged = the_format(REGISTRY.tools["qwen3_coder"]).calls[0].arguments
    assert tagged == TaggedArguments(
        WEATHER.parameters, ArgumentTags("<parameter=", ">\n", ">\n", "\n</parameter>\n")
    )
