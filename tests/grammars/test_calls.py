"""What a family's grammar lets a model write is what its parser reads, and the other way round."""

import json
from typing import Any

import jsonschema_rs
import pytest

from tests.grammars.walking import accepts, plain_tokenizer, refused_at, tokenizer, walk, written
from tests.parsers.feeding import CLOCK, REGISTRY, WEATHER, events_of
from tests.parsers.test_formats import written_call
from trioserve.core.forms import CallsForm, JsonForm, TaggedArguments, ToolFormat
from trioserve.errors import InvalidGrammar
from trioserve.parsers.dialects import ToolDialect, open_parser
from trioserve.parsers.parser import Meaning, gather
from trioserve.parsers.tool_dialects import TOOL_DIALECTS
from trioserve.parsers.tools import Tool

BOOK = Tool(
    "get",
    {
        "type": "object",
        "properties": {
            "title": {"type": "string", "minLength": 2, "maxLength": 9},
            "mode": {"enum": ["fast", "slow", 3, None]},
            "at": {"anyOf": [{"type": "integer", "minimum": 3, "maximum": 50}, {"type": "null"}]},
            "either": {"type": ["string", "integer", "null"]},
            "deep": {"$ref": "#/$defs/node"},
            "map": {"type": "object", "additionalProperties": {"type": "number"}},
            "pair": {
                "type": "array",
                "prefixItems": [{"type": "boolean"}, {"type": "string"}],
                "minItems": 2,
                "items": False,
            },
            "any": {},
        },
        "required": ["title", "pair"],
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "v": {"type": "string"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["v"],
                "additionalProperties": False,
            }
        },
    },
)
BOOK_CALL: dict[str, Any] = {
    "title": "Emma", "mode": "slow", "at": 7, "deep": {"v": "a", "next": {"v": "b"}}, "map": {"x": 1.5},
    "pair": [True, "é 🌍"],
}  # fmt: skip
OFFERED = {"one": [CLOCK], "two": [WEATHER, CLOCK], "prefixes": [BOOK, CLOCK]}

each_dialect = pytest.mark.parametrize("dialect", TOOL_DIALECTS.values(), ids=list(TOOL_DIALECTS))
each_tokenizer = pytest.mark.parametrize("of", [tokenizer, plain_tokenizer], ids=["tokens", "text"])


def the_format(dialect: ToolDialect, tools: list[Tool], *, parallel: bool = True) -> ToolFormat:
    form = dialect.format(tools, parallel=parallel)
    assert form is not None
    return form


def read(dialect: ToolDialect, tools: list[Tool], text: str) -> Meaning:
    return gather(events_of(open_parser(None, dialect, offered=tools), [text]))


def check_calls(found: Meaning, tools: list[Tool]) -> None:
    schemas = {tool.name: tool.parameters for tool in tools}
    for call in found.calls:
        assert call.is_whole
        jsonschema_rs.validate(dict(schemas[call.name]), json.loads(call.arguments))


def endings(form: ToolFormat) -> list[str]:
    """What ends a verbatim string of this format."""
    style = form.calls[0].arguments
    return [style.tags.end] if isinstance(style, TaggedArguments) else []


@each_dialect
@each_tokenizer
@pytest.mark.parametrize("offered", OFFERED)
def test_required_calls_are_whole_calls_with_arguments_that_fit(
    dialect: ToolDialect, of: Any, offered: str
) -> None:
    tools = OFFERED[offered]
    form = the_format(dialect, tools)
    grammar = written(CallsForm(format=form, is_required=True), of=of())
    walks = [walk(grammar, seed, of=of(), endings=endings(form)) for seed in range(3)]
    texts = [text for text in walks if text is not None]
    assert texts
    for text in texts:
        found = read(dialect, tools, text)
        assert found.calls
        assert not found.content
        check_calls(found, tools)


@each_dialect
@each_tokenizer
def test_free_text_may_call_and_what_it_calls_fits(dialect: ToolDialect, of: Any) -> None:
    tools = OFFERED["prefixes"]
    form = the_format(dialect, tools)
    grammar = written(CallsForm(format=form, is_required=False), of=of())
    for seed in range(3):
        if text := walk(grammar, seed, of=of(), endings=[*form.triggers, *endings(form)]):
            check_calls(read(dialect, tools, text), tools)
    assert accepts(grammar, "Just text, <b>with</b> {braces} and [brackets].", of=of())


@each_dialect
@each_tokenizer
def test_what_the_template_writes_is_allowed(dialect: ToolDialect, of: Any) -> None:
    form = the_format(dialect, [BOOK, WEATHER])
    calls = [(form.calls[0], BOOK_CALL), (form.calls[1], {"city": "Paris", "days": 3})][: form.max_calls]
    text = form.begin + form.separator.join(spelled(*call) for call in calls) + form.end
    required = written(CallsForm(format=form, is_required=True), of=of())
    assert refused_at(required, text, of=of()) is None
    assert accepts(required, text, of=of())
    optional = written(CallsForm(format=form, is_required=False), of=of())
    assert accepts(optional, text, of=of())
    if form.triggers and not form.triggers[0].startswith("{"):
        assert accepts(optional, "I will look.\n" + text, of=of())


def spelled(call: Any, arguments: dict[str, Any]) -> str:
    return written_call(call, arguments).replace("\\u00e9 \\ud83c\\udf0d", "é 🌍")


