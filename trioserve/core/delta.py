"""What the engine tells the HTTP side of a sequence, step by step."""

from dataclasses import dataclass

from msgspec import Struct

from trioserve.core.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class TopToken:
    """One alternative at a position."""

    token_id: int
    piece: bytes
    """The token's own bytes, perhaps a part of a character."""
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token and its likeliest alternatives, likeliest first."""

    token_id: int
    piece: bytes
    logprob: float
    top: tuple[TopToken, ...]
    rank: int | None = None
    """Its place among all tokens, likeliest first, from 1; known of a prompt's tokens only."""


class Usage(Struct, frozen=True, array_like=True):
    """Token counts of one sequence up to now."""

    num_prompt_tokens: int
    num_cached_tokens: int
    """Of the prompt, found in the prefix cache."""
    num_output_tokens: int
    num_reasoning_tokens: int = 0
    """Of those, spent on thinking; known where ``params.thinking`` says how to tell."""


class OutputDelta(Struct, frozen=True, array_like=True):
    """What came of one or more steps for one sequence; the last one has a ``finish_reason``.

    There is one for every token that is streamed: a dataclass would take five times as long to make.
    """

    text: str
    """Certain text: whole characters, nothing of a stop string."""
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    """One per token id where asked for, else empty."""
    usage: Usage
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended the text."""
    error: str | None = None
    """For the client, when ``finish_reason`` is ERROR or GRAMMAR."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    """Of the whole prompt, in the first delta, where asked for; None for the first token."""


def merge(deltas: list[OutputDelta]) -> OutputDelta:
    """One delta that says what ``deltas``, at least one and in order, say."""
    last = deltas[-1]
    if len(deltas) == 1:
        return last
    return OutputDelta(
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
        usage=last.usage,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        error=last.error,
        prompt_logprobs=deltas[0].prompt_logprobs,
    )
