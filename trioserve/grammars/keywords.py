"""Values of the keywords of JSON schemas that are no schemas themselves."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from trioserve.errors import InvalidGrammar

TYPES: Final = ("null", "boolean", "number", "string", "array", "object")
"""Of JSON; ``integer`` is a kind of number."""
_MAX_EXACT: Final = 1 << 53
"""Whole numbers up to here are exact in floats."""


def count(value: Any, place: str) -> int:
    """A number of things.

    Raises:
        InvalidGrammar: It is none.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise InvalidGrammar(f"{place} of the schema must be a whole number from 0 to {(1 << 31) - 1}")
    return value


def within_exact(keyword: str, value: float) -> float:
    """A bound, moved inwards to where the compiler's floats hold whole numbers exactly."""
    if abs(value) <= _MAX_EXACT:
        return value
    is_upper = keyword.lower().endswith("maximum")
    if keyword == "multipleOf" or is_upper is (value < 0):
        raise InvalidGrammar(f"{keyword} {str(value)[:40]} of the schema is beyond {_MAX_EXACT}, the limit")
    return _MAX_EXACT if is_upper else -_MAX_EXACT


def _check_exact(value: Any, place: str) -> None:
    if isinstance(value, int) and abs(value) > _MAX_EXACT:
        raise InvalidGrammar(
            f"{place} of the schema has a number beyond {_MAX_EXACT}, which is not kept exactly"
        )


def _check_type(value: Any, place: str) -> None:
    names = value if isinstance(value, list) else [value]
    if not names or not all(name in (*TYPES, "integer") for name in names if isinstance(name, str)):
        raise InvalidGrammar(f"{place} of the schema must name types of JSON: {', '.join(TYPES)}, integer")
    if not all(isinstance(name, str) for name in names):
        raise InvalidGrammar(f"{place} of the schema must be a string or a list of strings")


def _check_enum(value: Any, place: str) -> None:
    if not isinstance(value, list) or not value:
        raise InvalidGrammar(f"{place} of the schema must be a list of values, and not empty")
    for one in value:
        _check_exact(one, place)


def _check_names(value: Any, place: str) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InvalidGrammar(f"{place} of the schema must be a list of strings")


CHECKS: Final[Mapping[str, Callable[[Any, str], None]]] = {
    "const": _check_exact,
    "enum": _check_enum,
    "required": _check_names,
    "type": _check_type,
}
"""Refuse what such a keyword cannot have, naming its place."""
