"""Chooses the next token of every sequence of a step; only rows that ask for work cause any."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trioserve._speedups import sampling as native
from trioserve.core.sampling import SamplingParams
from trioserve.core.step import TokenLogprobs
from trioserve.grammars.backend import Masks, Matcher
from trioserve.kernels.cpu import ISA
from trioserve.sampling.constraint import Constraint, Turn
from trioserve.sampling.edits import LogitEdits
from trioserve.sampling.filters import choose
from trioserve.sampling.logprobs import MODELS_OWN, Scope, probability, score
from trioserve.sampling.random import uniforms

FillMasks = Callable[[Sequence[tuple[Matcher, int]], Masks], None]
"""As ``trioserve.grammars.backend.Enforcer.fill_masks``."""
Follow = Callable[[int, int], Turn | None]
"""``Constraint.take`` or ``Constraint.follow``."""
_NONE = -1


class Samples(NamedTuple):
    """What a step chose."""

    token_ids: NDArray[np.int64]
    """[num_rows]"""
    logprobs: list[TokenLogprobs | None]
    """[num_rows]"""
    is_certain: NDArray[np.bool_]
    """[num_rows], whether the model gave a token more than the probability of its early stop"""
    turns: dict[int, Turn]
    """By row, for those that do not just go on."""


class Sampler:
    """Sampling parameters by slot, and the choice; each row is chosen as if it were alone.

    What a grammar does not allow has no probability; the others keep theirs in proportion, and all that the parameters
    ask for happens among them. Log probabilities are those that the model gave, whatever a grammar allows.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int, fill_masks: FillMasks | None = None) -> None:
        """``fill_masks`` is needed once a sequence has a grammar."""
        self._vocab_size = vocab_size
        self._fill_masks = fill_masks
        self._masks = np.empty((max_num_seqs, -(-vocab_size // 32)), np.int32)
        self._constraints: list[Constraint | None] = [None] * max_num_seqs
        self._is_bound = np.zeros(max_num_seqs, np.bool_)
        """[max_num_seqs], whether there is a constraint"""
        self._params: list[SamplingParams | None] = [None] * max_num_seqs
        self._edits: list[LogitEdits | None] = [None] * max_num_seqs
        self._seeds = np.zeros(max_num_seqs, np.uint64)
        self._is_plain = np.ones(max_num_seqs, np.bool_)
        """[max_num_seqs], whether the likeliest token of the untouched logits is the choice"""
        self._num_top = np.full(max_num_seqs, -1)
        """[max_num_seqs], alternatives to name, -1 where no log probabilities are asked for"""
        self._scopes = [MODELS_OWN] * max_num_seqs
        self._thresholds = np.ones(max_num_seqs)
        """[max_num_seqs], the probability to exceed for an early stop; nothing exceeds 1"""

    def admit(
        self,
        slot: int,
        params: SamplingParams,
        token_ids: NDArray[np.int32],
        num_prompt_tokens: int,
        constraint: Constraint | None = None,
    ) -> None:
        """Take ``slot`` for a sequence that so far has ``token_ids``, of which the first are its prompt."""
        edits = None
        if LogitEdits.needed(params):
            edits = LogitEdits(params, token_ids, num_prompt_tokens, self._vocab_size)
        self._params[slot], self._edits[slot] = params, edits
        self._constraints[slot], self._is_bound[slot] = constraint, constraint is not None
        self._seeds[slot] = params.seed & (2**64 - 1)
        self._is_plain[slot] = edits is None and params.is_greedy
        self._num_top[slot] = -1 if params.logprobs is None else params.logprobs
        self._scopes[slot] = Scope.of(params)
        self._thresholds[slot] = 1.0 if params.early_stop is None else params.early_stop.threshold

    def release(self, slot: int) -> None:
        """Forget what ``slot`` held."""
        self._params[slot] = self._edits[slot] = self._constraints[slot] = None

    def sample(self, logits: Tensor, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> Samples:
        """Choose one token a row and take note of it.

        Shapes:
            logits: [num_rows, vocab_size], any float type; unchanged
            slots, positions: [num_rows]; the chosen token becomes number ``positions`` of its sequence, from 0
        """
        values: NDArray[np.float32] = logits.float().numpy()
        turns: dict[int, Turn] = {}
        if self._is_bound[slots].any():
            token_ids = self._choose_bound(values, slots, positions, turns)
        elif self._is_plain[slots].all():
            token_ids = values.argmax(-1)
        else:
            token_ids = np.full(len(slots), _NONE)
            self._choose_rest(values, slots, positions, token_ids, {})
        return Samples(
            token_ids,
            self._logprobs(values, slots, token_ids),
            self._is_certain(values, slots, token_ids),
            turns,
        )

    def _choose_bound(
        self,
        values: NDArray[np.float32],
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
        turns: dict[int, Turn],
    ) -> NDArray[np.int64]:
        """As ``sample``, where some rows have a constraint, which takes in what is chosen; ``turns`` is filled."""
        token_ids = np.full(len(slots), _NONE)
        follow: list[tuple[int, Follow]] = []
        greedy: list[tuple[int, Matcher]] = []
        others: list[tuple[int, Matcher]] = []
        for row, slot in enumerate(slots.tolist()):
            constraint = self._constraints[slot]
            if constraint is None:
                continue
            if (due := constraint.due()) is not None:
                token_ids[row] = due
                self._note(slot, due)
                follow.append((row, constraint.follow))
                continue
            follow.append((row, constraint.take))
            if constraint.matcher is not None:
                (greedy if self._is_plain[slot] else others).append((row, constraint.matcher))
        self._fill(greedy + others)
        self._choose_likeliest(values, [row for row, _ in greedy], token_ids)
        masks = {row: self._masks[len(greedy) + number] for number, (row, _) in enumerate(others)}
        self._choose_rest(values, slots, positions, token_ids, masks)
        chosen, at = token_ids.tolist(), positions.tolist()
        for row, turn_after in follow:
            if (turn := turn_after(chosen[row], at[row])) is not None:
                turns[row] = turn
                self._note(int(slots[row]), *turn.forced)
        return token_ids

    def _note(self, slot: int, *token_ids: int) -> None:
        """Let the edits of ``slot`` know of tokens that nobody chose."""
        edits = self._edits[slot]
        if edits is not None:
            for token_id in token_ids:
                edits.add(token_id)

    def _fill(self, rows: Sequence[tuple[int, Matcher]]) -> None:
        """Write the masks of ``rows``, one after the other."""
        if rows:
            assert self._fill_masks is not None, "a sequence has a grammar and nobody to enforce it"
            self._fill_masks([(matcher, number) for number, (_, matcher) in enumerate(rows)], self._masks)

    def _choose_likeliest(
        self, values: NDArray[np.float32], rows: list[int], token_ids: NDArray[np.int64]
    ) -> None:
        """For ``rows``, which have the first masks."""
        if rows:
            found = np.empty(len(rows), np.int64)
            native.masked_argmax(
                values, self._masks, np.array(rows), found, num_threads=torch.get_num_threads(), isa=ISA
            )
            token_ids[rows] = found

    def _choose_rest(
        self,
        values: NDArray[np.float32],
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
        token_ids: NDArray[np.int64],
        masks: dict[int, NDArray[np.int32]],
    ) -> None:
        """For the rows that have no token yet; ``masks`` by row."""
        rest = np.flatnonzero(token_ids == _NONE)
        if not rest.size:
            return
        numbers = uniforms(self._seeds[slots], positions)
        for row in rest.tolist():
            logits, slot = values[row], int(slots[row])
            if row in masks:
                logits = np.empty_like(logits)
                if not native.mask_logits(logits, values[row], masks[row], isa=ISA):
                    logits = values[
                        row
                    ]  # nothing is allowed that the model has: whatever it chooses is refused
            token_ids[row] = (
                logits.argmax()
                if self._is_plain[slot]
                else self._choose(logits, slot, int(positions[row]), float(numbers[row]))
            )

    def _choose(self, logits: NDArray[np.float32], slot: int, position: int, number: float) -> int:
        params, edits = self._params[slot], self._edits[slot]
        assert params is not None, f"slot {slot} samples and is free"
        if edits is not None:
            logits = edits.applied(logits, position)
        token_id = int(logits.argmax()) if params.is_greedy else choose(logits, params, number)
        if edits is not None:
            edits.add(token_id)
        return token_id

    def _logprobs(
        self, values: NDArray[np.float32], slots: NDArray[np.int64], token_ids: NDArray[np.int64]
    ) -> list[TokenLogprobs | None]:
        records: list[TokenLogprobs | None] = [None] * len(slots)
        for row in np.flatnonzero(self._num_top[slots] >= 0).tolist():
            slot = slots[row]
            found = score(values[row], int(token_ids[row]), int(self._num_top[slot]), self._scopes[slot])
            records[row] = TokenLogprobs(found.logprob, found.top_ids.tolist(), found.top_logprobs.tolist())
        return records

    def _is_certain(
        self, values: NDArray[np.float32], slots: NDArray[np.int64], token_ids: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        thresholds = self._thresholds[slots]
        is_certain = np.zeros(len(slots), np.bool_)
        for row in np.flatnonzero(thresholds < 1):
            is_certain[row] = probability(values[row], int(token_ids[row])) > thresholds[row]
        return is_certain
