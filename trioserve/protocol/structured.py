"""What form an answer shall have, in the words of OpenAI, vLLM, FastDeploy, LMDeploy and SGLang."""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import Discriminator, Field, Tag

from trioserve.core.forms import Body, ChoiceForm, GrammarForm, JsonForm, RegexForm, TagsForm
from trioserve.errors import InvalidRequest, UnsupportedParameter
from trioserve.protocol.common import FAIL_FAST, WireModel, parse_part, shown
from trioserve.protocol.schemas import closed, schema_text
from trioserve.protocol.structural_tags import StructuralTagFields, StructuralTags
from trioserve.settings import LimitSettings

_ANY_OBJECT: Final = '{"type":"object"}'
_NO_WHITESPACE: Final = ""
_JSON_LENGTHENS: Final = 4

Asked = tuple[Body, str]
"""A form, and the field that asks for it, as the client wrote it."""


def _text_or_object(value: Any) -> str | None:
    return "$text" if isinstance(value, str) else "$object" if isinstance(value, dict) else None


TextOrObject = Annotated[
    Annotated[str, Tag("$text")] | Annotated[dict[str, Any], Tag("$object")],
    Discriminator(
        _text_or_object,
        custom_error_type="string_or_object",
        custom_error_message="Input should be an object, or a string that holds one as JSON",
    ),
]
Choices = Annotated[list[str], FAIL_FAST, Field(min_length=1)]


class JsonSchemaResponseFormat(WireModel):
    """``response_format.json_schema``."""

    name: str
    """Changes no answer."""
    description: str | None = None
    """Changes no answer."""
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None
    """Changes no answer: every schema is kept to."""


class ResponseFormat(StructuralTagFields):
    """``response_format``."""

    type: Literal["text", "json_object", "json_schema", "regex_schema", "structural_tag"]
    json_schema: JsonSchemaResponseFormat | None = None
    """For the type json_schema."""
    regex_schema: str | None = None
    """For the type regex_schema: a regular expression of the whole answer."""

    def asked(self) -> Asked | None:
        """What it asks for.

        Raises:
            InvalidRequest: What its type needs is missing or broken.
        """
        own = self._required("json_schema", "regex_schema")
        if self.type == "json_object":
            return JsonForm(schema=_ANY_OBJECT), "response_format"
        if isinstance(own, JsonSchemaResponseFormat):
            param = "response_format.json_schema.schema"
            return JsonForm(schema=schema_text(own.schema_, param)), param
        if own is not None:
            return RegexForm(own), "response_format.regex_schema"
        if self.type == "structural_tag":
            form = self.tags("response_format")
            return None if form is None else (form, "response_format")
        return None

    def _required(self, *names: str) -> Any:
        """The field that is named as the type is, where there is such a field."""
        if self.type not in names:
            return None
        value = getattr(self, self.type)
        if value is None:
            param = f"response_format.{self.type}"
            raise InvalidRequest(f"{param}: field required where the type is {self.type}", param=param)
        return value


class StructuredOutputsParams(WireModel):
    """``structured_outputs``, as vLLM defines it: one form, and how JSON is written."""

    json_: Annotated[TextOrObject | None, Field(alias="json")] = None
    """A JSON schema."""
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: TextOrObject | None = None
    whitespace_pattern: str | None = None
    """A regular expression of the white space in JSON."""
    disable_any_whitespace: bool | None = None
    """Whether there is no white space in JSON."""
    disable_fallback: bool | None = None
    """Changes nothing: no form is handed on to another backend."""
    disable_additional_properties: bool | None = None
    """Whether objects have no other properties than those that their schema names."""


