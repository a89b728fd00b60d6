"""What a request does to its logits before any choice: banned stops, bias, penalties; and the counts behind these."""

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


class LogitEdits:
    """The edits of one sequence, in the order ban, bias, repetition, frequency and presence.

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
        self.counts = TokenCounts(token_ids, num_prompt_tokens) if has_penalties(params) else None

    @staticmethod
    def needed(params: SamplingParams) -> bool:
        """Whether ``params`` ask for any edit at all."""
        return (
            bool(params.logit_bias)
            or has_penalties(params)
            or bool(params.min_tokens and params.stop_token_ids)
        )

    def apply(self, logits: NDArray[np.float32], position: int) -> None:
        """Edit in place the logits [vocab_size] of the token at ``position`` of the sequence."""
        if position < self._first_stop:
            logits[self._stop_ids] = -np.inf
        if self._bias_ids.size:
            logits[self._bias_ids] += self._biases
        if self.counts is not None:
            self._penalize(logits, self.counts)

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
