"""How one sequence's tokens are chosen; complete and checked before it leaves the front."""

from msgspec import Struct

MAX_LOGPROBS = 20
"""Alternatives that a token may be asked for, as OpenAI allows."""


class SamplingParams(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the sampler and the stop rules obey; every field has been validated and clamped.

    ``temperature == 0`` is greedy. Ids are token ids of the model's vocabulary.
    """

    max_tokens: int
    """Tokens to generate at most, already clamped to the room in the context; at least 1."""
    min_tokens: int = 0
    """Tokens before which no stop token may be chosen."""
    temperature: float = 1.0
    top_p: float = 1.0
    """In (0, 1]; 1 is off."""
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    """In [0, 1]; 0 is off."""
    repetition_penalty: float = 1.0
    """> 0; applies to prompt and output tokens; 1 is off."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of these ids."""
    seed: int = 0
    """Drawn by the front when the client gave none; with the position it decides every random draw."""
    logprobs: int | None = None
    """None: none; k: the chosen token's and the k likeliest tokens', 0 <= k <= MAX_LOGPROBS."""
    prompt_logprobs: int | None = None
    """As ``logprobs``, for the tokens of the prompt; the first of them follows nothing and has none."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end the sequence: the model's end-of-sequence ids unless ignored, and the request's own."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; found by the front's detokenizer."""
    include_stop: bool = False
    """Whether the stop string or stop token stays in the text."""
    skip_special_tokens: bool = True

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0
