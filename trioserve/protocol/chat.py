"""POST /v1/chat/completions: request, answer, chunk."""

from collections.abc import Sequence as SequenceOf
from typing import Annotated, Any

from msgspec import UNSET, Struct, UnsetType
from pydantic import Field

from trioserve.core.delta import TokenLogprob
from trioserve.core.sampling import MAX_LOGPROBS
from trioserve.errors import InvalidRequest
from trioserve.protocol.common import FAIL_FAST, Integer, UsageBody
from trioserve.protocol.messages import ChatMessage
from trioserve.protocol.sampling import Count, GenerationFields
from trioserve.settings import LimitSettings


class ChatCompletionRequest(GenerationFields):
    """What POST /v1/chat/completions takes."""

    messages: Annotated[list[ChatMessage], FAIL_FAST, Field(min_length=1)]
    max_completion_tokens: Count | None = None
    """OpenAI's newer name of max_tokens; it wins."""
    store: bool | None = None
    """Whether the answer is kept for GET /v1/chat/completions/{id}, with ``metadata``."""
    logprobs: bool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def asked_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def check(self, limits: LimitSettings) -> None:
        super().check(limits)
        if len(self.messages) > limits.max_messages:
            raise InvalidRequest(
                f"messages: at most {limits.max_messages}, not {len(self.messages)}",
                param="messages",
            )
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs is only allowed with logprobs: true", param="top_logprobs")

    def template_messages(self) -> list[dict[str, Any]]:
        """The conversation as chat templates want it.

        Raises:
            InvalidRequest: A message lacks its content.
            UnsupportedParameter: A message holds something else than text.
        """
        return [message.for_template(f"messages.{i}") for i, message in enumerate(self.messages)]


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
    refusal: None = None


class AssistantMessage(Struct, frozen=True, kw_only=True):
    """``message`` of a choice."""

    role: str = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    """One answer."""

    index: int
    message: AssistantMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended the answer."""


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """The answer as one JSON object."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    system_fingerprint: str


class ChatDelta(Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to the message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    """What a chunk says of one choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    """Beside a finish_reason only."""


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    """One event of the streamed answer."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: str
    usage: UsageBody | UnsetType | None = UNSET


def chat_logprobs(logprobs: SequenceOf[TokenLogprob]) -> ChatLogprobs:
    """The wire's form of ``logprobs``."""
    return ChatLogprobs(
        [
            ChatTokenLogprob(
                token_text(token.piece),
                token.logprob,
                list(token.piece),
                [TopLogprob(token_text(top.piece), top.logprob, list(top.piece)) for top in token.top],
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
