"""What all endpoint families share: the base of request models, number types, one error out of many."""

import reprlib
from collections.abc import Sequence as SequenceOf
from typing import Annotated, Any, Final, NoReturn, TypeVar

from msgspec import Struct
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
)

from trioserve.core.delta import Usage
from trioserve.errors import InvalidRequest

_MAX_ERRORS_TOLD: Final = 10
_MAX_MESSAGE_CHARS: Final = 200

_OWN_WORDS: Final = {"too_short": "Input should have at least {min_length} item"}
"""What pydantic says clumsily. No field here needs more than one item."""


class _Repr(reprlib.Repr):
    """Values in few characters, and the three words of JSON that Python spells otherwise."""

    def repr_bool(self, value: bool, _level: int) -> str:
        return "true" if value else "false"

    def repr_NoneType(self, _value: None, _level: int) -> str:  # noqa: N802  # reprlib finds it by the type
        return "null"


_repr = _Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60
_repr.maxlist = _repr.maxdict = 4
_repr.maxlevel = 2


class WireModel(BaseModel):
    """Base of what clients send: unknown fields are kept aside, types are exact, numbers are finite."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


FAIL_FAST: Final = Field(fail_fast=True)
"""Of lists: the first wrong item ends it, so that a million of them cannot make a million errors."""

RequestT = TypeVar("RequestT", bound=WireModel)


def _integral(value: Any) -> Any:
    """JSON has one kind of number: 5.0 is the integer 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_integral)]
TokenId = Annotated[int, BeforeValidator(_integral), Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], FAIL_FAST]
"""Prompts in ids are long: no conversions, and the first wrong one ends it."""


def _text_or_list(value: Any) -> str | None:
    return "$text" if isinstance(value, str) else "$list" if isinstance(value, list) else None


TextOrTexts = Annotated[
    Annotated[str, Tag("$text")] | Annotated[list[str], FAIL_FAST, Tag("$list")],
    Discriminator(
        _text_or_list,
        custom_error_type="string_or_list",
        custom_error_message="Input should be a string or a list of strings",
    ),
]
"""Tags of unions begin with a dollar sign, so that errors can leave them out of a field's path."""


def parse(model: type[RequestT], body: bytes) -> RequestT:
    """The request in ``body``.

    Raises:
        InvalidRequest: Not JSON, or fields of a wrong type or value; the message names each with the limit.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as exc:
        raise _invalid_request(exc) from None


def parse_part(model: type[RequestT], value: str | dict[str, Any], param: str) -> RequestT:
    """What the field ``param`` holds, as an object or as its JSON text.

    Raises:
        InvalidRequest: As ``parse``; the paths of fields begin with ``param``.
    """
    try:
        return model.model_validate_json(value) if isinstance(value, str) else model.model_validate(value)
    except ValidationError as exc:
        raise _invalid_request(exc, param) from None


def field_path(loc: SequenceOf[str | int]) -> str:
    """A field as the client wrote it, such as ``messages.0.content``."""
    return ".".join(str(part) for part in loc if not (isinstance(part, str) and part.startswith("$")))


def shown(value: object) -> str:
    """``value`` for an error message, cut to a bounded length."""
    return _repr.repr(value)


def refuse(param: str, limit: str, value: object) -> NoReturn:
    """Say that the field ``param`` should be ``limit`` and not ``value``.

    Raises:
        InvalidRequest: Always.
    """
    raise InvalidRequest(f"{param}: {limit}, not {shown(value)}", param=param)


def _invalid_request(exc: ValidationError, within: str = "") -> InvalidRequest:
    """``within``: the field that was looked at; by default the whole body."""
    errors = exc.errors(include_url=False)
    if errors[0]["type"] == "json_invalid":
        reason = errors[0]["msg"].removeprefix("Invalid JSON: ")
        invalid_json = InvalidRequest(
            f"{within or 'the body'} is not valid JSON: {reason}", param=within or None
        )
        invalid_json.code = "invalid_json"
        return invalid_json
    names = [_name(error, within) for error in errors[:_MAX_ERRORS_TOLD]]
    told = [_describe(error, name) for error, name in zip(errors, names, strict=False)]
    if len(errors) > len(told):
        told.append(f"and {len(errors) - len(told)} more errors")
    return InvalidRequest("; ".join(told), param=names[0] or None)


def _name(error: Any, within: str) -> str:
    path = field_path((within, *error["loc"]) if within else error["loc"])
    return path[:_MAX_MESSAGE_CHARS]


def _describe(error: Any, name: str) -> str:
    name = name or "the body"
    words = _OWN_WORDS.get(error["type"], error["msg"]).format(**error.get("ctx", {}))
    message = words[0].lower() + words[1:_MAX_MESSAGE_CHARS]
    if error["type"] == "missing":
        return f"{name}: {message}"
    return f"{name}: {message}, not {shown(error['input'])}"


class PromptTokensDetails(Struct, frozen=True):
    """Part of UsageBody."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionTokensDetails(Struct, frozen=True):
    """Part of UsageBody."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageBody(Struct, frozen=True):
    """``usage`` of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


def usage_body(usages: SequenceOf[Usage], *, n: int = 1) -> UsageBody:
    """The usage of a request whose choices come ``n`` to a prompt; a prompt counts once."""
    first_choices = usages[::n]
    num_prompt_tokens = sum(usage.num_prompt_tokens for usage in first_choices)
    num_output_tokens = sum(usage.num_output_tokens for usage in usages)
    return UsageBody(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_output_tokens,
        total_tokens=num_prompt_tokens + num_output_tokens,
        prompt_tokens_details=PromptTokensDetails(sum(usage.num_cached_tokens for usage in first_choices)),
        completion_tokens_details=CompletionTokensDetails(
            sum(usage.num_reasoning_tokens for usage in usages)
        ),
    )
