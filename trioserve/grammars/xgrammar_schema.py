"""JSON schemas of clients, made into what xgrammar holds answers to.

It passes over what it does not know, and over much that stands beside what it does; so a schema is narrowed to keywords
and combinations whose every answer fits the original, and what has none is refused.
"""

import math
import re
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, final
from urllib.parse import unquote

from trioserve.core.json_types import is_among, type_of
from trioserve.errors import InvalidGrammar
from trioserve.grammars.schema import FORMATS, prepared
from trioserve.grammars.xgrammar_regex import translated

Schema = dict[str, Any]

TYPES: Final = ("null", "boolean", "integer", "number", "string", "array", "object")
_WHOLE: Final = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
"""Keywords beside which xgrammar sees no other."""
_OF_STRINGS: Final = ("pattern", "format", "minLength", "maxLength")
_OF_NUMBERS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_OF_ARRAYS: Final = ("items", "prefixItems", "additionalItems", "minItems", "maxItems")
_OF_OBJECTS: Final = (
    "properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties",
    "maxProperties",
)  # fmt: skip
_OF: Final = {"string": _OF_STRINGS, "number": _OF_NUMBERS, "array": _OF_ARRAYS, "object": _OF_OBJECTS}
_PLAIN_NAME: Final = re.compile(r"[ !#-\[\]-~]+")
"""Names that xgrammar can tell from all others, to whom something else applies."""
_MAX_COUNT: Final = 100_000
_MAX_EXACT: Final = 1 << 53
"""Whole numbers up to it are the same in every reader of JSON."""
_MAX_FACTOR: Final = 1024
"""Of ``multipleOf``; each takes a state of an automaton."""
_MAX_SHOWN: Final = 80


def narrowed(schema: Any, *, max_depth: int) -> Schema:
    """A schema that xgrammar holds to, each of whose values fits ``schema``.

    Objects with named properties have no others unless the schema says so itself.

    Raises:
        InvalidGrammar: It is broken, too deep, fits nothing, or says what xgrammar does not hold to; the message says
            where.
    """
    prepared(schema, max_depth=max_depth)  # for its checks: from here on everything is of the right kind
    return _Narrowing(schema, max_depth).run()


def resolved(schema: Schema, defs: Mapping[str, Schema]) -> Schema:
    """What a narrowed schema refers to, if it does.

    Raises:
        InvalidGrammar: It leads back to itself.
    """
    for _ in range(len(defs) + 1):
        if "$ref" not in schema:
            return schema
        schema = defs[schema["$ref"].removeprefix("#/$defs/")]
    raise InvalidGrammar("a $ref of the schema leads back to itself")


def _unsupported(what: str, place: str) -> InvalidGrammar:
    return InvalidGrammar(
        f"{what} ({place} of the schema) is not supported by xgrammar; the backend guidance may do"
    )


