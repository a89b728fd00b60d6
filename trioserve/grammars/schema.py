"""JSON schemas of clients, made into what llguidance takes: checked, stripped to what it knows, references gathered."""

import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final
from urllib.parse import unquote

from trioserve.errors import InvalidGrammar
from trioserve.grammars.disjoint import first_overlap
from trioserve.grammars.keywords import CHECKS, count, within_exact
from trioserve.grammars.regexes import translated

Schema = dict[str, Any]

FORMATS: Final = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())
"""Those that are enforced; every other ``format`` is an annotation."""
MAX_REFERENCES_DEEP: Final = 200
"""Schemas inside each other, references followed; each takes a piece of the compiler's stack."""
WHITESPACE: Final = r"[ \t]{1,2}|\r?\n[ \t]{0,64}"
"""Between the parts of a JSON text: lines and indentation, yet no endless run of either, in which models get lost."""

_ONE: Final = ("additionalItems", "additionalProperties", "items")
_MANY: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED: Final = ("patternProperties", "properties")
_COUNTS: Final = ("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties")
_NUMBERS: Final = ("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf")
_REFUSED: Final[Mapping[str, Callable[[Any], bool]]] = {
    "not": lambda value: value is not False,
    "if": lambda value: True,
    "contains": lambda value: True,
    "dependencies": bool,
    "dependentRequired": bool,
    "dependentSchemas": bool,
    "unevaluatedItems": lambda value: value is not True,
    "unevaluatedProperties": lambda value: value is not True,
    "uniqueItems": lambda value: value is not False,
    "$dynamicRef": lambda value: True,
    "$recursiveRef": lambda value: True,
}  # fmt: skip
"""Keywords that no grammar here expresses, and whether a value of theirs says anything."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A schema without what cannot or need not be said in a grammar."""

    root: Schema
    defs: Mapping[str, Schema] = field(default_factory=dict)
    """What references lead to: every ``$ref`` is ``#/$defs/`` and one of these names."""

    def resolved(self, schema: Schema) -> Schema:
        """``schema``, or what it refers to and nothing else."""
        for _ in range(len(self.defs) + 1):
            if len(schema) != 1 or "$ref" not in schema:
                return schema
            schema = self.target(schema)
        raise InvalidGrammar(f"$ref {schema['$ref']} of the schema leads back to itself")

    def target(self, schema: Schema) -> Schema:
        """What the ``$ref`` of ``schema`` leads to."""
        return self.defs[schema["$ref"].removeprefix("#/$defs/")]

    def written(self, schema: Schema, options: Mapping[str, Any]) -> Schema:
        """``schema``, which may be any part of this one, for llguidance: with its options and what it refers to."""
        defs = {name: self.defs[name] for name in self._reached(schema)}
        return {"x-guidance": dict(options), **schema, **({"$defs": defs} if defs else {})}

    def _reached(self, schema: Schema) -> Iterator[str]:
        seen: set[str] = set()
        pending: deque[Schema] = deque([schema])
        while pending:
            part = pending.popleft()
            if "$ref" in part and (name := part["$ref"].removeprefix("#/$defs/")) not in seen:
                seen.add(name)
                yield name
                pending.append(self.defs[name])
            pending.extend(parts_of(part))


def spaced(whitespace: str | None, *, disable_any_whitespace: bool, max_depth: int) -> dict[str, Any]:
    """llguidance's options for the white space of a JSON text; ``whitespace`` is what a request says of it."""
    if whitespace is not None:
        return {"whitespace_pattern": translated(whitespace, max_depth=max_depth)}
    return dict(TIGHT) if disable_any_whitespace else {"whitespace_pattern": WHITESPACE}


TIGHT: Final[Mapping[str, Any]] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""One space behind commas and colons and none elsewhere, as templates write JSON."""


def parsed(text: str, *, max_depth: int) -> Any:
    """The JSON value that ``text`` is.

    Raises:
        InvalidGrammar: It is none, or has more than ``max_depth`` levels.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise _too_deep(max_depth) from None
    except ValueError as fault:
        raise InvalidGrammar(f"the schema is not valid JSON: {fault}") from None
    check_depth(value, max_depth)
    return value


def check_depth(value: Any, max_depth: int) -> None:
    """Refuse a value of more than ``max_depth`` levels."""
    level = [value] if isinstance(value, Mapping | list) else []
    for _ in range(max_depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
            if isinstance(inner, Mapping | list)
        ]
        if not level:
            return
    raise _too_deep(max_depth)


