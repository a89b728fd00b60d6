"""POST /v1/chat/completions: request, answer, chunk."""

from collections.abc import Sequence as SequenceOf
from typing import Annotated, Any, Final, Literal, cast

from msgspec import UNSET, Struct, UnsetType
from pydantic import Discriminator, Field, Tag
from pydantic.json_schema import SkipJsonSchema

from trioserve.core.delta import TokenLogprob
from trioserve.errors import InvalidRequest, UnsupportedParameter
from trioserve.protocol.answer import AnswerFields, PromptLogprobs, id_text
from trioserve.protocol.common import FAIL_FAST, TokenIds, UsageBody, WireModel
from trioserve.protocol.fields import Count, CountOrNone
from trioserve.protocol.messages import ChatMessage, Content, TemplateFields, check_turns, text_content
from trioserve.protocol.reasoning import ReasoningFields
from trioserve.protocol.tools import ToolFields
from trioserve.protocol.unsupported import COMPLETIONS_ONLY, refuse_unsupported
from trioserve.settings import LimitSettings

_NEED_A_TEMPLATE: Final = ("chat_template", "continue_final_message", "documents")
_NEED_MESSAGES: Final = (*_NEED_A_TEMPLATE, "disable_chat_template", "echo")


class Prediction(WireModel):
    """``prediction``: text that the client expects in the answer."""

    type: Literal["content"]
    content: Content


def _kind_of_messages(value: Any) -> str | None:
    if not isinstance(value, list):
        return None
    return "$ids" if value and isinstance(value[0], int) else "$messages"


Messages = Annotated[
    Annotated[list[ChatMessage], FAIL_FAST, Field(min_length=1), Tag("$messages")]
    | Annotated[SkipJsonSchema[TokenIds], Tag("$ids")],  # generated clients have prompt_token_ids for that
    Discriminator(
        _kind_of_messages,
        custom_error_type="messages_type",
        custom_error_message="Input should be a list of messages, or of token ids",
    ),
]


class ChatCompletionRequest(ToolFields, ReasoningFields, TemplateFields, AnswerFields):
    """What POST /v1/chat/completions takes."""

    messages: Messages | None = None
    """A conversation; or, as FastDeploy has it, its token ids."""
    prompt_token_ids: TokenIds | None = None
    """The prompt in ids; wins over ``messages``."""
    max_completion_tokens: Count | None = None
    """OpenAI's newer name of max_tokens; it wins."""
    store: bool | None = None
    """Whether the answer is kept for GET /v1/chat/completions/{id}, with ``metadata``."""
    logprobs: bool | None = None
    top_logprobs: CountOrNone | None = None
    echo: bool | None = None
    """Whether the answer begins with the last message, if that is the assistant's."""
    disable_chat_template: bool | None = None
    """Whether the texts of the messages are the prompt as they are."""
    chat_template: str | None = None
    documents: Annotated[list[dict[str, Any]], FAIL_FAST] | None = None
    """For templates that show documents."""
    verbosity: Literal["low", "medium", "high"] | None = None
    """The variable of that name, for templates that read it."""
    prediction: Prediction | None = None

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def asked_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def prompt_ids(self) -> list[int] | None:
        """The prompt, where it came in token ids."""
        if self.prompt_token_ids is not None:
            return self.prompt_token_ids
        messages = self.messages
        return messages if messages and isinstance(messages[0], int) else None

    @property
    def uses_template(self) -> bool:
        """Whether a chat template makes the prompt."""
        return self.prompt_ids is None and not self.disable_chat_template

    @property
    def continued(self) -> str | None:
        """The text of the message that the answer goes on with, where it goes on with one."""
        return self._turns[-1].text("messages") if self.continue_final_message and self._turns else None

    @property
    def echoed(self) -> str:
        """What the answer begins with before the model said anything."""
        last = self._turns[-1] if self.echo else None
        return last.text("messages") if last is not None and last.role == "assistant" else ""

    @property
    def template_variables(self) -> dict[str, Any]:
        """What else the template may name."""
        own = {"enable_thinking": self.enable_thinking, "verbosity": self.verbosity}
        given = {name: value for name, value in own.items() if value is not None}
        return {**given, **(self.chat_template_kwargs or {})}

    def check(self, limits: LimitSettings) -> None:
        super().check(limits)
        refuse_unsupported(self.model_extra, table=COMPLETIONS_ONLY)
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs is only allowed with logprobs: true", param="top_logprobs")
        if self.prediction is not None:
            text_content(self.prediction.content, "prediction.content")
        if self.prompt_ids is None:
            self._check_messages(limits)
        self._check_template(limits)
        self.check_tools(limits)
        self.check_reasoning()

    def template_messages(self) -> list[dict[str, Any]]:
        """The conversation as chat templates want it.

        Raises:
            InvalidRequest: A message lacks its content.
            UnsupportedParameter: A message holds something else than text.
        """
        return [message.for_template(f"messages.{i}") for i, message in enumerate(self._turns)]

    def plain_text(self) -> str:
        """The texts of the messages, one right after the other.

        Raises:
            InvalidRequest, UnsupportedParameter: As ``template_messages``.
        """
        return "".join(message.text(f"messages.{i}") for i, message in enumerate(self._turns))

    @property
    def _turns(self) -> list[ChatMessage]:
        return cast("list[ChatMessage]", self.messages or [])

    def _check_messages(self, limits: LimitSettings) -> None:
        turns = self._turns
        if not turns:
            raise InvalidRequest("messages: field required", param="messages")
        check_turns(turns, limits)
        self.check_continued(turns)

    def _check_template(self, limits: LimitSettings) -> None:
        self.check_variables()
        needing = () if self.prompt_ids is None else _NEED_MESSAGES
        for name in needing or (_NEED_A_TEMPLATE if self.disable_chat_template else ()):
            if getattr(self, name):
                raise InvalidRequest(
                    f"{name}: there is no conversation for it to change: the prompt is taken as it is",
                    param=name,
                )
        if self.chat_template and not limits.trust_request_chat_template:
            raise UnsupportedParameter(
                "chat_template: this server takes no templates from requests "
                "(its setting trust_request_chat_template is off)",
                param="chat_template",
            )


