"""How one sequence's tokens are chosen; complete and checked before it leaves the front."""

from typing import Final

from msgspec import Struct

GREEDY_BELOW: Final = 1e-5
"""Temperatures below it overflow and mean the likeliest token."""
MAX_FORCED_TOKENS: Final = 15
"""Tokens that one step adds at most behind the one that it samples; what is forced beyond them follows a step later."""
_CHARS_PER_ID: Final = 4


class RepetitionDetection(Struct, frozen=True, array_like=True):
    """Ends a sequence whose output ends in one pattern of tokens, ``min_count`` times over."""

    max_pattern_size: int
    """Tokens of the longest pattern that counts."""
    min_pattern_size: int
    """Tokens of the shortest, at least 1."""
    min_count: int
    """At least 2."""


class EarlyStop(Struct, frozen=True, array_like=True):
    """Ends a sequence that has been certain of every token for too long, as one that repeats itself is."""

    window_size: int
    """Tokens in a row that must have been certain."""
    threshold: float
    """In [0, 1): the probability that the model itself must have given to each, exceeded."""


class Grammar(Struct, frozen=True, array_like=True):
    """What the tokens of an answer must spell; examined before it gets here, so that it compiles, and soon."""

    backend: str
    """Which of ``trioserve.grammars`` wrote it."""
    text: str
    """In that backend's notation; covers the answer from its first token, thinking included."""
    key: bytes
    """A hash of both: equal grammars have equal keys."""


class ThinkingBudget(Struct, frozen=True, array_like=True, kw_only=True):
    """Ends thinking that goes on for too long; and tells where it ends, so that its tokens can be counted."""

    begins: tuple[str, ...]
    """What begins thinking at the beginning of the answer, where it does not begin inside it."""
    ends: tuple[str, ...]
    is_open: bool
    """Whether the answer begins inside the thinking."""
    max_tokens: int | None
    """Tokens of thinking after which ``forced_end`` follows; None: any number. At least 0."""
    forced_end: tuple[int, ...]
    """The ids of the text that ends thinking as the model's template writes it."""


class SamplingParams(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the sampler and the stop rules obey; every field has been validated and clamped.

    Ids are token ids of the model's vocabulary.
    """

    max_tokens: int
    """Tokens to generate at most, already clamped to the room in the context; at least 1."""
    min_tokens: int = 0
    """Tokens before which no stop token may be chosen."""
    temperature: float = 1.0
    top_p: float = 1.0
    """In [0, 1]; 1 is off, 0 is greedy."""
    top_k: int = 0
    """0 is off, 1 is greedy; else equals of the last one that is kept are kept too."""
    min_p: float = 0.0
    """In [0, 1]; 0 is off."""
    repetition_penalty: float = 1.0
    """> 0; applies to prompt and output tokens; 1 is off."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of these ids."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Runs of ids that no token completes: the last id of one is banned while the others stand at the end."""
    allowed_token_ids: tuple[int, ...] = ()
    """The only ids that may be chosen; none named: all. Stronger than every ban."""
    seed: int = 0
    """Drawn by the front when the client gave none; with the position it decides every random draw."""
    logprobs: int | None = None
    """None: none; k: the chosen token's and the k likeliest tokens'."""
    temp_scaled_logprobs: bool = False
    """Whether ``logprobs`` are of the distribution after temperature, instead of the model's own."""
    top_p_normalized_logprobs: bool = False
    """Whether ``logprobs`` are of what top-p keeps of the distribution, renormalised."""
    prompt_logprobs: int | None = None
    """As ``logprobs``, for the tokens of the prompt; the first of them follows nothing and has none."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end the sequence: the model's end-of-sequence ids unless ignored, and the request's own."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; found by the front's detokenizer."""
    include_stop: bool = False
    """Whether the stop string or stop token stays in the text."""
    skip_special_tokens: bool = True
    repetition_detection: RepetitionDetection | None = None
    early_stop: EarlyStop | None = None
    grammar: Grammar | None = None
    """What the answer must spell. Stronger than every ban and every list of allowed ids."""
    thinking: ThinkingBudget | None = None
    """How the answer's thinking is told from the rest; None where nobody needs to know."""

    @property
    def forces_tokens(self) -> bool:
        """Whether a step may add more tokens than the one that it samples: those that leave no choice."""
        has_budget = self.thinking is not None and self.thinking.max_tokens is not None
        return self.grammar is not None or has_budget

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW or self.top_p == 0.0 or self.top_k == 1

    @property
    def num_ids(self) -> int:
        """Ids in all of it, or what takes as much room, which is what its size on the way to the ranks depends on."""
        return (
            len(self.logit_bias)
            + sum(map(len, self.bad_words))
            + len(self.allowed_token_ids)
            + len(self.stop_token_ids)
            + (0 if self.grammar is None else len(self.grammar.text) // _CHARS_PER_ID)
        )
