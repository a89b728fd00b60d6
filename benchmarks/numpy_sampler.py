"""The sampler in numpy, a row after the other, that ``trioserve._speedups.sampling`` took the place of.

What it computes is the same, up to rounding; here it is the way to compare with.
"""

from collections import deque
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trioserve.core.sampling import SamplingParams
from trioserve.core.step import TokenLogprobs
from trioserve.sampling.logprobs import LOWEST, MODELS_OWN, Scope

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)
_RUN: Final = 256
"""Weights that are summed first; the draw looks for the run, then within it."""


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, position), with 53 random bits.

    The seed is mixed before the position is added, so that neighbouring seeds are not the same stream shifted.

    Shapes:
        seeds, positions, result: [num_rows]
    Source:
        splitmix64, Steele, Lea and Flood, OOPSLA 2014.
    """
    mixed = _mix(_mix(seeds + _GOLDEN) + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(weights: NDArray[np.float32], number: float) -> int:
    """The place at which the running sum of ``weights`` passes ``number``, their whole sum being 1.

    Shapes:
        weights: [num_weights], at least 0, not all 0; need not sum to 1
    """
    num_whole = len(weights) // _RUN
    sums = weights[: num_whole * _RUN].reshape(num_whole, _RUN).sum(1)
    ends = np.append(sums, weights[num_whole * _RUN :].sum()).cumsum(dtype=np.float64)
    target = number * ends[-1]
    run = min(int(ends.searchsorted(target, side="right")), num_whole)
    within = weights[run * _RUN : (run + 1) * _RUN].cumsum(dtype=np.float64)
    if run:
        target -= ends[run - 1]
    place = run * _RUN + int(within.searchsorted(target, side="right"))
    if place < len(weights) and weights[place] > 0:
        return place
    # the two sums round differently: the target fell behind the last weight of its run
    before = np.flatnonzero(weights[:place])
    return int(before[-1] if before.size else weights.argmax())


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


def choose(logits: NDArray[np.float32], params: SamplingParams, number: float) -> int:
    """The token id that ``number``, in [0, 1), picks.

    min-p and top-k look at the distribution after temperature, top-p at what they leave, renormalised.

    Shapes:
        logits: [vocab_size], unchanged
    """
    ids = None
    if 0 < params.top_k < len(logits):
        ids = np.flatnonzero(logits >= kth_largest(logits, params.top_k))
        logits = logits[ids]
    weights = weights_of(logits, params)
    place = draw(weights, number)
    return place if ids is None else int(ids[place])


def weights_of(logits: NDArray[np.float32], params: SamplingParams) -> NDArray[np.float32]:
    """Proportional to the probabilities after temperature, min-p and top-p: 1 at the likeliest, 0 where filtered.

    Shapes:
        logits, result: [num_candidates]
    """
    weights: NDArray[np.float32] = np.exp((logits - logits.max()) / np.float32(params.temperature))
    if params.min_p > 0:
        weights[weights < params.min_p] = 0
    if params.top_p < 1:
        weights[weights < nucleus_border(weights, params.top_p)] = 0
    return weights


def kth_largest(values: NDArray[np.float32], k: int) -> np.float32:
    """The ``k``-th largest of ``values``, 1 <= k <= len(values)."""
    place = len(values) - k
    found: np.float32 = np.partition(values, place)[place]
    return found


def nucleus_border(weights: NDArray[np.float32], top_p: float) -> np.float32:
    """The smallest weight of the fewest largest ones, at least one, that together reach ``top_p`` of the sum."""
    total = weights.sum(dtype=np.float64)
    # all that lies below this sums to less than 1 - top_p, so the border is not among it
    candidates = weights[weights >= (1 - top_p) * total / len(weights)]
    largest_first = np.sort(candidates)[::-1]
    sums = largest_first.cumsum(dtype=np.float64)
    found: np.float32 = largest_first[min(int(sums.searchsorted(top_p * total)), len(sums) - 1)]
    return found


_MIN_CAPACITY: Final = 64


class TokenCounts:
    """The distinct tokens of a sequence and how often its output has each; kept up to date token by token."""

    def __init__(self, token_ids: NDArray[np.int32], num_prompt_tokens: int) -> None:
        """Count afresh; all but the first ``num_prompt_tokens`` of ``token_ids`` are output."""
        ids, places = np.unique(token_ids, return_inverse=True)
        self._size = len(ids)
        capacity = max(_MIN_CAPACITY, 2 * self._size)
        self._ids = np.zeros(capacity, np.int64)
        self._ids[: self._size] = ids
        self._counts = np.zeros(capacity, np.float32)
        self._counts[: self._size] = np.bincount(places[num_prompt_tokens:], minlength=self._size)
        self._places = dict(zip(ids.tolist(), range(self._size), strict=True))

    @property
    def ids(self) -> NDArray[np.int64]:
        """[num_distinct], prompt and output."""
        return self._ids[: self._size]

    @property
    def output_counts(self) -> NDArray[np.float32]:
        """[num_distinct], 0 for tokens that only the prompt has."""
        return self._counts[: self._size]

    def add(self, token_id: int) -> None:
        """Count one more output token."""
        place = self._places.setdefault(token_id, self._size)
        if place == self._size:
            self._make_room()
            self._ids[place] = token_id
            self._size += 1
        self._counts[place] += 1

    def _make_room(self) -> None:
        if self._size == len(self._ids):
            self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))


class BadWords:
    """The runs of ids that a sequence must not come to hold, by the id before the last of each."""

    def __init__(
        self, words: tuple[tuple[int, ...], ...], token_ids: NDArray[np.int32], vocab_size: int
    ) -> None:
        words = tuple(word for word in words if word and 0 <= word[-1] < vocab_size)
        self._always = np.array([word[0] for word in words if len(word) == 1], np.int64)
        self._after: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        for word in words:
            if len(word) > 1:
                self._after.setdefault(word[-2], []).append((word[:-1], word[-1]))
        longest = max((len(word) for word in words), default=1)
        # more tokens than the longest beginning has would never be looked at
        self._last = deque(token_ids[max(0, len(token_ids) - longest + 1) :].tolist(), longest - 1)

    def add(self, token_id: int) -> None:
        """The sequence has one more token."""
        self._last.append(token_id)

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Ban in place what would complete a run now."""
        logits[self._always] = -np.inf
        if self._last and (words := self._after.get(self._last[-1])):
            last = tuple(self._last)
            for beginning, end in words:
                if last[-len(beginning) :] == beginning:
                    logits[end] = -np.inf


