"""Values of a schema as literals of Python, in xgrammar's EBNF."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, final

import xgrammar

from trioserve.errors import InvalidGrammar
from trioserve.grammars.xgrammar_formats import json_rules
from trioserve.grammars.xgrammar_schema import TYPES, Schema, narrowed, resolved

_CONSTANTS: Final[dict[Any, str]] = {None: "None", True: "True", False: "False"}
_INTEGER: Final = '"-"? ("0" | [1-9] [0-9]{0,17})'
_NUMBER: Final = f'{_INTEGER} ("." [0-9]{{1,17}})? ([eE] [+\\-]? [0-9]{{1,2}})?'
_STRING: Final = "(" + " | ".join(
    f'"\\{quote}" ([^\\{quote}\\\\\\x00-\\x1f\\x7f] | "\\\\" [\\\\\\"\\\'nrt])* "\\{quote}"' for quote in "\"'"
) + ")"  # fmt: skip
_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_LIMITS: Final = ("pattern", "format", "minLength", "maxLength")
_PARAMETER: Final = re.compile(r"[^\W\d]\w*")
_LEXEME: Final = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|[A-Za-z_][\w.\-]*', re.DOTALL)


def python_arguments(schema: Any, *, max_depth: int) -> str:
    """The grammar of ``name=literal`` joined by ", ", as EBNF.

    Raises:
        InvalidGrammar: The schema is of no object, or cannot be held to in this notation.
    """
    document = narrowed(schema, max_depth=max_depth)
    values = _Values(document.get("$defs", {}))
    root = resolved(document, document.get("$defs", {}))
    if root and root.get("type") != "object":
        raise InvalidGrammar("the parameters of a tool must be a schema of one object, for xgrammar")
    members = []
    for name, part in root.get("properties", {}).items():
        if not _PARAMETER.fullmatch(name):
            raise InvalidGrammar(f"the model's format cannot name a parameter {name[:80]!r}")
        members.append((f"{_quoted(f'{name}=')} {values.rule(part)}", name in root.get("required", [])))
    return values.text(values.listing(members))


def _quoted(text: str) -> str:
    """A text in EBNF."""
    return '"' + "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in text) + '"'


def _either(options: Iterable[str]) -> str:
    found = list(dict.fromkeys(options))
    return found[0] if len(found) == 1 else f"({' | '.join(found)})"


def _spelled(value: Any) -> str:
    match value:
        case None | bool():
            return _CONSTANTS[value]
        case list():
            return f"[{', '.join(map(_spelled, value))}]"
        case dict():
            return f"{{{', '.join(f'{_spelled(key)}: {_spelled(one)}' for key, one in value.items())}}}"
        case _:
            return json.dumps(value, ensure_ascii=False)


def _spellings(value: Any) -> list[str]:
    """A value as JSON would have it, and a plain string between Python's own quotes, too."""
    is_plain = isinstance(value, str) and value.isprintable() and not set(value) & set("'\"\\")
    return [_spelled(value), f"'{value}'"] if is_plain else [_spelled(value)]


