"""Schemas to measure with: what people send, and what attackers do."""

import json
from typing import Any

_WORDS = {"type": "string"}
_ADDRESS = {
    "type": "object",
    "properties": {"street": _WORDS, "city": _WORDS, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
    "required": ["street", "city", "zip"],
    "additionalProperties": False,
}

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": _WORDS,
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "role": {"enum": ["admin", "editor", "reader"]},
        "tags": {"type": "array", "items": _WORDS, "maxItems": 8},
        "address": _ADDRESS,
        "manager": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["name", "age", "email", "role", "tags", "address", "manager"],
    "additionalProperties": False,
}
"""Typical: a pydantic model of seven fields, one of them nested."""

FLAT: dict[str, Any] = {
    "type": "object",
    "properties": {"name": _WORDS, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

RECURSIVE: dict[str, Any] = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "number"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["value", "children"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}

WIDE: dict[str, Any] = {
    "type": "object",
    "properties": {
        f"field_{number}": {"type": ["string", "null"]} if number % 3 else {"type": "number"}
        for number in range(100)
    },
    "required": [f"field_{number}" for number in range(100)],
    "additionalProperties": False,
}

ENDLESS: dict[str, Any] = {"type": "array", "items": {"type": "string"}, "minItems": 500}
"""No answer of some hundred tokens ends it."""

TYPICAL = {"flat": FLAT, "person": PERSON, "recursive": RECURSIVE, "100 fields": WIDE}


def unlike(schema: dict[str, Any], number: int) -> dict[str, Any]:
    """The same schema under a name that no cache has seen."""
    renamed = {f"{name}_{number}": part for name, part in schema["properties"].items()}
    return {**schema, "properties": renamed, "required": list(renamed)}


def hostile(number: int) -> dict[str, list[dict[str, Any]]]:
    """Fields of requests that are meant to hurt, none of them in any cache: by whether they can be told at a glance."""
    too_deep: dict[str, Any] = {"type": "integer"}
    for _ in range(90):
        too_deep = {"type": "array", "items": too_deep}
    names = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 50}}, "$ref": "#/$defs/a", "x": number}
    return {
        "deep, nested, large": [
            {"guided_json": too_deep | {"description": str(number)}},
            {"guided_json": '{"items":' * 400 + "{}" + "}" * 400},
            {"guided_regex": f"(a+)+{number}$"},
            {"guided_regex": f"(((a+)+)+b?)+{number}"},
            {"guided_regex": f"((a{{1000}}){{1000}}){{{number % 900 + 2}}}"},
            {"guided_regex": "(" * 300 + "a" + ")+" * 300 + str(number)},
            {"guided_choice": [f"{number}-{i}-" + "z" * 20 for i in range(250_000)]},
            {"guided_json": {"enum": [f"{number}-{i}-" + "y" * 20 for i in range(250_000)]}},
            {"guided_json": names},
            {"guided_grammar": f'root ::= root root | "{number}" | ""'},
        ],
        "long to compile": [
            {"guided_regex": f"(x?){{3000}}x{{3000}}{number}"},
            {"guided_json": {"enum": [f"{number}-{i}-" + "y" * 40 for i in range(4000)]}},
            {"guided_grammar": "root ::= " + "a " * 2000 + f'\na ::= b b\nb ::= c c\nc ::= "{number}"?'},
        ],
    }


def body(fields: dict[str, Any], *, max_tokens: int) -> bytes:
    """A chat request with these fields."""
    asked = {"messages": [{"role": "user", "content": "Make a JSON object with name Ana and age 30."}]}
    return json.dumps({**asked, "temperature": 0, "max_tokens": max_tokens, **fields}).encode()
