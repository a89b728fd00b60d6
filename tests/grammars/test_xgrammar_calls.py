"""Calls of tools under xgrammar's masks are what the families' parsers read."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

pytest.importorskip("xgrammar", reason="the extra xgrammar is not installed")

from tests.grammars.xgrammar_walking import END, accepts, allowed, backend, tokenizer, walk, written
from trioserve.builtin import MODEL_DIR
from trioserve.core.forms import CallsForm, FreeForm, JsonForm, TagForm, TagsForm, ThinkingForm
from trioserve.core.sequence import FinishReason
from trioserve.errors import InvalidGrammar
from trioserve.parsers.dialects import ToolDialect, open_parser
from trioserve.parsers.parser import Meaning, gather
from trioserve.parsers.registry import Registry
from trioserve.parsers.tools import Tool

WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "when": {"type": ["string", "null"]},
            "exact": {"type": "boolean"},
            "wind": {"type": "number"},
            "places": {"type": "array", "items": {"type": "string", "maxLength": 9}, "maxItems": 2},
            "options": {"$ref": "#/$defs/options"},
            "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
        },
        "required": ["city", "options"],
        "$defs": {
            "options": {
                "type": "object",
                "properties": {"unit": {"enum": ["C", "F", 1, None]}, "inner": {"$ref": "#/$defs/options"}},
                "required": ["unit"],
            }
        },
    },
)
CLOCK = Tool("get_time", {"type": "object", "properties": {"zone": {"enum": ["UTC", "local"]}}})
ANYTHING = Tool("note")
TOOLS = (WEATHER, CLOCK, ANYTHING)
DIALECTS = sorted(Registry.load().tools.values(), key=lambda dialect: dialect.name)
each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
HERMES = next(dialect for dialect in DIALECTS if dialect.name == "hermes")


def calls_form(
    dialect: ToolDialect, *, is_required: bool, parallel: bool = True, **options: Any
) -> CallsForm:
    form = dialect.format(TOOLS, parallel=parallel)
    assert form is not None
    return CallsForm(format=form, is_required=is_required, **options)


def read(dialect: ToolDialect, text: str) -> Meaning:
    parser = open_parser(None, dialect, offered=TOOLS)
    return gather([*parser.feed(text), *parser.flush(FinishReason.STOP)])


def check_calls(found: Meaning) -> None:
    """Each call is of a tool, whole, and fits it."""
    for call in found.calls:
        tool = next(tool for tool in TOOLS if tool.name == call.name)
        assert call.is_whole
        arguments = json.loads(call.arguments)
        assert isinstance(arguments, dict)
        jsonschema_rs.validate(dict(tool.parameters), arguments)


def hints(dialect: ToolDialect) -> list[str]:
    form = dialect.format(TOOLS, parallel=True)
    assert form is not None
    some = [form.end, *(call.end for call in form.calls), "}", "]", '"', ")"]
    if dialect.shape is not None and dialect.shape.tags is not None:
        some += [dialect.shape.tags.end] * 4
    return [text for text in some if text]


@each_dialect
@pytest.mark.parametrize("parallel", [True, False])
def test_required_calls_are_read_back(dialect: ToolDialect, parallel: bool) -> None:
    grammar = written(calls_form(dialect, is_required=True, parallel=parallel))
    answers = [walk(grammar, seed, hints=hints(dialect)) for seed in range(4)]
    assert any(answers)
    for answer in filter(None, answers):
        found = read(dialect, answer)
        assert found.calls and not found.content.strip(), answer
        assert parallel or len(found.calls) == 1
        check_calls(found)


@each_dialect
def test_calls_in_free_text_are_whole(dialect: ToolDialect) -> None:
    form = calls_form(dialect, is_required=False)
    grammar = written(form)
    begins = [form.format.begin + call.begin for call in form.format.calls]
    assert accepts(grammar, "Nothing to call, <b>really</b> nothing.")
    for seed in range(4):
        answer = walk(grammar, seed, hints=[*begins, *form.format.triggers, *hints(dialect)])
        if answer is not None and form.format.triggers:
            check_calls(read(dialect, answer))


@each_dialect
def test_what_begins_as_a_call_ends_as_one(dialect: ToolDialect) -> None:
    form = calls_form(dialect, is_required=False)
    grammar = written(form)
    call = '{"zone": "UTC"}'
    text = next(call for call in form.format.calls if call.name == "get_time")
    if dialect.shape is None or dialect.shape.tags is not None or dialect.shape.is_python:
        call = "" if dialect.shape is not None and dialect.shape.tags is not None else "zone='UTC'"
    whole = form.format.begin + text.begin + call + text.end + form.format.end
    assert accepts(grammar, whole)
    assert read(dialect, whole).calls
    if form.format.triggers:
        assert not accepts(grammar, whole[: len(form.format.begin + text.begin)])
        assert not accepts(
            grammar, form.format.begin + text.begin.replace("get_time", "no_tool") + call + text.end
        )


def test_text_may_surround_calls_that_have_marks() -> None:
    call = '<tool_call>\n{"name": "get_time", "arguments": {"zone": "UTC"}}\n</tool_call>'
    free = written(calls_form(HERMES, is_required=False))
    assert accepts(free, f"Let me see <tool.\n{call}\n{call} done <t")
    assert not accepts(free, f"{call} <tool_call> no")
    one = written(calls_form(HERMES, is_required=False, parallel=False))
    assert (
        accepts(one, f"Well: {call}")
        and not accepts(one, f"{call} done")
        and not accepts(one, f"{call}\n{call}")
    )
    required = written(calls_form(HERMES, is_required=True))
    assert accepts(required, f"{call}\n{call}") and not accepts(required, f"Well: {call}")


def test_an_answer_that_is_no_call_may_be_held_to_a_schema() -> None:
    form = calls_form(HERMES, is_required=False, otherwise=JsonForm(schema='{"type": "integer"}'))
    grammar = written(form)
    assert accepts(grammar, "12") and not accepts(grammar, "twelve")
    assert accepts(grammar, '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>')


def test_calls_come_behind_thinking() -> None:
    thinking = ThinkingForm(begins=("<think>",), ends=("</think>",), is_open=True)
    grammar = written(calls_form(HERMES, is_required=True), thinking=thinking)
    call = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    assert accepts(grammar, f"A <tool_call>?\n</think>\n\n{call}") and not accepts(grammar, call)


@pytest.mark.parametrize(
    ("name", "parameters", "complaint"),
    [
        ("hermes", {"type": "array"}, "object"),
        ("hermes", {"type": "object", "properties": {"a": {"not": {}}}}, "not"),
        ("pythonic", {"type": "object", "properties": {"a-b c": {}}}, "name a parameter"),
        ("pythonic", {"anyOf": [{"type": "object"}, {"type": "object", "required": ["a"]}]}, "one object"),
        ("glm45", {"type": "object", "properties": {"a>": {}}}, "name a parameter"),
        ("glm45", {"type": "object", "properties": {"a": {"enum": ["</arg_value>"]}}}, "contains"),
        ("glm45", {"type": "object", "properties": {"a": {"type": ["string", "array"]}}}, "guidance"),
        ("glm45", {"anyOf": [{"type": "object"}, {"type": "object", "required": ["a"]}]}, "guidance"),
    ],
)
def test_a_tool_that_cannot_be_held_to_is_refused_in_words(
    name: str, parameters: dict[str, Any], complaint: str
) -> None:
    dialect = next(dialect for dialect in DIALECTS if dialect.name == name)
    form = dialect.format([Tool("f", parameters)])
    assert form is not None
    with pytest.raises(InvalidGrammar, match=complaint):
        written(CallsForm(format=form, is_required=True))


# ---- markers that are special tokens ---------------------------------------------------------------------------------

CALL, END_CALL, THINK, END_THINK = 5, 6, 3, 4


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built-in tokenizer, whose markers are special tokens."""
    folder = tmp_path_factory.mktemp("special")
    document = json.loads((MODEL_DIR / "tokenizer.json").read_text())
    for token in document["added_tokens"]:
        token["special"] = True
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


