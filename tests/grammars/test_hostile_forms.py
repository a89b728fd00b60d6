"""Forms that are meant to hurt end in a grammar or in a refusal, and soon."""

# ruff: noqa: E501  # a case stands on its line

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.grammars.walking import written
from trioserve.core.forms import (
    Arguments,
    ArgumentTags,
    Body,
    CallFormat,
    CallsForm,
    ChoiceForm,
    GrammarForm,
    JsonArguments,
    JsonForm,
    PythonArguments,
    RegexForm,
    TaggedArguments,
    ToolFormat,
)
from trioserve.errors import InvalidGrammar

_MAX_S = 5.0
"""Generous: what is wrong here is wrong by orders of magnitude, or ends the process."""


def nested(levels: int, key: str = "items") -> str:
    return f'{{"{key}":' * levels + "{}" + "}" * levels


def ends(body: Body) -> str | None:
    """The grammar, or None where the form is refused; within the time."""
    began = time.process_time()
    try:
        return written(body)
    except InvalidGrammar:
        return None
    finally:
        assert time.process_time() - began < _MAX_S


@pytest.mark.parametrize("levels", [63, 64, 65, 400, 100_000])
@pytest.mark.parametrize("key", ["items", "additionalProperties", "not"])
def test_deep_schemas_are_refused_beyond_the_limit(levels: int, key: str) -> None:
    assert (ends(JsonForm(schema=nested(levels, key))) is None) is (levels > 63 or key == "not")


def test_a_refusal_for_depth_names_the_limit() -> None:
    for text in (nested(400), "[" * 100_000):
        with pytest.raises(InvalidGrammar, match="more than 64 levels"):
            written(JsonForm(schema=text))


BIG_ENUM = {"enum": [f"value number {number * 7919 % 1_000_003}" for number in range(40_000)]}
CHAIN = {f"d{n}": {"properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}}} for n in range(5000)} | {"d5000": {}}
SCHEMAS: dict[str, Callable[[], Any]] = {
    "an object for a format": lambda: {"type": "string", "format": {}},
    "a list for a format": lambda: {"type": "string", "format": ["date"]},
    "itself": lambda: {"$ref": "#"},
    "itself beside": lambda: {"$ref": "#", "type": "object"},
    "any of itself": lambda: {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "all of itself": lambda: {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "one of itself": lambda: {"oneOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "each in the other": lambda: {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}},
    "a chain of references": lambda: {"$ref": "#/$defs/d0", "$defs": CHAIN},
    "doubling": lambda: {"$ref": "#/$defs/d0", "$defs": {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)} | {"d40": {}}},
    "doubling objects": lambda: {"$ref": "#/$defs/d0", "$defs": {f"d{n}": {"properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}, "b": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}]}}} for n in range(40)} | {"d40": {}}},
    "a large anyOf": lambda: {"anyOf": [{"const": n} for n in range(5000)]},
    "a large oneOf": lambda: {"oneOf": [{"type": "object", "properties": {"k": {"const": n}}, "required": ["k"]} for n in range(2000)]},
    "a large oneOf of alternatives": lambda: {"oneOf": [{"anyOf": [{"const": [n]}, {"const": [-n]}]} for n in range(2000)]},
    "a large enum": lambda: BIG_ENUM,
    "many properties": lambda: {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(6000)}},
    "many required": lambda: {"type": "object", "required": [f"p{n}" for n in range(6000)]},
    "patterns": lambda: {"properties": {f"p{n}": {"type": "string", "pattern": "(a+)+b" * 9} for n in range(300)}},
    "long prefix": lambda: {"type": "array", "prefixItems": [{"type": "string"}] * 5000},
    "many items": lambda: {"type": "array", "minItems": 1 << 30, "items": {"type": "array", "minItems": 1 << 30}},
}  # fmt: skip


def calls(arguments: Arguments) -> CallsForm:
    call = CallFormat("f", "<call>", arguments, "</call>")
    form = ToolFormat(calls=(call,), begin="", separator="", end="", triggers=("<call>",), max_calls=None)
    return CallsForm(format=form, is_required=True)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_ends_soon_however_it_is_written(name: str) -> None:
    schema = SCHEMAS[name]()
    ends(JsonForm(schema=json.dumps(schema)))
    document = {"type": "object", "properties": {"x": schema}} if "$defs" not in schema else schema
    tags = ArgumentTags("<p=", ">", ">", "</p>\n")
    for style in (JsonArguments(document), PythonArguments(document), TaggedArguments(document, tags)):
        ends(calls(style))


@pytest.mark.parametrize(
    "pattern",
    [
        "(" * 400 + "a" + ")" * 400, "(" * 60 + "a" + ")+" * 60, "(a{1000}){1000}", "(a+)+" * 2000, "(?:" * 50_000, "[" * 50_000,
        "a{1,3}" * 20_000, "|" * 100_000, "\\" * 50_000, "(a|" * 60 + "b" + ")" * 60, "^" * 50_000, "(^" * 60 + ")" * 60, "a" * 10_000_000,
    ],
    ids=range(13),
)  # fmt: skip
def test_every_regular_expression_ends_soon(pattern: str) -> None:
    ends(RegexForm(pattern))
    ends(JsonForm(schema=json.dumps({"type": "string", "pattern": pattern})))


@pytest.mark.parametrize(
    "text",
    [
        "root ::= " + "(" * 5000 + '"a"' + ")" * 5000,
        "root ::= " + "(" * 60 + '"a"' + ")*" * 60,
        "root ::= " + '"a" ' * 100_000,
        "root ::= root",
        "root ::= root root | root",
        "root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(50)) + '\nr50 ::= "a"',
        "root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1}" for n in range(20_000)) + '\nr20000 ::= "a"',
        "root ::= [" + "a-z" * 50_000 + "]",
        'root ::= "a"' + "*" * 50_000,
        "root ::= \n" * 20_000,
        "start: " + "(" * 50_000,
        "start: " + '"a" | ' * 50_000 + '"b"',
        "start: %json " + "[" * 100_000,
        'start: "' + "\\" * 100_000,
        "start: /" + "\\" * 100_000,
        "#" * 1_000_000,
    ],
    ids=range(16),
)
def test_every_grammar_ends_soon(text: str) -> None:
    ends(GrammarForm(text))


def test_writing_is_linear_in_choices() -> None:
    assert ends(ChoiceForm(tuple(BIG_ENUM["enum"]))) is not None
