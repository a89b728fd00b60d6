"""Chooses the next token of every sequence of a step; only rows that ask for work cause any."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trioserve._speedups.sampling import Recipes
from trioserve.core.sampling import SamplingParams
from trioserve.core.step import TokenLogprobs
from trioserve.grammars.backend import Masks, Matcher
from trioserve.kernels.cpu import ISA
from trioserve.sampling.constraint import Constraint, Turn
from trioserve.sampling.logprobs import Scope

FillMasks = Callable[[Sequence[tuple[Matcher, int]], Masks], None]
"""As ``trioserve.grammars.backend.Enforcer.fill_masks``."""
Follow = Callable[[int, int], Turn | None]
"""``Constraint.take`` or ``Constraint.follow``."""
_NONE: Final = -1
_NO_MASKS: Final = np.empty(0, np.int64)
_NO_SCORES: Final = np.empty((0, 1)), np.empty((0, 0), np.int64)


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
    """Sampling parameters by slot, and the choice, in one native call; each row is chosen as if it were alone.

    What a grammar does not allow has no probability; the others keep theirs in proportion, and all that the parameters
    ask for happens among them. Log probabilities are those that the model gave, whatever a grammar allows.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int, fill_masks: FillMasks | None = None) -> None:
        """``fill_masks`` is needed once a sequence has a grammar."""
        self._vocab_size = vocab_size
        self._fill_masks = fill_masks
        self._recipes = Recipes(max_num_seqs, vocab_size)
        self._masks = np.empty((max_num_seqs, -(-vocab_size // 32)), np.int32)
        self._constraints: list[Constraint | None] = [None] * max_num_seqs
        self._is_bound = np.zeros(max_num_seqs, np.bool_)
        """[max_num_seqs], whether there is a constraint"""
        self._num_top = np.full(max_num_seqs, _NONE)
        """[max_num_seqs], alternatives to name, -1 where no log probabilities are asked for"""

    def admit(
        self,
        slot: int,
        params: SamplingParams,
        token_ids: NDArray[np.int32],
        num_prompt_tokens: int,
        constraint: Constraint | None = None,
    ) -> None:
        """Take ``slot`` for a sequence that so far has ``token_ids``, of which the first are its prompt."""
        self._constraints[slot], self._is_bound[slot] = constraint, constraint is not None
        self._num_top[slot] = _NONE if params.logprobs is None else min(params.logprobs, self._vocab_size)
        scope = Scope.of(params)
        self._recipes.admit(
            slot,
            is_greedy=params.is_greedy,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            seed=params.seed & (2**64 - 1),
            num_top=int(self._num_top[slot]),
            scope_temperature=scope.temperature,
            scope_top_p=scope.top_p,
            certain_above=1.0 if params.early_stop is None else params.early_stop.threshold,
        )
        if _has_edits(params):
            self._edit(slot, params, token_ids, num_prompt_tokens)

    def release(self, slot: int) -> None:
        """Forget what ``slot`` held."""
        self._recipes.release(slot)
        self._constraints[slot] = None

    def sample(self, logits: Tensor, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> Samples:
        """Choose one token a row and take note of it.

        A slot that has neither edits nor a constraint may have several rows.

        Shapes:
            logits: [num_rows, vocab_size], any float type; unchanged afterwards
            slots, positions: [num_rows]; the chosen token becomes number ``positions`` of its sequence, from 0
        """
        # rows may not share memory, as those of an expanded tensor do, since each is edited where it lies
        values: NDArray[np.float32] = np.ascontiguousarray(logits.float().numpy())
        token_ids = np.full(len(slots), _NONE)
        mask_of, follow = _NO_MASKS, list[tuple[int, Follow]]()
        if self._is_bound[slots].any():
            mask_of, follow = self._constrain(slots, token_ids)
        num_top = self._num_top[slots]
        logprobs, top_ids = _room_for_scores(num_top)
        is_certain = np.zeros(len(slots), np.bool_)
        self._recipes.choose(
            values,
            slots,
            positions,
            self._masks,
            mask_of,
            token_ids,
            logprobs,
            top_ids,
            is_certain.view(np.uint8),
            num_threads=torch.get_num_threads(),
            isa=ISA,
        )
        turns = self._turns(follow, slots, positions, token_ids) if follow else {}
        return Samples(token_ids, _records(num_top, logprobs, top_ids), is_certain, turns)

    def _edit(
        self, slot: int, params: SamplingParams, token_ids: NDArray[np.int32], num_prompt_tokens: int
    ) -> None:
        self._recipes.edit(
            slot,
            token_ids,
            num_prompt_tokens,
            allowed_ids=params.allowed_token_ids,
            stop_ids=params.stop_token_ids,
            first_stop=num_prompt_tokens + params.min_tokens,
            bias=params.logit_bias,
            bad_words=params.bad_words,
            repetition=params.repetition_penalty,
            frequency=params.frequency_penalty,
            presence=params.presence_penalty,
        )

    def _constrain(
        self, slots: NDArray[np.int64], token_ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], list[tuple[int, Follow]]]:
        """Write the tokens that are due, and the masks of the grammars.

        Returns:
            [num_rows], which mask a row has, -1: none; and who takes in the tokens of which rows.
        """
        mask_of = np.full(len(slots), _NONE)
        follow: list[tuple[int, Follow]] = []
        masked: list[tuple[Matcher, int]] = []
        for row, slot in enumerate(slots.tolist()):
            constraint = self._constraints[slot]
            if constraint is None:
                continue
            if (due := constraint.due()) is not None:
                token_ids[row] = due
                follow.append((row, constraint.follow))
                continue
            follow.append((row, constraint.take))
            if constraint.matcher is not None:
                mask_of[row] = len(masked)
                masked.append((constraint.matcher, len(masked)))
        if masked:
            assert self._fill_masks is not None, "a sequence has a grammar and nobody to enforce it"
            self._fill_masks(masked, self._masks)
        return mask_of, follow

    def _turns(
        self,
        follow: list[tuple[int, Follow]],
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
        token_ids: NDArray[np.int64],
    ) -> dict[int, Turn]:
        """Let the constraints take in what was chosen, and the edits what follows it."""
        turns: dict[int, Turn] = {}
        chosen, at = token_ids.tolist(), positions.tolist()
        for row, turn_after in follow:
            if (turn := turn_after(chosen[row], at[row])) is not None:
                turns[row] = turn
                self._recipes.add(int(slots[row]), turn.forced)
        return turns


def _has_edits(params: SamplingParams) -> bool:
    """Whether anything changes the logits."""
    penalties = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
    return (
        bool(params.logit_bias or params.bad_words or params.allowed_token_ids)
        or penalties != (1.0, 0.0, 0.0)
        or bool(params.min_tokens and params.stop_token_ids)
    )


def _room_for_scores(num_top: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """[num_rows, 1 + most] for log probabilities and [num_rows, most] for ids, if any row asks for them."""
    most = int(num_top.max(initial=_NONE))
    if most == _NONE:
        return _NO_SCORES
    return np.empty((len(num_top), 1 + most)), np.empty((len(num_top), most), np.int64)


def _records(
    num_top: NDArray[np.int64], logprobs: NDArray[np.float64], top_ids: NDArray[np.int64]
) -> list[TokenLogprobs | None]:
    """What was written for the rows that ask for it."""
    records: list[TokenLogprobs | None] = [None] * len(num_top)
    if len(logprobs):
        for row, count in enumerate(num_top.tolist()):
            if count != _NONE:
                own, *others = logprobs[row, : 1 + count].tolist()
                records[row] = TokenLogprobs(own, top_ids[row, :count].tolist(), others)
    return records