@each_dialect
@each_tokenizer
def test_a_trigger_commits_to_a_tool_that_there_is(dialect: ToolDialect, of: Any) -> None:
    form = the_format(dialect, [CLOCK])
    if not form.triggers:
        return
    grammar = written(CallsForm(format=form, is_required=False), of=of())
    wrong = (form.begin + form.calls[0].begin).replace("get_time", "get_tame") + "{}"
    assert refused_at(grammar, wrong, of=of()) is not None


def test_a_marker_that_is_spelled_out_counts_as_the_token() -> None:
    form = the_format(TOOL_DIALECTS["hermes"], [CLOCK])
    grammar = written(CallsForm(format=form, is_required=False))
    call = written_call(form.calls[0], {})
    assert accepts(grammar, f"Hm {call}", special=True)
    assert accepts(grammar, f"Hm {call.removesuffix('</tool_call>')}", special=False) is False
    assert accepts(grammar, "a < b", special=False)
    assert not accepts(grammar, "<tool_call>\n{}", special=False)


def test_one_call_is_the_end_where_one_is_allowed() -> None:
    form = the_format(TOOL_DIALECTS["hermes"], [CLOCK], parallel=False)
    call = written_call(form.calls[0], {})
    for is_required in (True, False):
        grammar = written(CallsForm(format=form, is_required=is_required))
        assert accepts(grammar, call)
        assert not accepts(grammar, f"{call}\n{call}")
        assert not accepts(grammar, f"{call} and text")


def test_text_may_follow_calls_where_several_are_allowed() -> None:
    form = the_format(TOOL_DIALECTS["hermes"], [CLOCK])
    call = written_call(form.calls[0], {})
    grammar = written(CallsForm(format=form, is_required=False))
    assert accepts(grammar, f"First {call}\n{call} then text")
    assert not accepts(written(CallsForm(format=form, is_required=True)), f"{call} then text")


@each_dialect
def test_calls_or_json_of_a_schema(dialect: ToolDialect) -> None:
    form = the_format(dialect, [WEATHER, CLOCK])
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    otherwise = JsonForm(schema=json.dumps(schema | {"additionalProperties": False}))
    grammar = written(CallsForm(format=form, is_required=False, otherwise=otherwise))
    calls = [written_call(call, {"city": "Oslo"} if call.name == WEATHER.name else {}) for call in form.calls]
    text = form.begin + form.separator.join(calls[: form.max_calls]) + form.end
    assert refused_at(grammar, text) is None
    assert accepts(grammar, text)
    for answer in ('{"name": "Bob"}', '{\n  "name": "get_time"\n}', '{"name":"x"}'):
        assert accepts(grammar, answer)
    assert not accepts(grammar, "text")


def test_a_string_between_tags_cannot_hold_its_end() -> None:
    form = the_format(TOOL_DIALECTS["qwen3_coder"], [WEATHER])
    grammar = written(CallsForm(format=form, is_required=True))
    begin = form.calls[0].begin + "<parameter=city>\n"
    assert accepts(grammar, begin + "<b>Paris</b>\n\n</parameter>\n" + form.calls[0].end)
    assert not accepts(grammar, begin + "a</parameter>b\n</parameter>\n" + form.calls[0].end)
    places = "Paris\n</parameter>\n<parameter=places>\n"
    assert accepts(grammar, begin + places + '["<b>"]\n</parameter>\n' + form.calls[0].end)
    assert not accepts(grammar, begin + places + '["</parameter>"]\n</parameter>\n' + form.calls[0].end)


def test_pythonic_calls_take_both_quotes_and_keep_the_order() -> None:
    form = the_format(TOOL_DIALECTS["pythonic"], [WEATHER])
    grammar = written(CallsForm(format=form, is_required=True))
    assert accepts(grammar, "[get_weather(city='São \\'P\\'', days=-3, when=None, exact=True)]")
    assert accepts(grammar, '[get_weather(city="a", options={"unit": "C"}), get_weather(city="b")]')
    assert not accepts(grammar, '[get_weather(days=3, city="a")]')
    assert not accepts(grammar, "[get_weather(days=3)]")
    assert not accepts(grammar, '[get_weather(city="a", options={"unit": "K"})]')


@pytest.mark.parametrize(
    ("dialect", "parameters", "message"),
    [
        ("hermes", {"type": "string"}, "must be a schema of an object"),
        ("hermes", {"properties": {"a": {"not": {}}}}, r"not is not supported .*#/properties/a/not"),
        ("pythonic", {"properties": {"a b": {}}}, "cannot name a parameter 'a b'"),
        ("qwen3_coder", {"properties": {"a>": {}}}, "cannot name a parameter 'a>'"),
        ("qwen3_coder", {"properties": {"a": {"const": "x</parameter>"}}}, "contains"),
        ("glm45", {"properties": {"a": False}, "required": ["a"]}, "no value fits"),
        ("pythonic", {"anyOf": [{"properties": {str(n): {}}} for n in range(99)]}, "99 alternatives"),
    ],
)
def test_a_tool_that_cannot_be_written_is_refused(
    dialect: str, parameters: dict[str, Any], message: str
) -> None:
    form = the_format(TOOL_DIALECTS[dialect], [Tool("f", parameters)])
    with pytest.raises(InvalidGrammar, match=message):
        written(CallsForm(format=form, is_required=True))


def test_no_tools_cannot_be_called() -> None:
    form = the_format(TOOL_DIALECTS["hermes"], [])
    with pytest.raises(InvalidGrammar, match="no tool"):
        written(CallsForm(format=form, is_required=True))


def test_the_dialects_of_the_registry_are_those_tried_here() -> None:
    assert set(REGISTRY.tools) >= set(TOOL_DIALECTS)
