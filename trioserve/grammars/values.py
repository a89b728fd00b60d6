"""Values of a schema in other notations than a whole JSON text: Python's literals, and JSON between tags."""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from trioserve.core.json_types import is_among, type_of
from trioserve.errors import InvalidGrammar
from trioserve.grammars.keywords import TYPES
from trioserve.grammars.lark import (
    ANY_TEXT,
    LarkWriter,
    either,
    listing,
    optional,
    quoted,
    without,
)
from trioserve.grammars.schema import Prepared, Schema

Leaf = tuple[str, Schema]
"""A type, and the schema of values of that type; ``integer`` is a type of its own here."""

_CHAR: Final = r"[^{quote}\\\x00-\x1f\x7f]"
_INTEGER: Final = "/-?(0|[1-9][0-9]{0,17})/"
_NUMBER: Final = r"/-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+\-]?[0-9]{1,2})?/"
_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_MAX_NESTED_ANY_OF: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Notation:
    """How values are spelled."""

    constants: Mapping[Any, str]
    """Of True, False and None."""
    quotes: str
    escapes: str
    """A regular expression of what a backslash may begin."""
    forbidden: str = ""
    """What no string may contain, because it would end the value."""

    def spelled(self, value: Any) -> str:
        """A constant value."""
        match value:
            case None | bool():
                return self.constants[value]
            case list():
                return f"[{', '.join(map(self.spelled, value))}]"
            case dict():
                inside = (f"{self.spelled(key)}: {self.spelled(one)}" for key, one in value.items())
                return f"{{{', '.join(inside)}}}"
            case str():
                return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
            case _:
                return json.dumps(value)


PYTHON: Final = Notation(
    constants={True: "True", False: "False", None: "None"}, quotes="'\"", escapes=r"\\[\\'\"nrt]"
)


def json_without(text: str) -> Notation:
    """JSON in which no string contains ``text``."""
    constants = {True: "true", False: "false", None: "null"}
    return Notation(constants=constants, quotes='"', escapes=r"\\[\\\"nrtbf]", forbidden=text)