class TopLogprob(Struct, frozen=True):
    """One alternative at a position."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(Struct, frozen=True):
    """A chosen token."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    """``logprobs`` of a choice."""

    content: list[ChatTokenLogprob]
    refusal: str | None = None


class CalledFunction(Struct, frozen=True):
    """``function`` of a call."""

    name: str
    arguments: str
    """JSON text; the beginning of it where the answer was cut."""


class CalledCustom(Struct, frozen=True):
    """``custom`` of a call."""

    name: str
    input: str


class ChatToolCall(Struct, frozen=True, kw_only=True):
    """A call of a tool; it has the field that its type names."""

    id: str
    type: str
    function: CalledFunction | UnsetType = UNSET
    custom: CalledCustom | UnsetType = UNSET


class AssistantMessage(Struct, frozen=True, kw_only=True):
    """``message`` of a choice."""

    role: str = "assistant"
    content: str | None
    """null where there are calls and nothing is said."""
    refusal: str | None = None
    reasoning_content: str | UnsetType | None = UNSET
    """What the model thought, where that is told from the rest; null where it did not think."""
    reasoning: str | UnsetType | None = UNSET
    """The same."""
    tool_calls: list[ChatToolCall] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    completion_token_ids: list[int] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    """One answer."""

    index: int
    message: AssistantMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended the answer."""
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """The answer as one JSON object."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    system_fingerprint: str
    service_tier: str | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class CalledFunctionDelta(Struct, frozen=True, kw_only=True):
    """What a chunk adds to ``function``."""

    name: str | UnsetType = UNSET
    arguments: str


class CalledCustomDelta(Struct, frozen=True, kw_only=True):
    """What a chunk adds to ``custom``."""

    name: str | UnsetType = UNSET
    input: str


class ChatToolCallDelta(Struct, frozen=True, kw_only=True):
    """What a chunk adds to a call; id, type and name come once."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: CalledFunctionDelta | UnsetType = UNSET
    custom: CalledCustomDelta | UnsetType = UNSET


class ChatDelta(Struct, frozen=True):
    """What a chunk adds to the message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    """The same."""
    tool_calls: list[ChatToolCallDelta] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    completion_token_ids: list[int] | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    """What a chunk says of one choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    """Beside a finish_reason only."""
    token_ids: list[int] | UnsetType = UNSET
    arrival_time: float | UnsetType = UNSET
    """Seconds since the request came."""


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    """One event of the streamed answer."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: str
    usage: UsageBody | UnsetType | None = UNSET
    service_tier: str | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    obfuscation: str | UnsetType = UNSET


def chat_logprobs(logprobs: SequenceOf[TokenLogprob], *, as_ids: bool = False) -> ChatLogprobs:
    """The wire's form of ``logprobs``; with ``as_ids`` tokens go by their ids, their bytes stay."""

    def name(token_id: int, piece: bytes) -> str:
        return id_text(token_id) if as_ids else token_text(piece)

    return ChatLogprobs(
        [
            ChatTokenLogprob(
                name(token.token_id, token.piece),
                token.logprob,
                list(token.piece),
                [
                    TopLogprob(name(top.token_id, top.piece), top.logprob, list(top.piece))
                    for top in token.top
                ],
            )
            for token in logprobs
        ]
    )


def token_text(piece: bytes) -> str:
    r"""A token for readers; a part of a character as its bytes, like ``\xe2\x80``."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in piece)
