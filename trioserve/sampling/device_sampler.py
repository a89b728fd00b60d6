"""Chooses the next token of every sequence of a step on a device, as ``sampler.py`` does on a CPU."""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trioserve.core.sampling import SamplingParams
from trioserve.core.step import TokenLogprobs
from trioserve.kernels.device import Device
from trioserve.kernels.sampling_gpu import (
    RowTables,
    choose_tokens_gpu,
    edit_logits_gpu,
    score_tokens_gpu,
)
from trioserve.kernels.staging import Region
from trioserve.sampling.constraint import Constraint, Turn
from trioserve.sampling.device_tables import FOREVER, DeviceTables, penalties_of, words_of
from trioserve.sampling.sampler import FillMasks

MOST_TOP: Final = 20
"""Alternatives that graphs name; a step with a slot that wants more is computed without one."""
_NONE: Final = -1
_NO_PENALTIES: Final = (1.0, 0.0, 0.0)


class Choice(IntEnum):
    """What a step's rows take; each includes those before it."""

    PLAIN = 0
    """The choice from the logits as the model made them."""
    EDITED = 1
    """Masks, allowed ids, bans, biases and penalties before it."""
    SCORED = 2
    """Log probabilities behind it."""
    UNUSUAL = 3
    """More bans, biases or alternatives than graphs have room for."""


class Wanted(NamedTuple):
    """What is to be told of a step's rows beside their tokens."""

    num_top: NDArray[np.int64]
    """[num_rows], alternatives to name, -1 where no log probabilities are asked for"""
    certain_above: NDArray[np.float64]
    """[num_rows], the probability that a certain token exceeds; 1: none is certain"""


class Readout(NamedTuple):
    """What a step chose, pinned, on its way from the device."""

    token_ids: Tensor
    """[num_rows] int32"""
    logprobs: Tensor | None
    """[num_rows, 1 + most] float32; None: nobody wants any"""
    top_ids: Tensor | None
    """[num_rows, most] int32"""
    own: Tensor | None
    """[num_rows, 1] float32, log probabilities of the tokens as the model itself gave them"""


