"""Answers that call tools, in the format of a model's family, as structural tags."""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, final

from trioserve.core.forms import (
    Arguments,
    ArgumentTags,
    CallFormat,
    CallsForm,
    JsonArguments,
    PythonArguments,
    TaggedArguments,
)
from trioserve.errors import InvalidGrammar
from trioserve.grammars.xgrammar_formats import (
    TIGHT,
    Format,
    Markers,
    constant,
    either,
    grammar,
    json_text,
    optional,
    regex,
    repeated,
    sequence,
    text_without,
)
from trioserve.grammars.xgrammar_regex import ANY, literal
from trioserve.grammars.xgrammar_schema import Schema, narrowed, resolved
from trioserve.grammars.xgrammar_values import python_arguments

Leaf = tuple[str, Schema]
"""A type, and the schema of values of that type; ``any`` for a schema that says nothing of types."""

_SPACE: Final = r"[\u{9}\u{a}\u{d}\u{20}]"
_PARAMETER: Final = re.compile(r'[^<>"\s]+')
_PLAIN: Final = ({"type": "null"}, {"type": "boolean"}, {"type": "integer"}, {"type": "number"})
_LIMITS: Final = ("pattern", "minLength", "maxLength")
_HALVES: Final = [f"\\u{d}{digit}" for d in "dD" for digit in "89abAB"]
"""How escapes of half a surrogate pair begin."""
_MAX_NESTED: Final = 16


@final
class CallsWriter:
    """Writes one CallsForm."""

    def __init__(self, markers: Markers, form: CallsForm, *, outside: Sequence[str], max_depth: int) -> None:
        """
        Args:
            outside: What free text must not contain in any case.
        """
        self._markers = markers
        self._form = form
        self._format = form.format
        self._outside = outside
        self._max_depth = max_depth

    def written(self, otherwise: Format | None) -> Format:
        """The answer.

        Args:
            otherwise: What it is instead of calls, where ``form.otherwise`` says so.
        Raises:
            InvalidGrammar: A tool's schema cannot be used.
        """
        if not self._format.calls:
            raise InvalidGrammar("no tool may be called")
        if self._form.is_required:
            return self._section(self._format.max_calls)
        if otherwise is not None:
            return either([self._section(self._format.max_calls), otherwise])
        return self._in_free_text()

    # ---- calls alone -------------------------------------------------------------------------------------------------

    def _section(self, most: int | None) -> Format:
        """``most`` calls at most, and what stands around them."""
        calls = [(call, self._behind_begin(call)) for call in self._format.calls]
        parts = [self._calls(self._format.begin, calls)]
        if most != 1:
            parts.append(
                repeated(self._calls(self._format.separator, calls), None if most is None else most - 1)
            )
        if self._format.end:
            parts.append(self._markers.marked(self._format.end))
        return sequence(*parts)

    def _calls(self, before: str, calls: Sequence[tuple[CallFormat, Format]]) -> Format:
        return either(sequence(self._markers.marked(before + call.begin), behind) for call, behind in calls)

    def _behind_begin(self, call: CallFormat) -> Format:
        return sequence(self._arguments(call.arguments), self._markers.marked(call.end))

    # ---- calls in free text ------------------------------------------------------------------------------------------

    def _in_free_text(self) -> Format:
        """Text in which triggers begin calls; one that nothing marks is one at the beginning only."""
        triggers = self._format.triggers
        if not triggers:
            return text_without(self._outside)
        if any(trigger.startswith("{") for trigger in triggers):
            return self._at_the_beginning(triggers)
        self._markers.check_triggers(triggers)
        text = text_without([*triggers, *self._outside])
        is_one = self._format.max_calls is not None
        calls = self._section(self._format.max_calls if is_one or self._format.begin else 1)
        return sequence(text, optional(calls) if is_one else repeated(sequence(calls, text)))

    def _at_the_beginning(self, triggers: Sequence[str]) -> Format:
        """Calls, or text that does not begin like one."""
        text = text_without(self._outside)
        others = [self._other_beginning(trigger) for trigger in triggers]
        if len(others) > 1:
            raise InvalidGrammar("calls with several bare beginnings are not supported by xgrammar")
        return either([
            sequence(regex(f"{_SPACE}*"), self._section(self._format.max_calls)),
            sequence(regex(f"{_SPACE}*(?:{others[0]})"), text),
            regex(f"{_SPACE}*(?:{'|'.join(literal(triggers[0][:end]) for end in range(len(triggers[0])))})"),
        ])  # fmt: skip

    def _other_beginning(self, trigger: str) -> str:
        """A regular expression of texts that cannot go on as ``trigger``, to the character that says so."""
        others = [f"{literal(trigger[:end])}[^{literal(trigger[end])}]" for end in range(1, len(trigger))]
        return "|".join([f"[^{literal(trigger[0])}{_SPACE[1:-1]}]", *others])

    # ---- arguments ---------------------------------------------------------------------------------------------------

    def _arguments(self, style: Arguments) -> Format:
        match style:
            case JsonArguments(schema):
                return json_text(self._object(schema), TIGHT)
            case PythonArguments(schema):
                return grammar(python_arguments(schema, max_depth=self._max_depth))
            case TaggedArguments(schema, tags):
                return self._tagged(self._object(schema), tags)

    def _object(self, schema: Any) -> Schema:
        document = narrowed(schema, max_depth=self._max_depth)
        defs = document.get("$defs", {})
        root = resolved(document, defs) or {"type": "object", "additionalProperties": True}
        if root.get("type", "object") != "object" or "enum" in root:
            raise InvalidGrammar("the parameters of a tool must be a schema of an object")
        return {**root, "$defs": defs} if defs else root

    def _tagged(self, document: Schema, tags: ArgumentTags) -> Format:
        if "anyOf" in document:
            raise InvalidGrammar(
                "alternatives of a tool's parameters as a whole are not supported by xgrammar where they stand "
                "between tags; the backend guidance may do"
            )
        defs, required = document.get("$defs", {}), document.get("required", [])
        parts = []
        for name, schema in document.get("properties", {}).items():
            if not _PARAMETER.fullmatch(name):
                raise InvalidGrammar(f"the model's format cannot name a parameter {name[:80]!r}")
            part = _Parameter(self._markers, tags, name, defs).written(schema)
            parts.append(part if name in required else optional(part))
        return sequence(*parts)


