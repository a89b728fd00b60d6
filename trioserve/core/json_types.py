"""The types of JSON's values, as JSON Schema names them."""

from collections.abc import Container, Mapping
from typing import Any


def type_of(value: Any) -> str:
    """The type of a value; whole numbers are integers."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case Mapping():
            return "object"
        case _:
            return "array"


def is_among(kind: str, types: Container[str]) -> bool:
    """Whether ``kind`` is one of ``types``; integers are numbers as well."""
    return kind in types or (kind == "integer" and "number" in types)