@final
class ValueWriter:
    """Writes expressions of one document's schemas in one notation."""

    def __init__(self, write: LarkWriter, document: Prepared, notation: Notation) -> None:
        self._write = write
        self._document = document
        self._notation = notation
        self._targets: dict[str, str] = {}
        self._pending: deque[tuple[str, Schema]] = deque()
        self._unions: dict[int, str] = {}
        self._any: str | None = None

    def finish(self) -> None:
        """Write what the values so far refer to."""
        while self._pending:
            name, schema = self._pending.popleft()
            self._write.define(name, self.value(schema))

    def value(self, schema: Any) -> str:
        """The expression of the values that fit ``schema``.

        Raises:
            InvalidGrammar: None does.
        """
        if isinstance(schema, dict) and len(schema) == 1 and "$ref" in schema:
            return self._target(schema)
        if schema is True or schema == {}:
            return self._anything()
        if schema is False:
            raise self._nothing_fits()
        if "anyOf" not in schema:
            return self._write.rule(self._leaves(schema))
        if id(schema) not in self._unions:  # it may contain itself
            self._unions[id(schema)] = self._write.reserve()
            self._write.define(self._unions[id(schema)], self._leaves(schema))
        return self._unions[id(schema)]

    def _leaves(self, schema: Schema) -> str:
        written = [self.leaf(*leaf) for leaf in leaves(self._document, schema)]
        if not written:
            raise self._nothing_fits()
        return either(written)

    def _nothing_fits(self) -> InvalidGrammar:
        return InvalidGrammar("the schema of a tool's parameter has no value that fits it")

    def leaf(self, kind: str, schema: Schema) -> str:
        """The values of one type."""
        if "enum" in schema:
            return either(map(self._constant, schema["enum"]))
        match kind:
            case "null":
                return quoted(self._notation.spelled(None))
            case "boolean":
                return either(quoted(self._notation.spelled(value)) for value in (True, False))
            case "integer" | "number":
                return self._number(kind, schema)
            case "string":
                return self._string(schema)
            case "array":
                return self._array(schema)
            case _:
                return self._object(schema)

    def _target(self, schema: Schema) -> str:
        reference = schema["$ref"]
        if reference not in self._targets:
            self._targets[reference] = self._write.reserve()
            self._pending.append((self._targets[reference], self._document.target(schema)))
        return self._targets[reference]

    def _anything(self) -> str:
        if self._any is None:
            self._any = self._write.reserve()
            leaf_of_each = [self.leaf(kind, {}) for kind in TYPES]
            self._write.define(self._any, either(leaf_of_each))
        return self._any

    # ---- scalars -----------------------------------------------------------------------------------------------------

    def _constant(self, value: Any) -> str:
        spelled = self._notation.spelled(value)
        if self._notation.forbidden and self._notation.forbidden in spelled:
            raise InvalidGrammar(
                f"the value {spelled[:80]} of a tool's parameter contains {self._notation.forbidden!r}"
            )
        others = [repr(value)] if isinstance(value, str) and self._is_plain(value) else []
        return either(map(quoted, [spelled, *others]))

    def _is_plain(self, value: str) -> bool:
        """Whether Python's quotes may stand around a string as it is."""
        return "'" in self._notation.quotes and value.isprintable() and not set(value) & set("'\"\\")

    def _number(self, kind: str, schema: Schema) -> str:
        bounds: Schema = {keyword: schema[keyword] for keyword in _BOUNDS if keyword in schema}
        if bounds:
            return self._write.json({"type": kind, **bounds})
        return self._write.terminal(_INTEGER if kind == "integer" else _NUMBER)

    def _string(self, schema: Schema) -> str:
        limits = string_limits(schema)
        return either(self._write.terminal(self._quoted(quote, limits)) for quote in self._notation.quotes)

    def _quoted(self, quote: str, limits: Sequence[str]) -> str:
        """A string between ``quote``; one with limits is counted as it stands, so it has no escapes."""
        char = _CHAR.format(quote=quote)
        inside = f"/{char}*/" if limits else f"/({char}|{self._notation.escapes})*/"
        if self._notation.forbidden:
            limits = [*limits, without(self._notation.forbidden)]
        return f"{quoted(quote)} ({' & '.join([inside, *limits])}) {quoted(quote)}"

    # ---- collections -------------------------------------------------------------------------------------------------

    def _array(self, schema: Schema) -> str:
        prefix = schema.get("prefixItems", [])
        items = schema.get("items", True)
        if isinstance(items, list):  # as schemas said it before 2020
            prefix, items = items, schema.get("additionalItems", True)
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        if items is False:
            high = len(prefix) if high is None else min(high, len(prefix))
        if high is not None and high < low:
            raise InvalidGrammar(f"a tool's parameter must have at least {low} items, and at most {high}")
        tail = (
            "" if items is False else self._repeated(self.value(items), low - len(prefix), high, len(prefix))
        )
        for index, part in reversed(list(enumerate(prefix if high is None else prefix[:high]))):
            item = f"{quoted(', ') if index else ''} {self.value(part)} {tail}".strip()
            tail = self._write.rule(item if index < low else optional(item))
        return f"{quoted('[')} {tail} {quoted(']')}"

    def _repeated(self, item: str, low: int, high: int | None, num_before: int) -> str:
        """Items behind ``num_before`` others."""
        most = None if high is None else max(high - num_before, 0)
        low = max(low, 0)
        if most == 0:
            return ""
        following = f"({quoted(', ')} {item})"
        if num_before:
            return f"{following}{_times(low, most)}"
        behind = f"{following}{_times(max(low - 1, 0), None if most is None else most - 1)}"
        return f"{item} {behind}" if low else optional(f"{item} {behind}")

    def _object(self, schema: Schema) -> str:
        named = members_of(schema)
        members = [
            (f"{self._key(name)} {self.value(part)}", is_required) for name, part, is_required in named
        ]
        others = [*schema.get("patternProperties", {}).items()]
        if schema.get("additionalProperties", True) is not False:
            others.append(("", schema.get("additionalProperties", True)))
        pairs = [
            f"{self._other_key(pattern, [name for name, _, _ in named])} {quoted(': ')} {self.value(part)}"
            for pattern, part in others
            if part is not False
        ]
        return f"{quoted('{')} {self._members(schema, members, pairs)} {quoted('}')}"

    def _members(self, schema: Schema, members: list[tuple[str, bool]], pairs: list[str]) -> str:
        low, high = schema.get("minProperties", 0), schema.get("maxProperties")
        if not members:
            return self._repeated(self._write.rule(either(pairs)), low, high, 0) if pairs else ""
        if low > sum(is_required for _, is_required in members) or (high is not None and high < len(members)):
            raise InvalidGrammar(
                "minProperties and maxProperties are supported for objects without named properties only, "
                "where a tool's arguments are not written as JSON"
            )
        if pairs:
            pair = self._write.rule(either(pairs))
            members.append((f"{pair} ({quoted(', ')} {pair})*", False))
        return listing(members, ", ", self._write)

    def _key(self, name: str) -> str:
        return f"{self._constant(name)} {quoted(': ')}"

    def _other_key(self, pattern: str, taken: Sequence[str]) -> str:
        """A key that is none of ``taken``."""
        limits = [f"/{pattern[1:-1]}/"] if pattern else []
        if taken:
            limits.append(f"~({' | '.join(map(quoted, taken))})")
        limits = limits or [f"/{ANY_TEXT}/"]
        return either(self._write.terminal(self._quoted(quote, limits)) for quote in self._notation.quotes)


