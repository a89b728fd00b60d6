"""POST /v1/chat/interactive: LMDeploy's conversations, whose history the server keeps."""

from typing import Annotated, Any, Final

from msgspec import UNSET, Struct, UnsetType
from pydantic import Discriminator, Field, Tag

from trioserve.errors import InvalidRequest
from trioserve.protocol.common import FAIL_FAST, Integer, TextOrTexts, WireModel
from trioserve.protocol.fields import GenerationFields, Share
from trioserve.protocol.messages import ChatMessage
from trioserve.protocol.unsupported import (
    NOT_OBEYED,
    STRUCTURED,
    TOOLS_AND_THINKING,
    refuse_unknown,
    refuse_unsupported,
)
from trioserve.settings import LimitSettings

NEW_SESSION: Final = -1
_INT64_MAX: Final = (1 << 63) - 1
_NOT_OBEYED: Final = {
    **NOT_OBEYED,
    **STRUCTURED,
    **TOOLS_AND_THINKING,
    "adapter_name": (),
    "image_url": (),
}


def _kind_of_prompt(value: Any) -> str | None:
    return "$text" if isinstance(value, str) else "$messages" if isinstance(value, list) else None


Prompt = Annotated[
    Annotated[str, Tag("$text")]
    | Annotated[list[ChatMessage], FAIL_FAST, Field(min_length=1), Tag("$messages")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt_type",
        custom_error_message="Input should be a string or a list of messages",
    ),
]


class TurnFields(GenerationFields):
    """How one turn's answer is chosen, in the words of the other endpoints."""

    @property
    def num_logprobs(self) -> int | None:
        return None


class GenerateRequest(WireModel):
    """What POST /v1/chat/interactive takes; null is the same as absent."""

    prompt: Prompt
    """What the user says, or the messages that the conversation goes on with."""
    session_id: Annotated[Integer, Field(ge=NEW_SESSION, le=_INT64_MAX)] | None = NEW_SESSION
    """-1: a new session."""
    interactive_mode: bool | None = False
    """Whether the session remembers this turn; else it ends with it."""
    stream: bool | None = False
    stop: TextOrTexts | None = None
    request_output_len: Annotated[Integer, Field(ge=0, lt=1 << 31)] | None = None
    """Tokens of the answer at most; by default the room in the context. 0 only to end a session."""
    top_p: Share | None = 0.8
    top_k: Annotated[Integer, Field(ge=-1, lt=1 << 31)] | None = 40
    temperature: Annotated[float, Field(ge=0)] | None = 0.8
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = 1.0
    ignore_eos: bool | None = False
    skip_special_tokens: bool | None = True
    cancel: bool | None = False
    """Stop what runs in the session, and do nothing else."""
    seed: Annotated[Integer, Field(ge=-_INT64_MAX - 1, le=_INT64_MAX)] | None = None
    min_new_tokens: Annotated[Integer, Field(ge=0, lt=1 << 31)] | None = None
    min_p: Share | None = 0.0
    spaces_between_special_tokens: bool | None = None
    """As in ``GenerationFields``: the text is the same either way."""

    @property
    def session(self) -> int | None:
        """The session's id, or None for a new one."""
        return None if self.session_id == NEW_SESSION else self.session_id

    @property
    def ends_session(self) -> bool:
        """Whether the request says nothing and wants no answer."""
        return self.prompt == "" and self.request_output_len == 0 and not self.interactive_mode

    def check(self, limits: LimitSettings) -> None:
        """Refuse what no single field's type can.

        Raises:
            InvalidRequest: Fields exceed a limit or contradict each other.
            UnsupportedParameter: A known field that is not obeyed asks for something.
        """
        refuse_unsupported(self.model_extra, table=_NOT_OBEYED)
        if limits.strict_requests:
            refuse_unknown(self.model_extra, also_known=_NOT_OBEYED)
        if self.cancel:
            if self.session is None:
                raise InvalidRequest(
                    "session_id: cancel needs the id of a session, not -1", param="session_id"
                )
            return
        if self.ends_session:
            return
        if self.request_output_len == 0:
            raise InvalidRequest(
                'request_output_len: at least 1, not 0, unless prompt is "" and interactive_mode false, '
                "which ends the session",
                param="request_output_len",
            )
        if self.request_output_len is not None and (self.min_new_tokens or 0) > self.request_output_len:
            raise InvalidRequest(
                f"min_new_tokens: at most request_output_len = {self.request_output_len}, not {self.min_new_tokens}",
                param="min_new_tokens",
            )
        if isinstance(self.prompt, list) and len(self.prompt) > limits.max_messages:
            raise InvalidRequest(
                f"prompt: at most {limits.max_messages} messages, not {len(self.prompt)}", param="prompt"
            )
        self.turn().check(limits)

    def turn(self, model: str | None = None) -> TurnFields:
        """The fields that choose the answer, asked of ``model``, for this request names none; all have been checked."""
        default = GenerateRequest.model_fields
        given = {
            name: default[name].default if (value := getattr(self, name)) is None else value
            for name in ("top_p", "top_k", "temperature", "repetition_penalty", "min_p")
        }
        return TurnFields.model_construct(
            model=model,
            max_tokens=self.request_output_len,
            min_tokens=self.min_new_tokens,
            stop=self.stop,
            ignore_eos=self.ignore_eos,
            skip_special_tokens=self.skip_special_tokens,
            seed=self.seed,
            **given,
        )

    def messages(self) -> list[dict[str, Any]]:
        """What the conversation goes on with, as chat templates want it.

        Raises:
            InvalidRequest: A message lacks its content.
            UnsupportedParameter: A message holds something else than text.
        """
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return [message.for_template(f"prompt.{i}") for i, message in enumerate(self.prompt)]


class GenerateResponse(Struct, frozen=True, kw_only=True):
    """The answer, or one line of the streamed answer."""

    text: str = ""
    tokens: int = 0
    """Of the answer up to now."""
    input_tokens: int = 0
    """That this turn added to the prompt."""
    history_tokens: int = 0
    """That the session had before; with ``input_tokens`` they are the prompt."""
    finish_reason: str | None = None
    """"stop", "length" or "error"; null in a stream while more comes. "length" with no tokens: the session is full."""
    error: Any | UnsetType = UNSET
    """In the last line of a stream that failed: what the body would have been."""
