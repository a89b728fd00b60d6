"""Chooses the next token of every sequence of a step; only rows that ask for work cause any."""

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trioserve.core.sampling import SamplingParams
from trioserve.core.step import TokenLogprobs
from trioserve.sampling.edits import LogitEdits, apply_edits
from trioserve.sampling.filters import sampling_weights
from trioserve.sampling.logprobs import token_logprobs
from trioserve.sampling.random import draw, uniforms

GREEDY_BELOW: Final = 1e-5
"""Temperatures below it overflow and mean the likeliest token."""
_NO_LOGPROBS: Final = -1


class Samples(NamedTuple):
    """What a step chose."""

    token_ids: NDArray[np.int64]
    """[num_rows]"""
    logprobs: list[TokenLogprobs | None]
    """[num_rows]"""


class Sampler:
    """Sampling parameters by slot, and the choice."""

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._temperature = np.zeros(max_num_seqs, np.float32)
        self._top_k = np.zeros(max_num_seqs, np.int64)
        self._top_p = np.ones(max_num_seqs, np.float64)
        self._min_p = np.zeros(max_num_seqs, np.float32)
        self._seed = np.zeros(max_num_seqs, np.uint64)
        self._num_logprobs = np.full(max_num_seqs, _NO_LOGPROBS, np.int64)
        self._is_random = np.zeros(max_num_seqs, np.bool_)
        self._is_edited = np.zeros(max_num_seqs, np.bool_)
        self._edits: list[LogitEdits | None] = [None] * max_num_seqs

    def admit(
        self, slot: int, params: SamplingParams, token_ids: NDArray[np.int32], num_prompt_tokens: int
    ) -> None:
        """Take ``slot`` for a sequence that so far has ``token_ids``, of which the first are its prompt."""
        self._temperature[slot] = params.temperature
        self._top_k[slot] = params.top_k
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._seed[slot] = params.seed & (2**64 - 1)
        self._num_logprobs[slot] = _NO_LOGPROBS if params.logprobs is None else params.logprobs
        self._is_random[slot] = params.temperature >= GREEDY_BELOW and params.top_k != 1
        self._is_edited[slot] = LogitEdits.needed(params)
        self._edits[slot] = (
            LogitEdits(params, token_ids, num_prompt_tokens, self._vocab_size)
            if self._is_edited[slot]
            else None
        )

    def release(self, slot: int) -> None:
        """Forget what ``slot`` held."""
        self._edits[slot] = None

    def sample(self, logits: Tensor, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> Samples:
        """Choose one token a row and count it.

        Shapes:
            logits: [num_rows, vocab_size], any float type; unchanged
            slots, positions: [num_rows]; the chosen token becomes number ``positions`` of its sequence, from 0
        """
        edited, random = self._is_edited[slots], self._is_random[slots]
        plain = ~(edited | random)
        if plain.all():
            token_ids = logits.argmax(-1).numpy()
        else:
            token_ids = np.empty(len(slots), np.int64)
            token_ids[plain] = logits[torch.from_numpy(plain)].argmax(-1).numpy()
            token_ids[~plain] = self._choose(
                logits[torch.from_numpy(~plain)], slots[~plain], positions[~plain]
            )
        self._count(slots[edited], token_ids[edited])
        return Samples(token_ids, self._logprobs(logits, slots, token_ids))

    def _choose(
        self, logits: Tensor, slots: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The choice for rows that are edited, random or both; ``logits`` may be overwritten."""
        logits = logits.float()
        apply_edits(logits.numpy(), [self._edits[slot] for slot in slots.tolist()], positions.tolist())
        random = self._is_random[slots]
        if not random.any():
            return logits.argmax(-1).numpy()
        token_ids = np.empty(len(slots), np.int64)
        if not random.all():
            token_ids[~random] = logits[torch.from_numpy(~random)].argmax(-1).numpy()
            logits, slots, positions = logits[torch.from_numpy(random)], slots[random], positions[random]
        weights = sampling_weights(
            logits, self._temperature[slots], self._top_k[slots], self._top_p[slots], self._min_p[slots]
        )
        token_ids[random] = draw(weights, uniforms(self._seed[slots], positions)).numpy()
        return token_ids

    def _count(self, slots: NDArray[np.int64], token_ids: NDArray[np.int64]) -> None:
        for slot, token_id in zip(slots.tolist(), token_ids.tolist(), strict=True):
            edits = self._edits[slot]
            if edits is not None and edits.counts is not None:
                edits.counts.add(token_id)

    def _logprobs(
        self, logits: Tensor, slots: NDArray[np.int64], token_ids: NDArray[np.int64]
    ) -> list[TokenLogprobs | None]:
        records: list[TokenLogprobs | None] = [None] * len(slots)
        wanted = self._num_logprobs[slots]
        rows = np.flatnonzero(wanted != _NO_LOGPROBS)
        if rows.size:
            found = token_logprobs(
                logits[torch.from_numpy(rows)], torch.from_numpy(token_ids[rows]), wanted[rows].tolist()
            )
            for row, record in zip(rows.tolist(), found, strict=True):
                records[row] = record
        return records