class StructuredFields(WireModel):
    """Fields that ask for a form; at most one of them may."""

    response_format: ResponseFormat | None = None
    guided_json: TextOrObject | None = None
    """A JSON schema."""
    guided_regex: str | None = None
    """A regular expression of the whole answer."""
    guided_choice: Choices | None = None
    """The answer is one of these texts."""
    guided_grammar: str | None = None
    """EBNF or Lark."""
    guided_whitespace_pattern: str | None = None
    """A regular expression of the white space in JSON."""
    guided_decoding_backend: str | None = None
    """What the server uses anyway, or auto."""
    structural_tag: TextOrObject | None = None
    structured_outputs: StructuredOutputsParams | None = None
    json_schema: TextOrObject | None = None
    """As SGLang has it: the same as ``guided_json``."""
    regex: str | None = None
    """As SGLang has it: the same as ``guided_regex``."""
    ebnf: str | None = None
    """As SGLang has it: the same as ``guided_grammar``."""

    def asked_form(self) -> Asked | None:
        """The form that is asked for; None for any text.

        Raises:
            InvalidRequest: Two are asked for, or one that is broken.
        """
        asked = next(iter(found := list(self._asked())), None)
        if len(found) > 1:
            first, second = found[0][1], found[1][1]
            raise InvalidRequest(f"{first} and {second} both ask for a form: give one of them", param=second)
        name, pattern = self._whitespace()
        if pattern is None:
            return asked
        if asked is None or isinstance(asked[0], RegexForm | ChoiceForm | GrammarForm):
            if name.endswith("disable_any_whitespace"):
                return asked
            raise InvalidRequest(f"{name}: no JSON is asked for that it could be about", param=name)
        return _with_whitespace(asked[0], pattern), asked[1]

    def check_form(self, limits: LimitSettings) -> None:
        """Refuse texts that are too long to look into."""
        outputs = self.structured_outputs or StructuredOutputsParams()
        for name, value in (
            ("structural_tag", self.structural_tag),
            ("structured_outputs.structural_tag", outputs.structural_tag),
            ("structured_outputs.json", outputs.json_),
        ):
            if isinstance(value, str) and len(value) > limits.max_grammar_bytes:
                raise InvalidRequest(
                    f"{name}: at most max_grammar_bytes = {limits.max_grammar_bytes} bytes, not {len(value)}",
                    param=name,
                )

    def check_backend(self, used: str) -> None:
        """Refuse to use another backend than ``used``.

        Raises:
            UnsupportedParameter: Another one is asked for.
        """
        asked = self.guided_decoding_backend
        if asked and asked not in ("auto", used):
            raise UnsupportedParameter(
                f"guided_decoding_backend: auto or {used or 'nothing'} on this server, not {shown(asked)}",
                param="guided_decoding_backend",
            )

    def _asked(self) -> Iterator[Asked]:
        """Every form that is asked for."""
        if self.response_format is not None and (asked := self.response_format.asked()) is not None:
            yield asked
        outputs = self.structured_outputs or StructuredOutputsParams()
        is_closed = bool(outputs.disable_additional_properties)
        if outputs.json_object:
            yield JsonForm(schema=_ANY_OBJECT), "structured_outputs.json_object"
        for name, schema in (
            ("guided_json", self.guided_json),
            ("json_schema", self.json_schema),
            ("structured_outputs.json", outputs.json_),
        ):
            if schema is not None:
                written = closed(schema, name) if is_closed else schema_text(schema, name)
                yield JsonForm(schema=written), name
        yield from self._asked_texts(outputs)
        for name, tag in (
            ("structural_tag", self.structural_tag),
            ("structured_outputs.structural_tag", outputs.structural_tag),
        ):
            if tag is not None and (form := parse_part(StructuralTags, tag, name).tags(name)) is not None:
                yield form, name

    def _asked_texts(self, outputs: StructuredOutputsParams) -> Iterator[Asked]:
        for name, pattern in (
            ("guided_regex", self.guided_regex),
            ("regex", self.regex),
            ("structured_outputs.regex", outputs.regex),
        ):
            if pattern is not None:
                yield RegexForm(pattern), name
        for name, choices in (
            ("guided_choice", self.guided_choice),
            ("structured_outputs.choice", outputs.choice),
        ):
            if choices is not None:
                yield ChoiceForm(tuple(choices)), name
        for name, text in (
            ("guided_grammar", self.guided_grammar),
            ("ebnf", self.ebnf),
            ("structured_outputs.grammar", outputs.grammar),
        ):
            if text is not None:
                yield GrammarForm(text), name

    def _whitespace(self) -> tuple[str, str | None]:
        """The white space that is asked for, and the field that asks for it."""
        outputs = self.structured_outputs or StructuredOutputsParams()
        none = _NO_WHITESPACE if outputs.disable_any_whitespace else None
        given = [
            (name, pattern)
            for name, pattern in (
                ("guided_whitespace_pattern", self.guided_whitespace_pattern),
                ("structured_outputs.whitespace_pattern", outputs.whitespace_pattern),
                ("structured_outputs.disable_any_whitespace", none),
            )
            if pattern is not None
        ]
        if len(given) > 1:
            first, second = given[0][0], given[1][0]
            raise InvalidRequest(f"{first} and {second} say the same: give one of them", param=second)
        return given[0] if given else ("", None)


def _with_whitespace(form: Body, pattern: str) -> Body:
    """``form`` with that white space in all its JSON."""
    if isinstance(form, JsonForm):
        return msgspec.structs.replace(form, whitespace=pattern)
    assert isinstance(form, TagsForm), "other forms have no JSON in them"
    tags = [
        msgspec.structs.replace(tag, content=_with_whitespace(tag.content, pattern))
        if isinstance(tag.content, JsonForm)
        else tag
        for tag in form.tags
    ]
    return msgspec.structs.replace(form, tags=tuple(tags))


_Raw: Final = msgspec.defstruct(
    "_Raw", [(name, msgspec.Raw, msgspec.Raw()) for name in StructuredFields.model_fields]
)
_raw_decoder: Final = msgspec.json.Decoder(_Raw)


def check_lengths(body: bytes, limits: LimitSettings) -> None:
    """Refuse a form that is far too long before it is made objects of, which would hold everyone up: ten times as fast.

    In JSON a text may be longer than by itself, since quotes are escaped and there is white space.

    Raises:
        InvalidRequest: Names the field.
    """
    longest = _JSON_LENGTHENS * limits.max_grammar_bytes
    if len(body) <= longest:
        return
    try:
        found = _raw_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return  # what is wrong with it is said where it is read
    for name in StructuredFields.model_fields:
        size = len(getattr(found, name))
        if size > longest:
            raise InvalidRequest(
                f"{name}: at most max_grammar_bytes = {limits.max_grammar_bytes} bytes, not {size}",
                param=name,
            )