class LogitEdits:
    """The edits of one sequence, in the order ban, bias, repetition, frequency and presence.

    Where bans leave nothing to choose, the choice is among the allowed ids all the same; where a grammar allows none of
    these, among those that it does allow.

    Source: the order of vLLM's sampler; frequency and presence as the OpenAI reference defines them, repetition as
    arXiv:1909.05858, over prompt and output.
    """

    def __init__(
        self, params: SamplingParams, token_ids: NDArray[np.int32], num_prompt_tokens: int, vocab_size: int
    ) -> None:
        self._params = params
        bias = {token_id: value for token_id, value in params.logit_bias if 0 <= token_id < vocab_size}
        self._bias_ids = np.array(list(bias), np.int64)
        self._biases = np.array(list(bias.values()), np.float32)
        self._stop_ids = np.array([at for at in params.stop_token_ids if 0 <= at < vocab_size], np.int64)
        self._first_stop = num_prompt_tokens + params.min_tokens
        self._allowed = np.array([at for at in params.allowed_token_ids if 0 <= at < vocab_size], np.int64)
        self._bad_words = BadWords(params.bad_words, token_ids, vocab_size) if params.bad_words else None
        self._counts = TokenCounts(token_ids, num_prompt_tokens) if has_penalties(params) else None

    @staticmethod
    def needed(params: SamplingParams) -> bool:
        """Whether ``params`` ask for any edit at all."""
        return (
            bool(params.logit_bias or params.bad_words or params.allowed_token_ids)
            or has_penalties(params)
            or bool(params.min_tokens and params.stop_token_ids)
        )

    def add(self, token_id: int) -> None:
        """Take note of one more token of the sequence."""
        if self._counts is not None:
            self._counts.add(token_id)
        if self._bad_words is not None:
            self._bad_words.add(token_id)

    def applied(self, logits: NDArray[np.float32], position: int) -> NDArray[np.float32]:
        """A copy of the logits [vocab_size] of the token at ``position`` of the sequence, edited."""
        edited = self._only_allowed(logits)
        if position < self._first_stop or self._bad_words is not None:
            edited = self._without_banned(edited, position)
        if self._bias_ids.size:
            edited[self._bias_ids] += self._biases
        if self._counts is not None:
            self._penalize(edited, self._counts)
        return edited

    def _only_allowed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy in which all other ids are banned, unless they alone can be chosen."""
        kept = logits[self._allowed]
        if not kept.size or kept.max() == -np.inf:
            return logits.copy()
        allowed = np.full_like(logits, -np.inf)
        allowed[self._allowed] = kept
        return allowed

    def _without_banned(self, logits: NDArray[np.float32], position: int) -> NDArray[np.float32]:
        """A copy without bad words and early stops; ``logits`` themselves where that leaves none."""
        left = logits.copy()
        if self._bad_words is not None:
            self._bad_words.apply(left)
        if position < self._first_stop:
            left[self._stop_ids] = -np.inf
        return left if left.max() > -np.inf else logits

    def _penalize(self, logits: NDArray[np.float32], counts: TokenCounts) -> None:
        params, seen = self._params, logits[counts.ids]
        if params.repetition_penalty != 1.0:
            penalty = np.float32(params.repetition_penalty)
            seen = np.where(seen > 0, seen / penalty, seen * penalty)
        if params.frequency_penalty or params.presence_penalty:
            seen -= np.float32(params.frequency_penalty) * counts.output_counts
            seen -= np.float32(params.presence_penalty) * (counts.output_counts > 0)
        logits[counts.ids] = seen


def has_penalties(params: SamplingParams) -> bool:
    """Whether the tokens so far change the logits."""
    return (
        params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
    )


class Scores(NamedTuple):
    """Log probabilities at one position; none is below LOWEST."""

    logprob: float
    """Of the token asked about."""
    top_ids: NDArray[np.int64]
    """[num_top], likeliest first, equals in the order of their ids"""
    top_logprobs: NDArray[np.float64]
    """[num_top]"""


def score(logits: NDArray[np.float32], token_id: int, num_top: int, scope: Scope = MODELS_OWN) -> Scores:
    """Of ``token_id`` and of the ``num_top`` likeliest.

    Shapes:
        logits: [vocab_size], before any edit
    """
    top_ids = top_of(logits, num_top)
    found = _logprobs(logits, np.concatenate(([token_id], top_ids)), scope)
    return Scores(float(found[0]), top_ids, found[1:])


def top_of(logits: NDArray[np.float32], num_top: int) -> NDArray[np.int64]:
    """The ``num_top`` likeliest ids, at most all, likeliest first, equals in the order of their ids.

    Shapes:
        logits: [vocab_size]
        result: [num_top]
    """
    num_top = min(num_top, len(logits))
    if not num_top:
        return np.empty(0, np.int64)
    border = kth_largest(logits, num_top)
    if np.isnan(border):  # numpy's largest is no number: a broken model, whose rank must not break
        logits = np.nan_to_num(logits, nan=-np.inf)
        border = kth_largest(logits, num_top)
    candidates = np.flatnonzero(logits >= border)
    found: NDArray[np.int64] = candidates[np.argsort(-logits[candidates], kind="stable")[:num_top]]
    return found


def _logprobs(logits: NDArray[np.float32], ids: NDArray[np.int64], scope: Scope) -> NDArray[np.float64]:
    largest = logits.max()
    weights = logits - largest
    if scope.temperature != 1.0:
        weights /= np.float32(scope.temperature)
    found = weights[ids].astype(np.float64)
    np.exp(weights, out=weights)
    if scope.top_p < 1.0:
        weights[weights < nucleus_border(weights, scope.top_p)] = 0
        found[weights[ids] == 0] = -np.inf
    found -= np.log(weights.sum(dtype=np.float64))
    clamped: NDArray[np.float64] = np.fmax(found, LOWEST)
    return clamped


class NumpySampler:
    """Takes and gives what ``trioserve.sampling.sampler.Sampler`` does, without grammars."""

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._params: list[SamplingParams] = [SamplingParams(max_tokens=1)] * max_num_seqs
        self._edits: list[LogitEdits | None] = [None] * max_num_seqs
        self._seeds = np.zeros(max_num_seqs, np.uint64)
        self._is_plain = np.ones(max_num_seqs, np.bool_)

    def admit(
        self, slot: int, params: SamplingParams, token_ids: NDArray[np.int32], num_prompt_tokens: int
    ) -> None:
        edits = None
        if LogitEdits.needed(params):
            edits = LogitEdits(params, token_ids, num_prompt_tokens, self._vocab_size)
        self._params[slot], self._edits[slot], self._seeds[slot] = params, edits, params.seed
        self._is_plain[slot] = edits is None and params.is_greedy

    def sample(
        self, values: NDArray[np.float32], slots: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], list[TokenLogprobs | None]]:
        if self._is_plain[slots].all():
            token_ids = values.argmax(-1)
        else:
            numbers = uniforms(self._seeds[slots], positions).tolist()
            token_ids = np.array(
                [
                    self._choose(values[row], slot, int(positions[row]), numbers[row])
                    for row, slot in enumerate(slots.tolist())
                ]
            )
        return token_ids, self._logprobs(values, slots, token_ids)

    def _choose(self, logits: NDArray[np.float32], slot: int, position: int, number: float) -> int:
        params, edits = self._params[slot], self._edits[slot]
        if edits is not None:
            logits = edits.applied(logits, position)
        token_id = int(logits.argmax()) if params.is_greedy else choose(logits, params, number)
        if edits is not None:
            edits.add(token_id)
        return token_id

    def _logprobs(
        self, values: NDArray[np.float32], slots: NDArray[np.int64], token_ids: NDArray[np.int64]
    ) -> list[TokenLogprobs | None]:
        records: list[TokenLogprobs | None] = []
        for row, slot in enumerate(slots.tolist()):
            num_top = self._params[slot].logprobs
            if num_top is None:
                records.append(None)
                continue
            found = score(values[row], int(token_ids[row]), num_top)
            records.append(TokenLogprobs(found.logprob, found.top_ids.tolist(), found.top_logprobs.tolist()))
        return records
