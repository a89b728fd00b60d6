"""What a request does to its logits before any choice: bans, bias, penalties; and the counts behind these."""

from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trioserve.core.sampling import SamplingParams

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