@final
class _Narrowing:
    def __init__(self, document: Any, max_depth: int) -> None:
        self._document = document
        self._max_depth = max_depth
        self._names: dict[str, str] = {}
        self._pending: deque[tuple[str, str, Any]] = deque()

    def run(self) -> Schema:
        root = self._schema(self._document, "#")
        defs: dict[str, Schema] = {}
        while self._pending:
            name, place, target = self._pending.popleft()
            defs[name] = self._schema(target, place)
        for found in [root, *defs.values()]:
            resolved(found, defs)
        return {**root, "$defs": defs} if defs else root

    def _schema(self, schema: Any, place: str) -> Schema:
        if schema is True:
            return {}
        if schema is False:
            raise InvalidGrammar(f"no value fits {place} of the schema")
        whole = [keyword for keyword in _WHOLE if keyword in schema]
        if not whole:
            return self._typed(schema, place)
        self._check_alone(schema, whole, place)
        match whole[0]:
            case "$ref":
                return {"$ref": self._reference(schema["$ref"], f"{place}/$ref")}
            case "const":
                return self._values([schema["const"]], schema, f"{place}/const")
            case "enum":
                return self._values(schema["enum"], schema, f"{place}/enum")
            case keyword:
                return self._options(keyword, schema[keyword], f"{place}/{keyword}")

    def _check_alone(self, schema: Mapping[str, Any], whole: list[str], place: str) -> None:
        others = [keyword for keywords in _OF.values() for keyword in keywords if keyword in schema]
        if "type" in schema and whole[0] not in ("const", "enum"):
            others.append("type")
        if beside := [*whole[1:], *others]:
            raise _unsupported(f"{whole[0]} beside {beside[0]}", place)

    # ---- values, alternatives, references ----------------------------------------------------------------------------

    def _values(self, values: list[Any], schema: Mapping[str, Any], place: str) -> Schema:
        types = _types(schema) if "type" in schema else TYPES
        fitting = [value for value in values if is_among(type_of(value), types)]
        if not fitting:
            raise InvalidGrammar(f"no value fits {place} of the schema")
        return {"enum": fitting}

    def _options(self, keyword: str, options: list[Any], place: str) -> Schema:
        if keyword == "allOf" and len(options) > 1:
            raise _unsupported("allOf with more than one schema", place)
        found = [
            self._schema(option, f"{place}/{index}")
            for index, option in enumerate(options)
            if option is not False or keyword == "allOf"
        ]
        if not found:
            raise InvalidGrammar(f"no value fits {place} of the schema")
        return found[0] if len(found) == 1 else {"anyOf": found}

    def _reference(self, reference: str, place: str) -> str:
        if not (reference == "#" or reference.startswith("#/")):
            raise _unsupported("a $ref that is not of the form #/...", place)
        if reference not in self._names:
            self._names[reference] = f"d{len(self._names)}"
            self._pending.append((self._names[reference], reference, self._target(reference)))
        return f"#/$defs/{self._names[reference]}"

    def _target(self, reference: str) -> Any:
        value = self._document
        for step in unquote(reference).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            value = value[int(step)] if isinstance(value, list) else value[step]
        return value

    # ---- types -------------------------------------------------------------------------------------------------------

    def _typed(self, schema: Mapping[str, Any], place: str) -> Schema:
        types = _types(schema) if "type" in schema else _implied(schema)
        if not types:
            return {}
        found: Schema = {"type": types[0] if len(types) == 1 else list(types)}
        if "string" in types:
            found |= self._string(schema, place)
        if "number" in types or "integer" in types:
            found |= _number(schema, place, is_whole="number" not in types)
        if "array" in types:
            found |= self._array(schema, place)
        if "object" in types:
            found |= self._object(schema, place)
        return found

    def _string(self, schema: Mapping[str, Any], place: str) -> Schema:
        found: Schema = {}
        low, high = _counts(schema, "minLength", "maxLength", place)
        if low:
            found["minLength"] = low
        if high is not None:
            found["maxLength"] = high
        if found and schema.get("format") in FORMATS:
            raise _unsupported("format beside minLength or maxLength", place)
        if schema.get("format") in FORMATS:
            found["format"] = schema["format"]
        if found and "pattern" in schema:
            raise _unsupported("pattern beside format, minLength or maxLength", place)
        if "pattern" in schema:
            found["pattern"] = f"^(?:{self._pattern(schema['pattern'], f'{place}/pattern')})$"
        return found

    def _pattern(self, pattern: str, place: str) -> str:
        try:
            return translated(pattern, max_depth=self._max_depth, is_search=True)
        except InvalidGrammar as fault:
            raise InvalidGrammar(f"{place} of the schema: {fault}") from None

    def _array(self, schema: Mapping[str, Any], place: str) -> Schema:
        prefix, items = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(items, list):  # as schemas said it before 2020
            prefix, items = items, schema.get("additionalItems", True)
        low, high = _counts(schema, "minItems", "maxItems", place)
        found: Schema = {
            "minItems": low,
            "items": items if items is False else self._schema(items, f"{place}/items"),
        }
        if prefix := prefix[:high]:
            found["prefixItems"] = [
                self._schema(part, f"{place}/{index}") for index, part in enumerate(prefix)
            ]
        return found if high is None else {**found, "maxItems": high}

    # ---- objects -----------------------------------------------------------------------------------------------------

    def _object(self, schema: Mapping[str, Any], place: str) -> Schema:
        if schema.get("propertyNames", True) not in (True, {}, {"type": "string"}):
            raise _unsupported("propertyNames", place)
        if schema.get("patternProperties"):
            return self._patterned(schema, place)
        named, required = self._named(schema, place)
        others = schema.get("additionalProperties", not named)
        low, high = _counts(schema, "minProperties", "maxProperties", place)
        if others is not False and not all(map(_PLAIN_NAME.fullmatch, named)):
            raise _unsupported(
                "additionalProperties beside names of other than plain ASCII characters", place
            )
        if others is not False and low > max(1, len(required)):
            raise _unsupported("minProperties beside properties without a name", place)
        found: Schema = {"properties": named} if named else {}
        if required:
            found["required"] = required
        if low:
            found["minProperties"] = low
        if high is not None:
            found["maxProperties"] = high
        if others is not False:
            others = self._schema(others, f"{place}/additionalProperties") or True
        return {**found, "additionalProperties": others}

    def _named(self, schema: Mapping[str, Any], place: str) -> tuple[Schema, list[str]]:
        """The properties with a name, those included that must be there and have no schema; and these."""
        properties, required = schema.get("properties", {}), schema.get("required", [])
        others = schema.get("additionalProperties", True)
        parts = {**properties, **{name: others for name in required if name not in properties}}
        named = {
            name: self._schema(part, f"{place}/properties/{name[:_MAX_SHOWN]}")
            for name, part in parts.items()
            if part is not False or name in required
        }
        return named, list(dict.fromkeys(required))

    def _patterned(self, schema: Mapping[str, Any], place: str) -> Schema:
        """An object whose properties one pattern names, which is all that xgrammar keeps apart."""
        patterns = schema["patternProperties"]
        beside = [keyword for keyword in ("properties", "required", "minProperties") if schema.get(keyword)]
        if len(patterns) > 1 or beside:
            raise _unsupported(f"patternProperties beside {beside[0] if beside else 'others'}", place)
        _, high = _counts(schema, "minProperties", "maxProperties", place)
        where = f"{place}/patternProperties"
        found: Schema = {
            "patternProperties": {
                f"^(?:{self._pattern(pattern, where)})$": self._schema(part, where)
                for pattern, part in patterns.items()
            },
            "additionalProperties": False,
        }
        return found if high is None else {**found, "maxProperties": high}


