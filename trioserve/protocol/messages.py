"""A conversation as clients send it, and as chat templates want it."""

import json
from collections.abc import Sequence as SequenceOf
from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Tag

from trioserve.errors import InvalidRequest, UnsupportedParameter
from trioserve.protocol.common import FAIL_FAST, WireModel, shown
from trioserve.settings import LimitSettings

_RESERVED_VARIABLES: Final = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"}
)
"""What a template gets from fields of their own."""
_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})


class ContentPart(WireModel):
    """One part of a message's content; only text is served."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(WireModel):
    """What an assistant's tool call calls."""

    name: str
    arguments: str = ""
    """JSON text."""


class CustomCall(WireModel):
    """What an assistant's call of a custom tool calls."""

    name: str
    input: str = ""


class ToolCall(WireModel):
    """A tool call that the assistant made earlier in the conversation; it has the field that its type names."""

    id: str | None = None
    type: Literal["function", "custom"] = "function"
    function: FunctionCall | None = None
    custom: CustomCall | None = None

    def for_template(self, param: str) -> dict[str, Any]:
        """The call as chat templates want it, that of a custom tool as one of a function; ``param`` is its path.

        Raises:
            InvalidRequest: It does not say what is called.
        """
        called = self.function if self.type == "function" else self.custom
        if called is None:
            raise InvalidRequest(f"{param}.{self.type}: field required", param=f"{param}.{self.type}")
        arguments = {"input": called.input} if isinstance(called, CustomCall) else _object(called.arguments)
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": called.name, "arguments": arguments},
        }


def _kind_of_content(value: Any) -> str | None:
    return "$text" if isinstance(value, str) else "$parts" if isinstance(value, list) else None


Content = Annotated[
    Annotated[str, Tag("$text")] | Annotated[list[ContentPart], FAIL_FAST, Tag("$parts")],
    Discriminator(
        _kind_of_content,
        custom_error_type="content_type",
        custom_error_message="Input should be a string or a list of parts",
    ),
]


class ChatMessage(WireModel):
    """One turn. Fields that nobody declared here reach the template too."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[list[ToolCall], FAIL_FAST] | None = None

    def for_template(self, param: str) -> dict[str, Any]:
        """The message as chat templates want it; ``param`` is its path in the request.

        Raises:
            InvalidRequest: Content is missing where the role needs some, or a call does not say what it calls.
            UnsupportedParameter: A part is not text.
        """
        message: dict[str, Any] = {
            **(self.model_extra or {}),
            "role": self.role,
            "content": self._content(param),
        }
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            message["tool_calls"] = [
                call.for_template(f"{param}.tool_calls.{i}") for i, call in enumerate(self.tool_calls)
            ]
        return message

    def text(self, param: str) -> str:
        """The content as one text; ``param`` and errors as for ``for_template``."""
        content = self._content(param)
        return content if isinstance(content, str) else "".join(part["text"] for part in content)

    def _content(self, param: str) -> str | list[dict[str, str]]:
        if self.content is None and self.role != "assistant":
            raise InvalidRequest(
                f"{param}.content: a {self.role} message needs content", param=f"{param}.content"
            )
        return text_content(self.content or "", f"{param}.content")


def text_content(content: str | list[ContentPart], param: str) -> str | list[dict[str, str]]:
    """Content as templates want it; ``param`` is its path in the request.

    Raises:
        InvalidRequest, UnsupportedParameter: A part has no text, or is not meant to.
    """
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": _text_of(part, f"{param}.{i}")} for i, part in enumerate(content)]


def _text_of(part: ContentPart, param: str) -> str:
    if part.type not in _TEXT_PARTS:
        raise UnsupportedParameter(
            f"{param}: parts of type {shown(part.type)} are not supported: the model reads text only",
            param=param,
        )
    text = part.refusal if part.type == "refusal" else part.text
    if text is None:
        raise InvalidRequest(f"{param}: a part of type {shown(part.type)} needs a text", param=param)
    return text


def _object(arguments: str) -> Any:
    """What ``arguments`` says, where it is JSON of an object: templates want one where the wire has its text."""
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


class TemplateFields(WireModel):
    """How a conversation is rendered; null is the same as absent."""

    add_generation_prompt: bool | None = None
    """Whether the template opens the assistant's turn; by default it does, unless a message is continued."""
    continue_final_message: bool | None = None
    """Whether the answer goes on with the assistant's last message."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the template."""

    @property
    def opens_answer(self) -> bool:
        """Whether the template is to open the assistant's turn."""
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        return self.add_generation_prompt

    def check_variables(self) -> None:
        """Refuse fields that contradict each other.

        Raises:
            InvalidRequest: Names the field.
        """
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt: one goes on with a message, "
                "the other begins a new one",
                param="continue_final_message",
            )
        for name in self.chat_template_kwargs or {}:
            if name in _RESERVED_VARIABLES:
                raise InvalidRequest(
                    f"chat_template_kwargs.{name}: {name} is a field of its own",
                    param=f"chat_template_kwargs.{name}",
                )

    def check_continued(self, turns: SequenceOf[ChatMessage]) -> None:
        """Refuse to go on with a message that is not the assistant's.

        Raises:
            InvalidRequest: Names the field.
        """
        if self.continue_final_message and turns[-1].role != "assistant":
            raise InvalidRequest(
                f"continue_final_message: the last message is to be the assistant's, not the {turns[-1].role}'s",
                param="continue_final_message",
            )


def check_turns(turns: SequenceOf[ChatMessage], limits: LimitSettings) -> None:
    """Refuse a conversation that is too long.

    Raises:
        InvalidRequest: Names the limit.
    """
    if len(turns) > limits.max_messages:
        raise InvalidRequest(f"messages: at most {limits.max_messages}, not {len(turns)}", param="messages")