class DeviceSampler:
    """Sampling parameters by slot, and the choice; each row is chosen as if it were alone.

    A slot is bound where the next token may depend on more than the device knows: by a grammar, by a budget of thinking
    or by bad words of several tokens. A step in which such a slot samples asks ``constrain`` before the choice and
    tells ``take`` of it, so it needs its result at once; no other step does.
    """

    def __init__(
        self,
        device: Device,
        max_num_seqs: int,
        vocab_size: int,
        most_rows: int,
        fill_masks: FillMasks | None = None,
    ) -> None:
        """``most_rows``: of a step, those that only fill it included; ``fill_masks``: as ``Sampler`` has it."""
        self._device = device
        self._vocab_size = vocab_size
        self._fill_masks = fill_masks
        self._tables = DeviceTables(device, max_num_seqs, vocab_size)
        self._constraints: list[Constraint | None] = [None] * max_num_seqs
        self._words: list[_BadWords | None] = [None] * max_num_seqs
        self._is_bound = np.zeros(max_num_seqs, np.bool_)
        self._choices = np.zeros(max_num_seqs, np.int64)
        """[max_num_seqs], the ``Choice`` that each needs"""
        self._has_penalties = np.zeros(max_num_seqs, np.bool_)
        self._num_top = np.full(max_num_seqs, _NONE)
        self._certain_above = np.ones(max_num_seqs)
        self._num_prompt_tokens = np.zeros(max_num_seqs, np.int64)
        top = min(MOST_TOP, vocab_size)

        def table(*shape: int, dtype: torch.dtype, fill: float = 0) -> Tensor:
            return torch.full(shape, fill, dtype=dtype, device=device.torch_device)

        self._masks = table(most_rows, -(-vocab_size // 32), dtype=torch.int32)
        self._mask_of = table(most_rows, dtype=torch.int32, fill=_NONE)  # between steps: none has a mask
        self._chosen = table(most_rows, dtype=torch.int32)
        self._logprobs = table(most_rows, 1 + top, dtype=torch.float32)
        self._top_ids = table(most_rows, top, dtype=torch.int32)
        self._own = table(most_rows, 1, dtype=torch.float32)
        self._unusual = self._logprobs, self._top_ids
        """Those of the last step whose choice was; graphs write to the others."""

    # --- slots ---

    def admit(
        self,
        slot: int,
        params: SamplingParams,
        token_ids: NDArray[np.int32],
        num_prompt_tokens: int,
        region: Region,
        constraint: Constraint | None = None,
    ) -> None:
        """Take ``slot`` for a sequence that so far has ``token_ids``, of which the first are its prompt."""
        num_top = None if params.logprobs is None else min(params.logprobs, self._vocab_size)
        words = _BadWords.of(params, token_ids, self._vocab_size, num_prompt_tokens)
        self._constraints[slot], self._words[slot] = constraint, words
        self._is_bound[slot] = is_bound_by(params)
        self._num_prompt_tokens[slot] = num_prompt_tokens
        self._num_top[slot] = _NONE if num_top is None else num_top
        self._certain_above[slot] = 1.0 if params.early_stop is None else params.early_stop.threshold
        self._has_penalties[slot] = penalties_of(params) != _NO_PENALTIES
        allowed = [token_id for token_id in params.allowed_token_ids if 0 <= token_id < self._vocab_size]
        tables = self._tables
        tables.write(slot, params, num_top)
        tables.allow(slot, allowed, region)
        tables.ban(slot, words.bans(), region)
        tables.bias(slot, params.logit_bias, region)
        if self._has_penalties[slot]:
            tables.count(slot, token_ids, num_prompt_tokens, region)
        is_edited = bool(allowed or words.bans() or params.logit_bias or self._has_penalties[slot])
        self._choices[slot] = self._choice_for(slot, is_edited=is_edited or bool(self._is_bound[slot]))

    def release(self, slot: int) -> None:
        """Forget what ``slot`` held."""
        self._constraints[slot] = self._words[slot] = None
        self._is_bound[slot] = False

    def send(self, region: Region) -> None:
        """Let the device know of the slots that were taken since."""
        self._tables.send(region)

    def choice_of(self, slots: NDArray[np.int64]) -> Choice:
        """What a step of these takes."""
        return Choice(int(self._choices[slots].max(initial=0)))

    def binds(self, slots: NDArray[np.int64]) -> bool:
        """Whether any of these is bound."""
        return bool(self._is_bound[slots].any())

    def wanted(self, slots: NDArray[np.int64]) -> Wanted:
        """What ``records`` needs to know of the rows of these, whoever has the slots by then."""
        return Wanted(self._num_top[slots], self._certain_above[slots])

    def _choice_for(self, slot: int, *, is_edited: bool) -> Choice:
        if self._tables.is_wide[slot] or self._num_top[slot] > MOST_TOP:
            return Choice.UNUSUAL
        if self._num_top[slot] != _NONE or self._certain_above[slot] < 1.0:
            return Choice.SCORED
        return Choice.EDITED if is_edited else Choice.PLAIN

    # --- the choice, on the device ---

    def choose(self, logits: Tensor, slots: Tensor, positions: Tensor, choice: Choice) -> Tensor:
        """A token for each row; nothing here looks at numbers, so a graph may hold it, unless the choice is unusual.

        Shapes:
            logits: [num_rows, vocab_size]
            slots: [num_rows] int32
            positions: [num_rows] int64; the chosen token becomes this one of its sequence, from 0
            result: [num_rows] int32
        """
        gpu, num_rows = self._device.gpu, len(slots)
        tables = self._tables.of_all if choice is Choice.UNUSUAL else self._tables.slots
        rows = RowTables(slots, positions, self._masks, self._mask_of[:num_rows])
        is_edited = choice is not Choice.PLAIN
        edited = edit_logits_gpu(gpu, logits, rows, tables, has_edits=is_edited, has_lists=is_edited)
        token_ids = choose_tokens_gpu(gpu, edited, rows, tables)
        self._chosen[:num_rows].copy_(token_ids)
        if choice >= Choice.SCORED:
            raw = edit_logits_gpu(gpu, logits, rows, tables, has_edits=False)
            top = self._top_ids.shape[1] if choice is Choice.SCORED else int(self._num_top.max(initial=0))
            logprobs, top_ids = score_tokens_gpu(gpu, token_ids, raw, rows, tables, max_top=top)
            own, _ = score_tokens_gpu(gpu, token_ids, raw, rows, self._tables.own(tables), max_top=0)
            if choice is Choice.SCORED:
                self._logprobs[:num_rows].copy_(logprobs)
                self._top_ids[:num_rows].copy_(top_ids)
            else:
                self._unusual = logprobs, top_ids
            self._own[:num_rows].copy_(own)
        return token_ids

    def read(self, num_rows: int, choice: Choice, region: Region) -> Readout:
        """Have what was chosen last for the first ``num_rows`` brought to the host."""

        def bring(table: Tensor) -> Tensor:
            place = region.room(*table[:num_rows].shape, dtype=table.dtype)
            return place.copy_(table[:num_rows], non_blocking=True)

        if choice < Choice.SCORED:
            return Readout(bring(self._chosen), None, None, None)
        scores = self._unusual if choice is Choice.UNUSUAL else (self._logprobs, self._top_ids)
        return Readout(*map(bring, (self._chosen, *scores, self._own)))

    # --- what the host has to do with it ---

    def constrain(self, slots: NDArray[np.int64], region: Region) -> list[tuple[int, bool]]:
        """Write masks for the rows of a step, and bans, as the tokens so far ask for; until ``unconstrain``.

        Returns:
            The rows with a constraint, and whether their token is taken in already, since nothing else may come.
        """
        mask_of, masks, follow = np.full(len(slots), _NONE, np.int32), list[int](), list[tuple[int, bool]]()
        due_of: dict[int, int] = {}
        for row, slot in enumerate(slots.tolist()):
            self._ban_completions(slot, region)
            constraint = self._constraints[slot]
            if constraint is None:
                continue
            due = constraint.due()
            follow.append((row, due is not None))
            if due is not None:
                due_of[row] = due
            if due is not None or constraint.matcher is not None:
                mask_of[row] = len(masks)
                masks.append(row)
        self._send_masks(slots, mask_of, masks, due_of, region)
        return follow

    def unconstrain(self, num_rows: int) -> None:
        """The rows of steps to come have no masks."""
        self._mask_of[:num_rows].fill_(_NONE)

    def take(
        self,
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
        token_ids: NDArray[np.int32],
        follow: Sequence[tuple[int, bool]],
    ) -> dict[int, Turn]:
        """Let constraints and bad words take in what was chosen; by row, what that has led to."""
        for slot, token_id in zip(slots.tolist(), token_ids.tolist(), strict=True):
            self._add(slot, [token_id])
        turns: dict[int, Turn] = {}
        for row, is_taken in follow:
            constraint = self._constraints[slots[row]]
            assert constraint is not None, "a slot has lost its constraint"
            turn_after = constraint.follow if is_taken else constraint.take
            if (turn := turn_after(int(token_ids[row]), int(positions[row]))) is not None:
                turns[row] = turn
                self._add(int(slots[row]), turn.forced)
        return turns

    def count_anew(self, slot: int, token_ids: NDArray[np.int32], region: Region) -> None:
        """A slot has ``token_ids``, some of which were not chosen here."""
        if self._has_penalties[slot]:
            self._tables.count(slot, token_ids, int(self._num_prompt_tokens[slot]), region)

    def _add(self, slot: int, token_ids: Sequence[int]) -> None:
        if (words := self._words[slot]) is not None:
            words.add(token_ids)

    def _ban_completions(self, slot: int, region: Region) -> None:
        words = self._words[slot]
        if words is not None and words.has_runs:
            self._tables.ban(slot, words.bans(), region)

    def _send_masks(
        self,
        slots: NDArray[np.int64],
        mask_of: NDArray[np.int32],
        rows: list[int],
        only: dict[int, int],
        region: Region,
    ) -> None:
        """Fill and send a mask for each of ``rows``: of the token in ``only``, or what the row's grammar allows."""
        if not rows:
            return
        pinned = region.room(len(rows), self._masks.shape[1], dtype=torch.int32)
        masks: NDArray[np.int32] = pinned.numpy()
        matched = []
        for number, row in enumerate(rows):
            if row in only:
                masks[number] = words_of((only[row],), self._vocab_size)
            elif (constraint := self._constraints[slots[row]]) is not None and constraint.matcher is not None:
                matched.append((constraint.matcher, number))
        if matched:
            assert self._fill_masks is not None, "a sequence has a grammar and nobody to enforce it"
            self._fill_masks(matched, masks)
        self._masks[: len(rows)].copy_(pinned, non_blocking=True)
        self._mask_of[: len(mask_of)].copy_(region.put(mask_of), non_blocking=True)


def is_bound_by(params: SamplingParams) -> bool:
    """Whether the next token of such a sequence may depend on more than a device knows."""
    return params.forces_tokens or any(len(word) > 1 for word in params.bad_words)


class _BadWords:
    """One sequence's bans: stop tokens that come too early, bad words, and what would complete those of several ids."""

    def __init__(self, until: dict[int, int], runs: list[tuple[int, ...]], last: list[int]) -> None:
        self._until = until
        self._runs = runs
        self._longest = max(map(len, runs), default=0)
        self._last = last[-self._longest :] if runs else []

    @classmethod
    def of(
        cls, params: SamplingParams, token_ids: NDArray[np.int32], vocab_size: int, num_prompt_tokens: int
    ) -> "_BadWords":
        """What ``params`` ask for."""
        until: dict[int, int] = {}
        if params.min_tokens:
            first = num_prompt_tokens + params.min_tokens
            until = {token_id: first for token_id in params.stop_token_ids if 0 <= token_id < vocab_size}
        words = [word for word in params.bad_words if word and 0 <= word[-1] < vocab_size]
        until |= {word[0]: FOREVER for word in words if len(word) == 1}
        runs = [word for word in words if len(word) > 1]
        most = max(map(len, runs), default=0)
        return cls(until, runs, token_ids[len(token_ids) - most :].tolist() if runs else [])

    @property
    def has_runs(self) -> bool:
        """Whether the next bans depend on the last tokens."""
        return bool(self._runs)

    def add(self, token_ids: Sequence[int]) -> None:
        """The sequence has more tokens."""
        if self._runs:
            self._last = [*self._last, *token_ids][-self._longest :]

    def bans(self) -> dict[int, int]:
        """The banned ids, each with the first position that it may have."""
        return self._until | dict.fromkeys(self._completions(), FOREVER)

    def _completions(self) -> Iterator[int]:
        for run in self._runs:
            beginning = list(run[:-1])
            if self._last[len(self._last) - len(beginning) :] == beginning:
                yield run[-1]


def records(readout: Readout, wanted: Wanted) -> tuple[list[TokenLogprobs | None], NDArray[np.bool_]]:
    """The log probabilities that rows ask for, and whether the model was certain of their tokens."""
    num_rows = len(wanted.num_top)
    found: list[TokenLogprobs | None] = [None] * num_rows
    if readout.logprobs is None or readout.top_ids is None or readout.own is None:
        return found, np.zeros(num_rows, np.bool_)
    logprobs, top_ids = readout.logprobs.numpy(), readout.top_ids.numpy()
    for row, count in enumerate(wanted.num_top.tolist()):
        if count != _NONE:
            first, *others = logprobs[row, : 1 + count].tolist()
            found[row] = TokenLogprobs(first, top_ids[row, :count].tolist(), others)
    is_certain = wanted.certain_above < 1.0
    # of other rows there is anything
    own = readout.own.numpy()[is_certain, 0].astype(np.float64)
    is_certain[is_certain] = np.exp(own) > wanted.certain_above[is_certain]
    return found, is_certain