def test_special_tokens_are_asked_for_where_they_mark_something(special: Path) -> None:
    thinking = ThinkingForm(begins=("<think>",), ends=("</think>",), is_open=False)
    grammar = written(calls_form(HERMES, is_required=False), thinking=thinking, folder=special)
    matcher = backend(special).compile(grammar).matcher()
    assert {CALL, THINK, END} == set(allowed(matcher, folder=special)) & {
        0,
        1,
        END,
        THINK,
        END_THINK,
        CALL,
        END_CALL,
    }
    assert matcher.accept([THINK])
    assert {END_THINK} == set(allowed(matcher, folder=special)) & set(range(9))
    assert accepts(
        grammar,
        "<think>a</think>b <tool_call>\n" + '{"name": "get_time", "arguments": {}}\n</tool_call>',
        folder=special,
    )
    inside = matcher = backend(special).compile(grammar).matcher()
    assert inside.accept(tokenizer(special).encode('<tool_call>\n{"name": "note", "arguments": {"').ids)
    assert not set(range(9)) & set(allowed(inside, folder=special))


@pytest.mark.parametrize("seed", range(4))
def test_calls_between_special_tokens_are_read_back(special: Path, seed: int) -> None:
    grammar = written(calls_form(HERMES, is_required=True), folder=special)
    answer = walk(grammar, seed, folder=special, hints=hints(HERMES))
    if answer is not None:
        check_calls(read(HERMES, answer))


def test_a_special_token_that_begins_something_else_too_is_refused(special: Path) -> None:
    tag = TagForm("<tool_call>weather", FreeForm(), "</tool_call>")
    with pytest.raises(InvalidGrammar, match="guidance"):
        written(TagsForm(tags=(tag,), triggers=("<tool_call>wea",)), folder=special)
    whole = written(TagsForm(tags=(tag,), triggers=("<tool_call>",)), folder=special)
    assert accepts(whole, "so: <tool_call>weather in Rome</tool_call>", folder=special)
    assert not accepts(whole, "so: <tool_call>time</tool_call>", folder=special)
