"""What chat and text completions alike say of the prompt's ends and of the answer's form."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from msgspec import Struct
from pydantic import Field

from trioserve.core.delta import TokenLogprob
from trioserve.errors import InvalidRequest, UnsupportedParameter
from trioserve.protocol.common import Integer, refuse
from trioserve.protocol.fields import GenerationFields
from trioserve.protocol.structured import StructuredFields
from trioserve.protocol.unsupported import refuse_unknown
from trioserve.settings import LimitSettings

_TIERS: Final[Mapping[str, str]] = {
    "auto": "default",
    "default": "default",
    "flex": "flex",
    "priority": "priority",
}
"""The tiers that there are here, and what the answer to each calls them."""
_PRIORITY_OF_TIER: Final = {"flex": 1, "priority": -1}
"""As ``priority`` counts: lower goes first."""


class AnswerFields(StructuredFields, GenerationFields):
    """Fields that both completions endpoints take; those named here do not touch which tokens are chosen."""

    add_special_tokens: bool | None = None
    """Whether the tokenizer adds what it adds around a text."""
    truncate_prompt_tokens: Annotated[Integer, Field(ge=-1, lt=1 << 31)] | None = None
    """Tokens of the prompt to keep; -1: as many as leave room for the answer."""
    truncation_side: Literal["left", "right"] | None = None
    """Where the tokens go that are not kept; left by default."""
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    """Whether logprobs name tokens like ``token_id:5``."""
    return_arrival_time: bool | None = None
    service_tier: Literal["auto", "default", "flex", "priority", "scale", "fast"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None

    @property
    def num_tries(self) -> int:
        """Sequences to each prompt, of which ``num_choices`` are shown."""
        return self.num_choices

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Alternatives to compute beside each token of the prompt; None for no logprobs of the prompt at all."""
        return self.prompt_logprobs

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk carries the usage up to it."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def pads_chunks(self) -> bool:
        """Whether chunks are padded, so that their lengths tell nothing of their texts."""
        return bool(self.stream_options and self.stream_options.include_obfuscation)

    @property
    def answered_tier(self) -> str | None:
        """The service tier that the answer names; None where the request named none."""
        return None if self.service_tier is None else _TIERS[self.service_tier]

    def check(self, limits: LimitSettings) -> None:
        super().check(limits)
        self.check_form(limits)
        if limits.strict_requests:
            refuse_unknown(self.model_extra)
            for name in ("stream_options", "repetition_detection", "response_format", "structured_outputs"):
                if (part := getattr(self, name)) is not None:
                    refuse_unknown(part.model_extra, prefix=f"{name}.")
        if self.service_tier is not None and self.service_tier not in _TIERS:
            raise UnsupportedParameter(
                f"service_tier: {', '.join(_TIERS)} are served here, not {self.service_tier}",
                param="service_tier",
            )
        if self.service_tier in _PRIORITY_OF_TIER and self.priority is not None:
            raise InvalidRequest("service_tier and priority say the same: give one of them", param="priority")
        if self.truncate_prompt_tokens == 0:
            refuse("truncate_prompt_tokens", "-1 or at least 1", 0)

    def resolved(self) -> Self:
        """The request with ``service_tier`` said in the field that obeys it."""
        if self.service_tier not in _PRIORITY_OF_TIER:
            return self
        return self.model_copy(update={"priority": _PRIORITY_OF_TIER[self.service_tier]})

    def truncated(self, token_ids: list[int], *, max_model_len: int) -> list[int]:
        """What is kept of a prompt.

        Raises:
            InvalidRequest: More is to be kept than the model takes.
        """
        keep = self.truncate_prompt_tokens
        if keep is None:
            return token_ids
        if keep > max_model_len:
            raise InvalidRequest(
                f"truncate_prompt_tokens: at most the model's {max_model_len} tokens, not {keep}",
                param="truncate_prompt_tokens",
            )
        if keep == -1:
            keep = max(1, max_model_len - (self.asked_tokens or 1))
        return token_ids[:keep] if self.truncation_side == "right" else token_ids[-keep:]


class PromptLogprob(Struct, frozen=True):
    """What one token would have had as its logprob at a place of the prompt."""

    logprob: float
    rank: int
    """Its place among all tokens, likeliest first; 1 for the likeliest."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""By place in the prompt, then by token id; null for the first token, which follows nothing."""


def prompt_logprob(token: TokenLogprob, num_top: int, *, as_ids: bool) -> dict[str, PromptLogprob]:
    """The wire's form of one place: the prompt's own token, then the ``num_top`` likeliest."""

    def name(token_id: int, piece: bytes) -> str:
        return id_text(token_id) if as_ids else piece.decode(errors="replace")

    assert token.rank is not None, "a token of a prompt has a rank"
    own = PromptLogprob(token.logprob, token.rank, name(token.token_id, token.piece))
    likeliest = {
        str(top.token_id): PromptLogprob(top.logprob, rank, name(top.token_id, top.piece))
        for rank, top in enumerate(token.top[:num_top], 1)
    }
    return {str(token.token_id): own, **likeliest}


def id_text(token_id: int) -> str:
    """A token's name where ids are asked for in place of texts."""
    return f"token_id:{token_id}"