@final
class _Parameter:
    """One argument between tags."""

    def __init__(self, markers: Markers, tags: ArgumentTags, name: str, defs: dict[str, Schema]) -> None:
        self._markers = markers
        self._tags = tags
        self._name = name
        self._defs = defs
        self._ending = tags.end.strip()

    def written(self, schema: Schema) -> Format:
        found = _leaves(schema, self._defs, _MAX_NESTED)
        if any(kind == "any" for kind, _ in found):
            return self._between(self._tags.named, text_without([self._ending]))
        strings = [part for kind, part in found if kind == "string"]
        others = [part for kind, part in found if kind != "string"]
        is_told = self._tags.named != self._tags.named_json
        if strings and others and not is_told:
            return self._untold(strings, others)
        options = [self._between(self._tags.named, self._string(part)) for part in strings]
        if others:
            options.append(self._between(self._tags.named_json, self._json(others)))
        return either(options)

    def _between(self, named: str, value: Format) -> Format:
        begin = self._markers.marked(self._tags.begin + self._name + named)
        return sequence(begin, value, self._markers.marked(self._tags.end))

    def _untold(self, strings: Sequence[Schema], others: Sequence[Schema]) -> Format:
        """A string or another value, of which a reader takes the latter if it can: any text, where both are fine."""
        if {"type": "string"} not in strings or any(part not in _PLAIN for part in others):
            raise InvalidGrammar(
                f"the parameter {self._name[:80]!r}, a string or something else with limits of its own, is not "
                "supported by xgrammar where arguments stand between tags; the backend guidance may do"
            )
        return self._between(self._tags.named, text_without([self._ending]))

    def _string(self, schema: Schema) -> Format:
        if "enum" in schema:
            for value in schema["enum"]:
                if self._ending in value:
                    raise InvalidGrammar(f"the value {value[:80]!r} of a parameter contains {self._ending!r}")
            return either(map(constant, schema["enum"]))
        limited = _with_patterns(schema, f"[^{literal(self._ending[0])}]")
        if "pattern" in limited:
            return regex(limited["pattern"])
        return text_without([self._ending])

    def _json(self, options: Sequence[Schema]) -> Format:
        schema: Schema = options[0] if len(options) == 1 else {"anyOf": list(options)}
        if all("enum" in part or part.get("type") not in ("array", "object") for part in options):
            if self._ending in json.dumps(schema):
                raise InvalidGrammar(
                    f"a value of the parameter {self._name[:80]!r} contains {self._ending!r}"
                )
            return json_text(schema, TIGHT)
        whole = _with_patterns({**schema, "$defs": self._defs}, f"[^{literal(self._ending[0])}]")
        excludes = [self._ending, *_HALVES]
        return {"type": "json_schema", "json_schema": whole, "max_whitespace_cnt": 1, "excludes": excludes}


def _with_patterns(schema: Schema, char: str) -> Schema:
    """A narrowed schema whose strings with limits have a pattern, in which ``char`` stands for any character.

    xgrammar leaves such strings alone, and no others, where it keeps a text out of strings.
    """
    found: Schema = {}
    for keyword, value in schema.items():
        if keyword in ("properties", "patternProperties", "$defs"):
            found[keyword] = {name: _with_patterns(part, char) for name, part in value.items()}
        elif keyword in ("anyOf", "prefixItems"):
            found[keyword] = [_with_patterns(part, char) for part in value]
        elif keyword in ("items", "additionalProperties") and isinstance(value, dict):
            found[keyword] = _with_patterns(value, char)
        elif keyword == "pattern":
            found[keyword] = value.replace(ANY, char)
        elif keyword not in ("minLength", "maxLength"):
            found[keyword] = value
    if "minLength" in schema or "maxLength" in schema:
        found["pattern"] = f"^{char}{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}$"
    return found


def _leaves(schema: Schema, defs: dict[str, Schema], depth: int) -> list[Leaf]:
    """A narrowed schema as alternatives of one type each."""
    schema = resolved(schema, defs)
    if not depth:
        raise InvalidGrammar(f"a tool's parameter has more than {_MAX_NESTED} alternatives inside each other")
    if "anyOf" in schema:
        return [leaf for option in schema["anyOf"] for leaf in _leaves(option, defs, depth - 1)]
    if "enum" in schema:
        texts = [value for value in schema["enum"] if isinstance(value, str)]
        others = [value for value in schema["enum"] if not isinstance(value, str)]
        return [(kind, {"enum": part}) for kind, part in (("string", texts), ("other", others)) if part]
    if "type" not in schema:
        return [("any", schema)]
    named = schema["type"]
    return [_leaf(kind, schema) for kind in (named if isinstance(named, list) else [named])]


def _leaf(kind: str, schema: Schema) -> Leaf:
    if kind == "string":  # a format is a hint here
        return kind, {"type": kind, **{key: schema[key] for key in _LIMITS if key in schema}}
    if kind in ("null", "boolean"):
        return kind, {"type": kind}
    return kind, {**schema, "type": kind}
