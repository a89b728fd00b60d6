"""A schema, an expression or a grammar of a client becomes a grammar that the library takes, or is refused."""

# ruff: noqa: E501  # many words stand on few lines

import json
from typing import Any

from tests.fuzz.source import Source
from tests.grammars.walking import written
from trioserve.core.forms import Body, ChoiceForm, GrammarForm, JsonForm, RegexForm
from trioserve.errors import InvalidGrammar

_KEYS = (
    *("type", "properties", "required", "items", "prefixItems", "enum", "const", "anyOf", "oneOf", "allOf", "not", "$ref", "$defs"),
    *("additionalProperties", "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "multipleOf", "minItems", "maxItems"),
    *("patternProperties", "propertyNames", "if", "then", "else", "a", "", "é", "$anchor", "$id", "definitions", "nullable", "default"),
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    *("object", "array", "string", "number", "integer", "boolean", "null", "#", "#/$defs/a", "#a", "date-time", "uuid", "[a-z]+", "(", "a"),
    *(0, 1, -1, 3, 2.5, 1e308, 10**30, True, False, None, [], {}, "", "\0", "\ud7ff"),
)  # fmt: skip
_REGEX = (*"()[]{}|*+?.^$\\-,:=!<>abd019 ", "(?:", "(?=", "(?i)", "\\d", "\\b", "\\p{L}", "\\x41", "{2,3}", "{3,2}", "[^", "é", "\n")  # fmt: skip
_GRAMMAR = ("root ::= ", "start: ", "root", "start", "a", "b", '"a"', "'b'", "/x/", "[a-z]", "[^\\n]", " | ", "\n", "(", ")", "*", "+", "?", "{2}", "{1,}", "::=", ":", "%json {}", "%ignore ", "%lark", "# x", "<think>", "[1-2]", "\\x41", "\\u00e9", "[[", "]]", ".", "=", " ")  # fmt: skip
SEEDS = (
    b"\0\2\0\1\1\2\x25\2\2\1\4",
    *(bytes([kind, 20, *range(128, 160, 3)]) for kind in (1, 2, 3)),
    b'\2\x10root ::= "a" | b\nb ::= [a-z]+',
)


def check(data: bytes) -> None:
    """Write the grammar of one form."""
    source = Source(data)
    refusal = ""
    try:
        assert written(_form(source))
    except InvalidGrammar as exc:
        refusal = str(exc)
    assert len(refusal) < 2000


def _form(source: Source) -> Body:
    match source.byte() % 4:
        case 0:
            return JsonForm(schema=json.dumps(_schema(source, 0)))
        case 1:
            return RegexForm(source.text(_REGEX, 40))
        case 2:
            return GrammarForm(source.text(_GRAMMAR, 60))
        case _:
            return ChoiceForm(tuple(source.text(_REGEX, 5) for _ in range(1 + source.byte() % 4)))


def _schema(source: Source, depth: int) -> Any:
    kind = source.byte() % 8
    if depth > 6 or source.is_empty or kind < 3:
        return source.pick(_VALUES)
    count = source.byte() % 4
    if kind == 3:
        return [_schema(source, depth + 1) for _ in range(count)]
    return {source.pick(_KEYS): _schema(source, depth + 1) for _ in range(count)}