@final
class _Values:
    """Rules for the values of one document's schemas."""

    def __init__(self, defs: dict[str, Schema]) -> None:
        self._defs = defs
        self._lines: list[str] = []
        self._names: dict[str, str] = {}
        self._num_rules = 0

    def text(self, root: str) -> str:
        return "\n".join([f"root ::= {root}", *self._lines, ""])

    def rule(self, schema: Schema) -> str:
        """The name of the rule of the values that fit ``schema``; equal schemas share one."""
        key = json.dumps(schema, sort_keys=True)
        if key not in self._names:
            self._names[key] = name = self._new_name()
            self._lines.append(f"{name} ::= {self._value(schema)}")
        return self._names[key]

    def listing(self, members: Sequence[tuple[str, bool]]) -> str:
        """Members in their order with ", " between them, those that must be there and any of the others."""
        behind = '""'
        options = [] if any(is_required for _, is_required in members) else ['""']
        for member, is_required in reversed(members):
            following = self._named(behind)
            options = [f"{member} {following}", *([] if is_required else options)]
            behind = f'", " {member} {following}' if is_required else f'(", " {member})? {following}'
        return _either(options or ['""'])

    def _new_name(self) -> str:
        self._num_rules += 1
        return f"r{self._num_rules}"

    def _named(self, expression: str) -> str:
        name = self._new_name()
        self._lines.append(f"{name} ::= {expression}")
        return name

    def _value(self, schema: Schema) -> str:
        if "$ref" in schema:
            return self.rule(self._defs[schema["$ref"].removeprefix("#/$defs/")])
        if "enum" in schema:
            return _either(_quoted(text) for value in schema["enum"] for text in _spellings(value))
        if "anyOf" in schema:
            return _either(map(self.rule, schema["anyOf"]))
        named = schema.get("type", list(TYPES))
        return _either(
            self._of_type(kind, schema) for kind in (named if isinstance(named, list) else [named])
        )

    def _of_type(self, kind: str, schema: Schema) -> str:
        match kind:
            case "null":
                return _quoted("None")
            case "boolean":
                return _either(map(_quoted, ("True", "False")))
            case "integer" | "number":
                return self._number(kind, schema)
            case "string":
                return self._string(schema)
            case "array":
                return self._array(schema)
            case _:
                return self._object(schema)

    # ---- types -------------------------------------------------------------------------------------------------------

    def _number(self, kind: str, schema: Schema) -> str:
        bounds: Schema = {keyword: schema[keyword] for keyword in _BOUNDS if keyword in schema}
        if bounds:
            return self._embedded({"type": kind, **bounds})
        return f"({_INTEGER if kind == 'integer' else _NUMBER})"

    def _string(self, schema: Schema) -> str:
        limits: Schema = {keyword: schema[keyword] for keyword in _LIMITS if keyword in schema}
        return (
            self._embedded({"type": "string", **limits}) if limits else _STRING
        )  # the former have no escapes

    def _embedded(self, schema: Schema) -> str:
        """What JSON and Python write alike, as xgrammar makes it, under names of this grammar."""
        text = json_rules(xgrammar.Grammar.from_json_schema(json.dumps(schema), any_whitespace=False))
        lines = [line.partition(" ::= ") for line in text.splitlines() if " ::= " in line]
        names = {name: self._new_name() for name, _, _ in lines}
        for name, _, body in lines:
            renamed = _LEXEME.sub(lambda found: names.get(found[0], found[0]), body)
            self._lines.append(f"{names[name]} ::= {renamed}")
        return names["root"]

    def _array(self, schema: Schema) -> str:
        prefix, items = schema.get("prefixItems", []), schema.get("items", {})
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        first = ' ", " '.join(map(self.rule, prefix))
        if items is False or high == len(prefix):
            if low > len(prefix):
                raise InvalidGrammar(
                    f"an array of a tool's parameter has {len(prefix)} items, and needs {low}"
                )
            return f'"[" {first} "]"'
        item = self.rule(items)
        low, most = max(low - len(prefix), 0), None if high is None else high - len(prefix)
        if prefix:
            return f'"[" {first} (", " {item}){_times(low, most)} "]"'
        several = f'{item} (", " {item}){_times(max(low - 1, 0), None if most is None else most - 1)}'
        return f'"[" {several} "]"' if low else f'"[" ({several})? "]"'

    def _object(self, schema: Schema) -> str:
        named, required = schema.get("properties", {}), schema.get("required", [])
        if "patternProperties" in schema or (named and {"minProperties", "maxProperties"} & schema.keys()):
            raise InvalidGrammar(
                "patternProperties, and counts of named properties, are not supported by xgrammar where a tool's "
                "arguments are not JSON; the backend guidance may do"
            )
        members = [
            (f"{_quoted(f'{_spelled(name)}: ')} {self.rule(part)}", name in required)
            for name, part in named.items()
        ]
        others = schema.get("additionalProperties", not named)
        if others is False or named:
            return f'"{{" {self.listing(members)} "}}"'
        pair = f'{_STRING} ": " {self.rule({} if others is True else others)}'
        low, high = schema.get("minProperties", 0), schema.get("maxProperties")
        if high == 0:
            return '"{}"'
        several = f'{pair} (", " {pair}){_times(max(low - 1, 0), None if high is None else high - 1)}'
        return f'"{{" {several} "}}"' if low else f'"{{" ({several})? "}}"'


def _times(low: int, high: int | None) -> str:
    return f"{{{low},{'' if high is None else high}}}"
