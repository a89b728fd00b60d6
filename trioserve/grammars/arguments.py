"""The arguments of a tool call, in each of the ways that families write them."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from trioserve.core.forms import (
    Arguments,
    ArgumentTags,
    JsonArguments,
    PythonArguments,
    TaggedArguments,
)
from trioserve.errors import InvalidGrammar
from trioserve.grammars.lark import (
    ANY_TEXT,
    LarkWriter,
    either,
    listing,
    optional,
    quoted,
    sequence,
    without,
)
from trioserve.grammars.schema import TIGHT, Prepared, Schema, prepared
from trioserve.grammars.values import (
    PYTHON,
    Leaf,
    ValueWriter,
    json_without,
    leaves,
    members_of,
    string_limits,
)

_MAX_SHAPES: Final = 64
"""Alternatives of a tool's arguments as a whole, where its schema is an ``anyOf`` of objects."""
_PYTHON_NAME: Final = re.compile(r"[\w.\-]+")
_TAGGED_NAME: Final = re.compile(r'[^<>"\s]+')


def arguments(write: LarkWriter, style: Arguments, *, max_depth: int) -> str:
    """The expression of a call's arguments.

    Raises:
        InvalidGrammar: The tool's schema is broken, is of no object, or cannot be written in this style.
    """
    document = prepared_object(style.schema, max_depth)
    match style:
        case JsonArguments():
            return write.json(document.written(document.root, TIGHT))
        case PythonArguments():
            return _python(write, document)
        case TaggedArguments():
            return _tagged(write, document, style.tags)


def prepared_object(schema: Any, max_depth: int) -> Prepared:
    """The schema of a tool's arguments.

    Raises:
        InvalidGrammar: It is broken, or of no object.
    """
    document = prepared(schema, max_depth=max_depth)
    named = document.root.get("type", "object")
    if "object" not in (named if isinstance(named, list) else [named]):
        raise InvalidGrammar("the parameters of a tool must be a schema of an object")
    return Prepared({**document.root, "type": "object"}, document.defs)


def _shapes(document: Prepared) -> list[Schema]:
    """The arguments' objects, of which one must fit."""
    found = [schema for kind, schema in leaves(document, document.root) if kind == "object"]
    if not 0 < len(found) <= _MAX_SHAPES:
        raise InvalidGrammar(
            f"the parameters of a tool have {len(found)} alternatives, where 1 to {_MAX_SHAPES} are supported"
        )
    return found


def _check_name(name: str, allowed: re.Pattern[str]) -> None:
    if not allowed.fullmatch(name):
        raise InvalidGrammar(f"the model's format cannot name a parameter {name[:80]!r}")


# ---- Python ----------------------------------------------------------------------------------------------------------


def _python(write: LarkWriter, document: Prepared) -> str:
    values = ValueWriter(write, document, PYTHON)
    found = [_python_shape(write, values, shape) for shape in _shapes(document)]
    values.finish()
    return write.rule(either(found))


def _python_shape(write: LarkWriter, values: ValueWriter, shape: Schema) -> str:
    members = []
    for name, schema, is_required in members_of(shape):
        _check_name(name, _PYTHON_NAME)
        members.append((f"{quoted(f'{name}=')} {values.value(schema)}", is_required))
    return listing(members, ", ", write)


# ---- tags ------------------------------------------------------------------------------------------------------------


def _tagged(write: LarkWriter, document: Prepared, tags: ArgumentTags) -> str:
    ending = tags.end.strip()
    values = ValueWriter(write, document, json_without(ending))
    found = []
    for shape in _shapes(document):
        parts = []
        for name, schema, is_required in members_of(shape):
            _check_name(name, _TAGGED_NAME)
            part = _parameter(write, values, tags, name, leaves(document, schema))
            parts.append(part if is_required else optional(part))
        found.append(" ".join(parts))
    values.finish()
    return write.rule(either(found))


def _parameter(
    write: LarkWriter, values: ValueWriter, tags: ArgumentTags, name: str, found: Sequence[Leaf]
) -> str:
    strings = [schema for kind, schema in found if kind == "string"]
    others = [leaf for leaf in found if leaf[0] != "string"]
    if not found:
        raise InvalidGrammar(f"no value fits the schema of a tool's parameter {name[:80]!r}")
    written = []
    if strings:
        is_said = tags.named != tags.named_json or any(map(_is_open, found))
        misread = [] if is_said else _misread(kind for kind, _ in others)
        before = write.marked(tags.begin + name + tags.named)
        written += [f"{before} {_string(write, schema, tags, misread)}" for schema in strings]
    if others and not any(map(_is_open, found)):
        before = write.marked(tags.begin + name + tags.named_json)
        value = either(values.leaf(*leaf) for leaf in others)
        written.append(f"{before} {value} {write.marked(tags.end)}")
    return write.rule(either(written))


def _is_open(leaf: Leaf) -> bool:
    """Whether the type comes of a schema that says nothing of types, so that any text will do."""
    return "type" not in leaf[1] and "enum" not in leaf[1]


def _string(write: LarkWriter, schema: Schema, tags: ArgumentTags, misread: Sequence[str]) -> str:
    """A string as it stands, and what ends it: it contains no end, not even one that is spelled out."""
    limits = [without(tags.end.strip()), *string_limits(schema), *misread]
    before, pieces = write.before_token(tags.end)
    if not pieces:
        before = tags.end
    if "enum" in schema:
        for value in schema["enum"]:
            if tags.end.strip() in value:
                raise InvalidGrammar(f"the value {value[:80]!r} of a tool's parameter contains {tags.end!r}")
        text = either(map(quoted, schema["enum"]))
    else:
        text = f"/{ANY_TEXT}/"
    inside = write.terminal(f"({' & '.join([text, *limits])}) {quoted(before)}")
    return f"{inside} {sequence(pieces)}".strip()


_MISREAD: Final = {
    "boolean": r"(?i:true|false)",
    "null": r"(?i:null|none)",
    "number": r"[+\-]?[\d_.]+([eE][+\-]?[\d_]+)?",
    "array": r"[\[({](?s:.*)",
    "object": r"[\[({](?s:.*)",
}


def _misread(kinds: Iterable[str]) -> list[str]:
    """What a string must not look like, where a reader takes text for a value of another type if it can."""
    patterns = dict.fromkeys(_MISREAD["number" if kind == "integer" else kind] for kind in kinds)
    return [f"~/\\s*({pattern})\\s*/" for pattern in patterns]