def _too_deep(max_depth: int) -> InvalidGrammar:
    return InvalidGrammar(f"the schema has more than {max_depth} levels, the limit that this server sets")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def prepared(schema: Any, *, max_depth: int) -> Prepared:
    """Make a parsed schema ready.

    Raises:
        InvalidGrammar: It is broken, too deep, or has a keyword that is not supported; the message says where.
    """
    check_depth(schema, max_depth)
    return _Preparation(schema, max_depth).run()


def parts_of(schema: Schema) -> Iterator[Schema]:
    """The schemas directly inside a prepared one, in order."""
    for keyword, value in schema.items():
        if keyword in _ONE or keyword in _MANY:
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict):
                    yield part
        elif keyword in _NAMED:
            yield from (part for part in value.values() if isinstance(part, dict))


@final
class _Preparation:
    def __init__(self, document: Any, max_depth: int) -> None:
        self._document = document
        self._max_depth = max_depth
        self._names: dict[str, str] = {}
        self._pending: deque[tuple[str, str, Any]] = deque()
        self._anchors: dict[str, Any] | None = None
        self._exclusive: list[tuple[list[Any], str]] = []

    def run(self) -> Prepared:
        root = self._object(self._schema(self._document, "#"))
        defs: dict[str, Schema] = {}
        while self._pending:
            name, place, target = self._pending.popleft()
            defs[name] = self._object(self._schema(target, place))
        found = Prepared(root, defs)
        _check_references(found)
        for options, place in self._exclusive:
            self._check_exclusive(found, options, place)
        return found

    def _object(self, schema: Schema | bool) -> Schema:
        if schema is False:
            return {"anyOf": [False]}
        return {} if schema is True else schema

    def _schema(self, schema: Any, place: str) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise InvalidGrammar(f"{place} of the schema must be an object or a boolean")
        found: Schema = {}
        for keyword, value in schema.items():
            self._keyword(found, keyword, value, f"{place}/{keyword}")
        if "propertyNames" in schema:
            self._close_names(found, schema["propertyNames"], place)
        return found

    def _keyword(self, found: Schema, keyword: str, value: Any, place: str) -> None:
        if keyword in _ONE:
            found[keyword] = (
                [self._schema(part, f"{place}/{index}") for index, part in enumerate(value)]
                if isinstance(value, list) and keyword == "items"
                else self._schema(value, place)
            )
        elif keyword in _MANY:
            self._many(found, keyword, value, place)
        elif keyword in _NAMED:
            found[keyword] = self._named(keyword, value, place)
        elif keyword in _COUNTS:
            found[keyword] = count(value, place)
        elif keyword in _NUMBERS:
            if not isinstance(value, int | float) or (isinstance(value, bool) and "exclusive" not in keyword):
                raise InvalidGrammar(f"{place} of the schema must be a number")
            found[keyword] = within_exact(keyword, value)
        elif keyword in CHECKS:
            CHECKS[keyword](value, place)
            found[keyword] = value
        elif keyword == "pattern":
            found[keyword] = self._pattern(value, place)
        elif keyword == "format" and isinstance(value, str) and value in FORMATS:
            found[keyword] = value
        elif keyword == "$ref":
            found[keyword] = self._reference(value, place)
        elif keyword in _REFUSED and _REFUSED[keyword](value):
            raise InvalidGrammar(f"{keyword} is not supported in a schema that answers are held to ({place})")

    def _many(self, found: Schema, keyword: str, value: Any, place: str) -> None:
        if not isinstance(value, list) or not value:
            raise InvalidGrammar(f"{place} of the schema must be a list of schemas, and not empty")
        parts = [self._schema(part, f"{place}/{index}") for index, part in enumerate(value)]
        if keyword == "oneOf":
            self._exclusive.append((parts, place))
            keyword = "anyOf"
        if keyword == "anyOf" and keyword in found:  # beside a oneOf: both hold
            keyword, parts = "allOf", [{"anyOf": parts}]
        found[keyword] = [*found.get(keyword, []), *parts]

    def _named(self, keyword: str, value: Any, place: str) -> Schema:
        if not isinstance(value, Mapping):
            raise InvalidGrammar(f"{place} of the schema must be an object")
        named = {name: self._schema(part, f"{place}/{_pointer(name)}") for name, part in value.items()}
        if keyword == "patternProperties":
            return {self._pattern(name, place): part for name, part in named.items()}
        return named

    def _pattern(self, value: Any, place: str) -> str:
        if not isinstance(value, str):
            raise InvalidGrammar(f"{place} of the schema must be a string")
        try:
            return f"^{translated(value, max_depth=self._max_depth, is_search=True)}$"
        except InvalidGrammar as fault:
            raise InvalidGrammar(f"{place} of the schema: {fault}") from None

    def _close_names(self, found: Schema, names: Any, place: str) -> None:
        """Put a list of allowed names into effect: each is a property, and there are no others."""
        if isinstance(names, Mapping) and "$ref" in names:
            names = self._target(names["$ref"], f"{place}/propertyNames")
        if isinstance(names, Mapping) and "enum" not in names and "const" not in names:
            if set(names) & {
                "pattern",
                "minLength",
                "maxLength",
                "format",
                "anyOf",
                "oneOf",
                "allOf",
                "$ref",
            }:
                raise InvalidGrammar(f"propertyNames is supported with enum and const only ({place})")
            return
        allowed = names.get("enum", [names.get("const")]) if isinstance(names, Mapping) else names
        if not isinstance(allowed, list) or "patternProperties" in found:
            raise InvalidGrammar(f"propertyNames is supported with enum and const only ({place})")
        others = found.get("additionalProperties", {})
        own = found.get("properties", {})
        found["properties"] = {name: own.get(name, others) for name in allowed if isinstance(name, str)}
        found["additionalProperties"] = False

    # ---- references --------------------------------------------------------------------------------------------------

    def _reference(self, reference: Any, place: str) -> str:
        target = self._target(reference, place)
        if reference not in self._names:
            self._names[reference] = f"d{len(self._names)}"
            self._pending.append((self._names[reference], reference, target))
        return f"#/$defs/{self._names[reference]}"

    def _target(self, reference: Any, place: str) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise InvalidGrammar(
                f"{place} of the schema must lead to a place in the same schema, as #/... does"
            )
        path = unquote(reference[1:])
        if path and not path.startswith("/"):
            return self._anchored(path, place)
        value = self._document
        for step in path.split("/")[1:] if path.strip("/") else []:
            value = _inside(value, step.replace("~1", "/").replace("~0", "~"))
            if value is None:
                raise InvalidGrammar(f"{place} of the schema leads nowhere: {reference}")
        return value

    def _anchored(self, name: str, place: str) -> Any:
        if self._anchors is None:
            self._anchors = {}
            pending: list[Any] = [self._document]
            while pending:
                part = pending.pop()
                if isinstance(part, Mapping):
                    if isinstance(part.get("$anchor"), str):
                        self._anchors[part["$anchor"]] = part
                    pending.extend(part.values())
                elif isinstance(part, list):
                    pending.extend(part)
        if name not in self._anchors:
            raise InvalidGrammar(f"{place} of the schema leads nowhere: #{name}")
        return self._anchors[name]

    # ---- alternatives ------------------------------------------------------------------------------------------------

    def _check_exclusive(self, found: Prepared, options: list[Any], place: str) -> None:
        if overlap := first_overlap(found, options):
            first, second = overlap
            raise InvalidGrammar(
                f"{place} of the schema: one value may fit both alternative {first} and alternative {second}, and "
                "that exactly one fits cannot be held to: use anyOf, or give each a property with a const of its own"
            )


def _inside(value: Any, step: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(step)
    if isinstance(value, list) and re.fullmatch(r"\d{1,9}", step) and int(step) < len(value):
        return value[int(step)]
    return None


def _pointer(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _check_references(prepared_schema: Prepared) -> None:
    """Refuse references that only lead to each other, and rows of them that are too long for the compiler."""
    for schema in prepared_schema.defs.values():
        prepared_schema.resolved(schema)
    seen: set[str] = set()
    stack = [iter([prepared_schema.root])]
    while stack:
        part = next(stack[-1], None)
        if part is None:
            stack.pop()
            continue
        inner = list(parts_of(part))
        if "$ref" in part and part["$ref"] not in seen:
            seen.add(part["$ref"])
            inner.insert(0, prepared_schema.target(part))
        stack.append(iter(inner))
        if len(stack) > MAX_REFERENCES_DEEP:
            raise InvalidGrammar(
                f"the schema has more than {MAX_REFERENCES_DEEP} levels where its references are followed"
            )
