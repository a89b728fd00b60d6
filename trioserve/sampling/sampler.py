"""Chooses the next token of every sequence of a step; only rows that ask for work cause any."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trioserve.core.sampling import SamplingParams
from trioserve.core.step import TokenLogprobs
from trioserve.sampling.edits import LogitEdits
from trioserve.sampling.filters import choose
from trioserve.sampling.logprobs import token_logprobs
from trioserve.sampling.random import uniforms

GREEDY_BELOW: Final = 1e-5
"""Temperatures below it overflow and mean the likeliest token."""


class Samples(NamedTuple):
    """What a step chose."""

    token_ids: NDArray[np.int64]
    """[num_rows]"""
    logprobs: list[TokenLogprobs | None]
    """[num_rows]"""


class Sampler:
    """Sampling parameters by slot, and the choice; each row is chosen as if it were alone."""

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._params: list[SamplingParams | None] = [None] * max_num_seqs
        self._edits: list[LogitEdits | None] = [None] * max_num_seqs
        self._seeds = np.zeros(max_num_seqs, np.uint64)
        self._is_plain = np.ones(max_num_seqs, np.bool_)
        """[max_num_seqs], whether the likeliest token of the untouched logits is the choice"""
        self._has_logprobs = np.zeros(max_num_seqs, np.bool_)

    def admit(
        self, slot: int, params: SamplingParams, token_ids: NDArray[np.int32], num_prompt_tokens: int
    ) -> None:
        """Take ``slot`` for a sequence that so far has ``token_ids``, of which the first are its prompt."""
        edits = None
        if LogitEdits.needed(params):
            edits = LogitEdits(params, token_ids, num_prompt_tokens, self._vocab_size)
        self._params[slot], self._edits[slot] = params, edits
        self._seeds[slot] = params.seed & (2**64 - 1)
        self._is_plain[slot] = edits is None and params.temperature < GREEDY_BELOW
        self._has_logprobs[slot] = params.logprobs is not None

    def release(self, slot: int) -> None:
        """Forget what ``slot`` held."""
        self._params[slot] = self._edits[slot] = None

    def sample(self, logits: Tensor, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> Samples:
        """Choose one token a row and count it.

        Shapes:
            logits: [num_rows, vocab_size], any float type; unchanged
            slots, positions: [num_rows]; the chosen token becomes number ``positions`` of its sequence, from 0
        """
        values: NDArray[np.float32] = logits.float().numpy()
        plain = self._is_plain[slots]
        if plain.all():
            token_ids = values.argmax(-1)
        else:
            token_ids = np.empty(len(slots), np.int64)
            numbers = uniforms(self._seeds[slots], positions)
            for row in range(len(slots)):
                token_ids[row] = (
                    values[row].argmax()
                    if plain[row]
                    else self._choose(values[row], int(slots[row]), int(positions[row]), float(numbers[row]))
                )
        return Samples(token_ids, self._logprobs(values, slots, token_ids))

    def _choose(self, logits: NDArray[np.float32], slot: int, position: int, number: float) -> int:
        params, edits = self._params[slot], self._edits[slot]
        assert params is not None, f"slot {slot} samples and is free"
        if edits is not None:
            logits = logits.copy()
            edits.apply(logits, position)
        greedy = params.temperature < GREEDY_BELOW
        token_id = int(logits.argmax()) if greedy else choose(logits, params, number)
        if edits is not None and edits.counts is not None:
            edits.counts.add(token_id)
        return token_id

    def _logprobs(
        self, values: NDArray[np.float32], slots: NDArray[np.int64], token_ids: NDArray[np.int64]
    ) -> list[TokenLogprobs | None]:
        records: list[TokenLogprobs | None] = [None] * len(slots)
        for row in np.flatnonzero(self._has_logprobs[slots]).tolist():
            params = self._params[slots[row]]
            assert params is not None, f"slot {slots[row]} samples and is free"
            records[row] = token_logprobs(values[row], int(token_ids[row]), params.logprobs or 0)
        return records
