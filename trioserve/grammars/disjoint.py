"""Proves that no value fits two alternatives of a schema, so that "exactly one of them" is "one of them"."""

import json
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, Final, Protocol, final

_MAX_STEPS: Final = 20_000
"""Comparisons that one proof may take; what is not proven by then counts as unproven."""
_MAX_DEPTH: Final = 24
_TYPES: Final = frozenset({"null", "boolean", "number", "string", "array", "object"})


class Resolver(Protocol):
    """Follows references."""

    def resolved(self, schema: dict[str, Any]) -> dict[str, Any]: ...


def first_overlap(resolver: Resolver, options: Sequence[Any]) -> tuple[int, int] | None:
    """The first two of ``options``, prepared schemas, that one value may fit for all that can be shown."""
    proof = _Proof(resolver)
    if proof.are_told_apart_by_a_tag(options):
        return None
    for (first, one), (second, other) in combinations(enumerate(options), 2):
        if not proof.are_disjoint(one, other, _MAX_DEPTH):
            return first, second
    return None


@final
class _Proof:
    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._steps = 0

    def are_told_apart_by_a_tag(self, options: Sequence[Any]) -> bool:
        """Whether all are objects with a property that must be there and has other values in each."""
        objects = [self._resolved(option) for option in options]
        if not objects or not all(_types(option) == {"object"} for option in objects):
            return False
        return any(self._is_tag(name, objects) for name in objects[0].get("required", []))

    def _is_tag(self, name: str, objects: Sequence[dict[str, Any]]) -> bool:
        seen: set[str] = set()
        for option in objects:
            values = _values(self._resolved(option.get("properties", {}).get(name, True)))
            if name not in option.get("required", []) or values is None or values & seen:
                return False
            seen |= values
        return True

    def are_disjoint(self, one: Any, other: Any, depth: int) -> bool:
        self._steps += 1
        if one is False or other is False:
            return True
        if depth == 0 or self._steps > _MAX_STEPS:
            return False
        one, other = self._resolved(one), self._resolved(other)
        return (
            self._differ_in_values(one, other)
            or not _types(one) & _types(other)
            or self._differ_in_a_property(one, other, depth)
            or self._differ_in_parts(one, other, depth)
            or self._differ_in_parts(other, one, depth)
        )

    def _differ_in_values(self, one: dict[str, Any], other: dict[str, Any]) -> bool:
        values, others = _values(one), _values(other)
        return values is not None and others is not None and not values & others

    def _differ_in_a_property(self, one: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        """Whether a property that one of them requires cannot fit both."""
        if _types(one) != {"object"} or _types(other) != {"object"}:
            return False
        names = dict.fromkeys([*one.get("required", []), *other.get("required", [])])
        return any(
            self.are_disjoint(_property(one, name), _property(other, name), depth - 1) for name in names
        )

    def _differ_in_parts(self, one: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        if "anyOf" in one and all(self.are_disjoint(part, other, depth - 1) for part in one["anyOf"]):
            return True
        parts: Iterator[Any] = iter([*one.get("allOf", []), *_reference(one)])
        return any(self.are_disjoint(part, other, depth - 1) for part in parts)

    def _resolved(self, schema: Any) -> dict[str, Any]:
        return self._resolver.resolved(schema) if isinstance(schema, dict) else {}


def _reference(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"$ref": schema["$ref"]}] if "$ref" in schema else []


def _property(schema: dict[str, Any], name: str) -> Any:
    properties = schema.get("properties", {})
    if name in properties:
        return properties[name]
    return True if schema.get("patternProperties") else schema.get("additionalProperties", True)


def _types(schema: dict[str, Any]) -> frozenset[str] | set[str]:
    named = schema.get("type", list(_TYPES))
    names = {
        "number" if name == "integer" else name for name in (named if isinstance(named, list) else [named])
    }
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    return names if values is None else names & set(map(_type, values))


def _values(schema: dict[str, Any]) -> set[str] | None:
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if values is None or any(isinstance(value, list | dict) for value in values):
        return None
    return set(map(_key, values))


def _type(value: Any) -> str:
    for kind, name in (((bool), "boolean"), ((int, float), "number"), (str, "string"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "null" if value is None else "object"


def _key(value: Any) -> str:
    """Text that equal scalars of JSON share."""
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)