def _times(low: int, high: int | None) -> str:
    if high is None:
        return "*" if low == 0 else f"{{{low},}}"
    return f"{{{low},{high}}}"


def members_of(schema: Schema) -> list[tuple[str, Any, bool]]:
    """The named properties of an object in their order: name, schema, whether it must be there."""
    required = dict.fromkeys(schema.get("required", []))
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    found = [
        (name, part, name in required)
        for name, part in properties.items()
        if part is not False or name in required
    ]
    return found + [(name, others, True) for name in required if name not in properties]


def string_limits(schema: Schema) -> list[str]:
    """What the text of a string must fit, as parts of a terminal."""
    limits = []
    if "pattern" in schema:
        limits.append(f"/{schema['pattern'][1:-1]}/")
    if schema.get("minLength") or "maxLength" in schema:
        limits.append(f"/(?s:.{_times(schema.get('minLength', 0), schema.get('maxLength'))})/")
    return limits


# ---- schemas, type by type -------------------------------------------------------------------------------------------


def leaves(
    document: Prepared, schema: Any, depth: int = _MAX_NESTED_ANY_OF, seen: set[int] | None = None
) -> list[Leaf]:
    """``schema`` as alternatives of one type each.

    What no alternative of these can say, as parts that must hold together, is left out: of the right type is enough.

    Args:
        seen: The alternatives that were there before; each counts once.
    """
    seen = set() if seen is None else seen
    if schema is False or depth == 0:
        return []
    if schema is True:
        schema = {}
    schema = document.resolved(schema)
    if "const" in schema or "enum" in schema:
        return _constants(schema)
    branches = schema.get("anyOf")
    allowed = _types(schema)
    if branches is not None:
        found: list[Leaf] = []
        for branch in branches:
            target = document.resolved(branch) if isinstance(branch, dict) else branch
            if id(target) not in seen:
                seen.add(id(target))
                found += leaves(document, target, depth - 1, seen)
        return [leaf for leaf in found if is_among(leaf[0], allowed)]
    parts = [*schema.get("allOf", []), *([{"$ref": schema["$ref"]}] if "$ref" in schema else [])]
    if parts:
        joined: Schema = {key: value for key, value in schema.items() if key not in ("allOf", "$ref")}
        for part in parts:
            joined = _joined(joined, document.resolved(part) if isinstance(part, dict) else {})
        return leaves(document, joined, depth - 1, seen)
    return [(kind, schema) for kind in allowed]


def _constants(schema: Schema) -> list[Leaf]:
    allowed = _types(schema)
    found: dict[str, list[Any]] = {}
    for value in schema.get("enum", [schema.get("const")]):
        if is_among(kind := type_of(value), allowed):
            found.setdefault(kind, []).append(value)
    return [(kind, {"enum": values}) for kind, values in found.items()]


def _joined(one: Schema, other: Schema) -> Schema:
    """Both schemas in one, as far as they speak of different things; where they do not, the properties of both."""
    joined = {**one, **other}
    for keyword in ("properties", "patternProperties"):
        if keyword in one and keyword in other:
            joined[keyword] = {**one[keyword], **other[keyword]}
    if "required" in one and "required" in other:
        joined["required"] = [*one["required"], *other["required"]]
    return joined


def _types(schema: Schema) -> list[str]:
    named = schema.get("type", list(TYPES))
    return named if isinstance(named, list) else [named]
