"""POST /v1/completions: request, answer, chunk. Answer and chunk have one form."""

import codecs
from collections.abc import Sequence as SequenceOf
from typing import Annotated, Any, cast

from msgspec import UNSET, Struct, UnsetType
from pydantic import Discriminator, Field, Tag

from trioserve.core.delta import TokenLogprob
from trioserve.core.sampling import MAX_LOGPROBS
from trioserve.errors import InvalidRequest, UnsupportedParameter
from trioserve.protocol.common import FAIL_FAST, Integer, TokenIds, UsageBody
from trioserve.protocol.sampling import GenerationFields
from trioserve.protocol.unsupported import COMPLETIONS_NOT_OBEYED, refuse_unsupported
from trioserve.settings import LimitSettings

DEFAULT_MAX_TOKENS = 16
"""As OpenAI has it."""


def _kind_of_prompt(value: Any) -> str | None:
    if isinstance(value, str):
        return "$text"
    if not isinstance(value, list) or not value:
        return None
    first = value[0]
    if isinstance(first, str):
        return "$texts"
    return "$id_lists" if isinstance(first, list) else "$ids"


Prompt = Annotated[
    Annotated[str, Tag("$text")]
    | Annotated[list[str], FAIL_FAST, Tag("$texts")]
    | Annotated[TokenIds, Tag("$ids")]
    | Annotated[list[Annotated[TokenIds, Field(min_length=1)]], FAIL_FAST, Tag("$id_lists")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt_type",
        custom_error_message=(
            "Input should be a string, or a non-empty list of strings, of token ids or of lists of token ids"
        ),
    ),
]


class CompletionRequest(GenerationFields):
    """What POST /v1/completions takes."""

    prompt: Prompt
    echo: bool | None = None
    """Whether the text begins with the prompt."""
    logprobs: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def asked_tokens(self) -> int | None:
        return self.max_tokens or DEFAULT_MAX_TOKENS

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt as a text or as token ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if prompt and isinstance(prompt[0], int):
            return [prompt]
        return cast("list[str | list[int]]", prompt)

    def check(self, limits: LimitSettings) -> None:
        super().check(limits)
        refuse_unsupported(self.model_extra, table=COMPLETIONS_NOT_OBEYED)
        num_choices = len(self.prompts) * self.num_choices
        if num_choices > limits.max_n:
            raise InvalidRequest(
                f"prompt: at most {limits.max_n} choices over all prompts, not {num_choices}", param="prompt"
            )
        if self.echo and self.logprobs is not None:
            raise UnsupportedParameter("echo is not supported together with logprobs", param="echo")


class CompletionLogprobs(Struct, frozen=True):
    """``logprobs`` of a choice."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]
    """Characters of the text before each token."""


class CompletionChoice(Struct, frozen=True):
    """One answer, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET


class Completion(Struct, frozen=True, kw_only=True):
    """The answer, or one event of the streamed answer."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: UsageBody | UnsetType | None = UNSET


class CompletionLogprobsWriter:
    """The logprobs of one choice, piece by piece or at once: offsets go on where the last piece ended."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def feed(self, logprobs: SequenceOf[TokenLogprob]) -> CompletionLogprobs:
        """The wire's form of the next ``logprobs``."""
        offsets = []
        for token in logprobs:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(token.piece))
        return CompletionLogprobs(
            tokens=[_token_text(token.piece) for token in logprobs],
            token_logprobs=[token.logprob for token in logprobs],
            top_logprobs=[_top_logprobs(token) for token in logprobs],
            text_offset=offsets,
        )


def _top_logprobs(token: TokenLogprob) -> dict[str, float]:
    """The alternatives, and the chosen token where it is not among them."""
    alternatives = {_token_text(top.piece): top.logprob for top in token.top}
    if token.top:
        alternatives.setdefault(_token_text(token.piece), token.logprob)
    return alternatives


def _token_text(piece: bytes) -> str:
    r"""A token for readers; a part of a character as ``bytes:\xe2\x80``."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
