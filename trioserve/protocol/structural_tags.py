"""Structural tags: stretches of an answer that have a form, between texts that begin and end them.

There are two ways to write them. The older one lists ``structures`` and ``triggers``; the newer one has one ``format``,
made of parts, each with a ``type``. Of the newer one those parts are taken that a form can say.
"""

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct
from pydantic import Field

from trioserve.core.forms import (
    Body,
    ChoiceForm,
    FreeForm,
    GrammarForm,
    JsonForm,
    RegexForm,
    TagForm,
    TagsForm,
)
from trioserve.errors import InvalidRequest
from trioserve.protocol.common import FAIL_FAST, WireModel, refuse
from trioserve.protocol.schemas import schema_text

MAX_TAGS = 256
"""Tags, and triggers, of one form."""

T = TypeVar("T")
Few = Annotated[list[T], Meta(min_length=1, max_length=MAX_TAGS)]


class StructuralTag(WireModel):
    """A tag whose content is JSON."""

    begin: str
    """Begins with one of the triggers."""
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    """Of what stands between."""
    end: str


class StructuralTagFields(WireModel):
    """Both ways to write structural tags."""

    structures: Annotated[list[StructuralTag], FAIL_FAST, Field(min_length=1, max_length=MAX_TAGS)] | None = (
        None
    )
    """With ``triggers``: the tags that there may be in free text."""
    triggers: Annotated[list[str], FAIL_FAST, Field(min_length=1, max_length=MAX_TAGS)] | None = None
    """After one of them only a tag that begins with it may follow."""
    format: dict[str, Any] | None = None
    """Instead of the two: a part of one of the types const_string, any_text, json_schema, regex, grammar, or, tag and
    triggered_tags."""

    def tags(self, param: str) -> Body | None:
        """The form; None for any text.

        Args:
            param: The field that holds this.
        Raises:
            InvalidRequest: Something is missing, or cannot be said by a form.
        """
        if self.format is None:
            return self._listed(param)
        for name in ("structures", "triggers"):
            if getattr(self, name) is not None:
                raise InvalidRequest(
                    f"{param}.{name} and {param}.format say the same: give one of them",
                    param=f"{param}.{name}",
                )
        return _body(_read(self.format, f"{param}.format"), f"{param}.format")

    def _listed(self, param: str) -> TagsForm:
        for name in ("structures", "triggers"):
            if getattr(self, name) is None:
                raise InvalidRequest(f"{param}.{name}: field required", param=f"{param}.{name}")
        tags = [
            TagForm(
                tag.begin,
                JsonForm(schema=schema_text(tag.schema_, f"{param}.structures.{i}.schema")),
                tag.end,
            )
            for i, tag in enumerate(self.structures or [])
        ]
        return _tags(tags, self.triggers or [], f"{param}.structures")


class StructuralTags(StructuralTagFields):
    """``structural_tag``."""

    type: Literal["structural_tag"] | None = None


# ---- parts of a format -----------------------------------------------------------------------------------------------


class _Part(Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    pass


class _Const(_Part, frozen=True, tag="const_string"):
    value: str


class _AnyText(_Part, frozen=True, tag="any_text"):
    pass


class _JsonSchema(_Part, frozen=True, tag="json_schema"):
    json_schema: dict[str, Any] | bool
    style: Literal["json"] = "json"


class _Regex(_Part, frozen=True, tag="regex"):
    pattern: str


class _Grammar(_Part, frozen=True, tag="grammar"):
    grammar: str


class _Or(_Part, frozen=True, tag="or"):
    elements: Annotated[list[_Const], Meta(min_length=1)]


class _Tag(_Part, frozen=True, tag="tag"):
    begin: Annotated[str, Meta(min_length=1)]
    content: _AnyText | _JsonSchema | _Regex | _Grammar
    end: str | Annotated[list[str], Meta(min_length=1, max_length=1)]


class _TriggeredTags(_Part, frozen=True, tag="triggered_tags"):
    triggers: Few[str]
    tags: Few[_Tag]
    at_least_one: bool = False
    stop_after_first: bool = False


_Content = _AnyText | _JsonSchema | _Regex | _Grammar
_Format = _Content | _Const | _Or | _Tag | _TriggeredTags


def _read(value: dict[str, Any], param: str) -> _Format:
    try:
        part: _Format = msgspec.convert(value, _Format)
    except msgspec.ValidationError as exc:
        reason, _, place = str(exc).partition(" - at `$")
        where = param + place.rstrip("`").replace("[", ".").replace("]", "")
        said = reason[0].lower() + reason[1:]
        raise InvalidRequest(f"{where}: {said}, which no form here can say", param=where) from exc
    return part


def _body(part: _Format, param: str) -> Body | None:
    if isinstance(part, _Const):
        return ChoiceForm((part.value,))
    if isinstance(part, _Or):
        return ChoiceForm(tuple(element.value for element in part.elements))
    if isinstance(part, _Tag):
        tag = _tag(part, param)
        return TagsForm(tags=(tag,), triggers=(tag.begin,), at_least_one=True, stop_after_first=True)
    if isinstance(part, _TriggeredTags):
        tags = [_tag(tag, f"{param}.tags.{i}") for i, tag in enumerate(part.tags)]
        return _tags(
            tags,
            part.triggers,
            f"{param}.tags",
            at_least_one=part.at_least_one,
            stop_after_first=part.stop_after_first,
        )
    content = _content(part, param)
    return None if isinstance(content, FreeForm) else content


def _content(part: _Content, param: str) -> JsonForm | RegexForm | GrammarForm | FreeForm:
    if isinstance(part, _JsonSchema):
        schema = part.json_schema if isinstance(part.json_schema, dict) else str(part.json_schema).lower()
        return JsonForm(schema=schema_text(schema, f"{param}.json_schema"))
    if isinstance(part, _Regex):
        return RegexForm(part.pattern)
    return GrammarForm(part.grammar) if isinstance(part, _Grammar) else FreeForm()


def _tag(part: _Tag, param: str) -> TagForm:
    end = part.end if isinstance(part.end, str) else part.end[0]
    return TagForm(part.begin, _content(part.content, f"{param}.content"), end)


def _tags(tags: list[TagForm], triggers: list[str], param: str, **rules: bool) -> TagsForm:
    for i, tag in enumerate(tags):
        if not tag.begin.startswith(tuple(triggers)):
            refuse(f"{param}.{i}.begin", "should begin with one of the triggers", tag.begin)
    if not all(triggers):
        place = param.rpartition(".")[0] + ".triggers"
        raise InvalidRequest(f"{place}: no trigger should be empty", param=place)
    return TagsForm(tags=tuple(tags), triggers=tuple(triggers), **rules)