# ---- keywords --------------------------------------------------------------------------------------------------------


def _types(schema: Mapping[str, Any]) -> tuple[str, ...]:
    named = schema["type"]
    return tuple(dict.fromkeys(named)) if isinstance(named, list) else (named,)


def _implied(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The types of which a schema without one says something; none where it says nothing."""
    return tuple(kind for kind, keywords in _OF.items() if any(keyword in schema for keyword in keywords))


def _counts(schema: Mapping[str, Any], low: str, high: str, place: str) -> tuple[int, int | None]:
    least, most = (_count(schema.get(keyword), f"{place}/{keyword}") for keyword in (low, high))
    if most is not None and (least or 0) > most:
        raise InvalidGrammar(f"no value fits {low} {least} and {high} {most} at {place} of the schema")
    return least or 0, most


def _count(value: Any, place: str) -> int | None:
    if value is None:
        return None
    if value > _MAX_COUNT:
        raise InvalidGrammar(f"{place} of the schema is {value}, and at most {_MAX_COUNT} for xgrammar")
    return int(value)


def _number(schema: Mapping[str, Any], place: str, *, is_whole: bool) -> Schema:
    found: Schema = {}
    for keyword in _OF_NUMBERS:
        if keyword not in schema:
            continue
        value = schema[keyword]
        if isinstance(value, bool) or abs(value) > _MAX_EXACT:
            raise _unsupported(f"{keyword} other than a number from -{_MAX_EXACT} to {_MAX_EXACT}", place)
        is_low = keyword in ("minimum", "exclusiveMaximum")
        found[keyword] = (math.ceil(value) if is_low else math.floor(value)) if is_whole else value
    if "multipleOf" in found:
        factor = schema["multipleOf"]
        if not is_whole or len(found) > 1 or factor != int(factor) or not 0 < factor <= _MAX_FACTOR:
            raise _unsupported(f"multipleOf other than of integers without bounds, to {_MAX_FACTOR},", place)
    return found
