"""JSON schemas in requests, as far as the front touches them: it writes them down, and checks nothing."""

import json
from collections.abc import Iterator
from typing import Any, Final

from pydantic_core import from_json

from trioserve.errors import InvalidRequest

_ONE: Final = (
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)
"""Keywords whose value is a schema."""
_SEVERAL: Final = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
"""Keywords whose value is a list of schemas."""
_NAMED: Final = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
"""Keywords whose value is an object of schemas."""


def schema_text(schema: dict[str, Any] | str, param: str) -> str:
    """The JSON text of a schema that came as an object; one that came as text stays as it is.

    Raises:
        InvalidRequest: It has a number that JSON cannot say.
    """
    if isinstance(schema, str):
        return schema
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as exc:
        raise InvalidRequest(f"{param}: numbers should be finite and of a usual length", param=param) from exc


def closed(schema: dict[str, Any] | str, param: str) -> str:
    """The JSON text of ``schema`` in which no object has other properties than those that are named, unless it says
    that it may.

    Raises:
        InvalidRequest: It is no JSON.
    """
    try:
        root = from_json(schema if isinstance(schema, str) else schema_text(schema, param))
    except ValueError as exc:
        raise InvalidRequest(f"{param}: it is not valid JSON: {exc}", param=param) from exc
    waiting = [root]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting += _parts(part)
            if "properties" in part:
                part.setdefault("additionalProperties", False)
    return schema_text(root, param) if isinstance(root, dict) else json.dumps(root)


def _parts(schema: dict[str, Any]) -> Iterator[Any]:
    """The schemas in ``schema``."""
    yield from (schema[word] for word in _ONE if word in schema)
    for word in _SEVERAL:
        if isinstance(several := schema.get(word), list):
            yield from several
    for word in _NAMED:
        if isinstance(named := schema.get(word), dict):
            yield from named.values()
