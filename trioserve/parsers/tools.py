"""The tools of a request, as parsers need them: names, and types of parameters."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, final

from msgspec import Struct

from trioserve.core.json_types import type_of
from trioserve.parsers.json_text import is_json

_MAX_REFERENCES: Final = 16
"""Schemas inside each other that are followed to find a type."""
_MAX_NUMBER_CHARS: Final = 400
"""Of numbers in Python's notation; longer ones are text."""

ALL_TYPES: Final = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})


class Tool(Struct, frozen=True):
    """A function that the model may call."""

    name: str
    parameters: Mapping[str, Any] = {}
    """JSON schema of the arguments; empty where any will do."""


@final
class ToolSet:
    """The tools of a request, by name; no tools means that any name may be called."""

    __slots__ = ("_tools",)

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}

    def has(self, name: str) -> bool:
        """Whether ``name`` may be called."""
        return not self._tools or name in self._tools

    def types(self, name: str, parameter: str) -> frozenset[str] | None:
        """The JSON types that a parameter may have; None where the schema does not say."""
        tool = self._tools.get(name)
        if tool is None:
            return None
        root = tool.parameters
        schemas = [root, *_branches(root, root)]
        for schema in schemas:
            properties = schema.get("properties")
            if isinstance(properties, Mapping) and parameter in properties:
                return _types(properties[parameter], root, _MAX_REFERENCES)
        return None


# ---- types of a schema -----------------------------------------------------------------------------------------------


def _branches(schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The schemas that ``schema`` is made of, one level down."""
    found = [schema.get("$ref")]
    for key in ("anyOf", "oneOf", "allOf"):
        branches = schema.get(key)
        found += branches if isinstance(branches, list) else []
    return [branch for branch in (_resolved(one, root) for one in found) if isinstance(branch, Mapping)]


def _resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """Follow a reference into the same document; None where it leads nowhere."""
    if not isinstance(schema, str):
        return schema
    if not schema.startswith("#"):
        return None
    place: Any = root
    for step in schema.removeprefix("#").split("/")[1:]:
        place = place.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(place, Mapping) else None
    return place


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> frozenset[str] | None:
    if not isinstance(schema, Mapping) or depth == 0:
        return None
    named = schema.get("type")
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    types = {name for name in names if isinstance(name, str)} & ALL_TYPES
    if not types and ("enum" in schema or "const" in schema):
        values = schema.get("enum", [schema.get("const")])
        types = {type_of(value) for value in values} if isinstance(values, list) else set()
    if not types:
        for branch in _branches(schema, root):
            types |= _types(branch, root, depth - 1) or set()
    if types and schema.get("nullable") is True:
        types |= {"null"}
    return frozenset(types) or None


# ---- text to JSON ----------------------------------------------------------------------------------------------------


def to_json(text: str, types: frozenset[str], from_python: Callable[[str], str | None]) -> str:
    """The JSON text of a value that a format carries as plain text, of one of ``types`` if it can be.

    Args:
        from_python: Makes JSON of Python's notation, or None.
    """
    bare = text.strip()
    if is_json(bare) and _fits(bare, types):
        return bare
    lower = bare.lower()
    if "boolean" in types and lower in ("true", "false"):
        return lower
    if lower in ("null", "none") and ("null" in types or "string" not in types):
        return "null"
    if types & {"number", "integer"} and (number := _number(bare, types)) is not None:
        return number
    if types & {"object", "array"} and (found := from_python(bare)) is not None and _fits(found, types):
        return found
    return json.dumps(text, ensure_ascii=False)


def _fits(text: str, types: frozenset[str]) -> bool:
    """Whether JSON ``text`` is of one of ``types``; a text in quotes is never taken for a quoted string."""
    match text[0]:
        case "{":
            return "object" in types
        case "[":
            return "array" in types
        case "t" | "f":
            return "boolean" in types
        case "n":
            return "null" in types
        case '"':
            return False
        case _:
            is_whole = not any(char in text for char in ".eE") or (
                len(text) < _MAX_NUMBER_CHARS and float(text).is_integer()
            )
            return "number" in types or ("integer" in types and is_whole)


def _number(text: str, types: frozenset[str]) -> str | None:
    """What Python calls a number and JSON does not: a sign before it, zeros, underscores."""
    if len(text) > _MAX_NUMBER_CHARS:
        return None
    try:
        return str(int(text))
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return None
    return repr(value) if "number" in types and math.isfinite(value) else None
