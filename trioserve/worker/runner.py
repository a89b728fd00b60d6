"""Carries out step plans: slot table -> tensors -> decoder -> sampler -> result."""

import time
from abc import ABC, abstractmethod

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray

from trioserve.core.step import (
    Admission,
    PromptLogprobs,
    SampledToken,
    Speculation,
    StepPlan,
    StepResult,
)
from trioserve.model.batch import ForwardBatch
from trioserve.model.decoder import Decoder
from trioserve.model.ranks import ALONE, Ranks
from trioserve.sampling.constraint import Turn
from trioserve.sampling.sampler import Sampler, Samples
from trioserve.sampling.verify import Guesses, verify
from trioserve.worker.drafts import Drafter
from trioserve.worker.grammars import Grammars
from trioserve.worker.kv_cache import KVCache
from trioserve.worker.scoring import PromptScorer, Stretch
from trioserve.worker.slots import SlotTable


class StepRunner(ABC):
    """One rank's part of a model with its KV cache and the sequences that are in its slots.

    A sampled token stays here and feeds the next step, so a plan may be made before the result of the last is known;
    so do those that follow it without a choice, and those that were guessed and are what would have been chosen.
    """

    drafter: Drafter | None = None
    """What guesses tokens, if anything."""

    def __init__(
        self,
        model: Decoder,
        kv_cache: KVCache,
        ranks: Ranks,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._ranks = ranks
        self._block_size = block_size
        self._slots = SlotTable(
            max_num_seqs, max_model_len, block_size, kv_cache.num_blocks, model.config.vocab_size
        )
        self._scorer = PromptScorer(max_num_seqs, model.config.vocab_size)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Carry out ``plan`` in the order released, admitted, work."""
        started = time.perf_counter()
        for slot in plan.released:
            self._release(slot)
        for admission in plan.admitted:
            self._admit(admission)
            self._scorer.admit(admission)
        result = self._compute(plan) if plan.work else StepResult(plan.step_id, [], 0.0)
        step_s = time.perf_counter() - started
        if self.drafter is not None and plan.num_drafts and len(result.sampled) == len(plan.work):
            self.drafter.time(len(plan.work), sum(result.num_drafted), step_s)
        return structs.replace(result, step_s=step_s)

    @abstractmethod
    def _admit(self, admission: Admission) -> None:
        """Let a sequence in."""

    @abstractmethod
    def _release(self, slot: int) -> None:
        """Let a sequence out."""

    @abstractmethod
    def _guess(self, slots: NDArray[np.int64], samples: NDArray[np.bool_], most: int) -> Guesses | None:
        """What is tried behind the tokens of ``slots``; None: nothing."""

    @abstractmethod
    def _choose(
        self,
        hidden: torch.Tensor,
        slots: NDArray[np.int64],
        samples: NDArray[np.bool_],
        guesses: Guesses | None,
    ) -> list[list[SampledToken]]:
        """Let the slots that ``samples`` names, whose hidden states are given, have their next tokens; in rounds."""

    @abstractmethod
    def _score(self, stretches: list[Stretch], hidden: torch.Tensor) -> list[PromptLogprobs]:
        """The log probabilities of ``stretches``."""

    def _compute(self, plan: StepPlan) -> StepResult:
        """The result of a step, but for its time."""
        table = self._slots
        slots, counts = table.begin(plan.work)
        if not slots.size:
            return StepResult(plan.step_id, [], 0.0)
        samples = table.num_computed[slots] + counts == table.num_tokens[slots]
        guesses = self._guess(slots, samples, plan.num_drafts) if plan.num_drafts else None
        if guesses is not None:
            counts += guesses.counts
        ends = table.num_computed[slots] + counts
        stretches = self._scorer.stretches(slots, counts, ends)
        rows = self._rows(counts, samples, guesses)
        num_samples = sum(map(len, rows))
        rows += [np.arange(first, first + count) for _, first, _, count in stretches]
        hidden = self._model(self._batch(slots, counts, ends, np.concatenate(rows)), self._kv_cache.layers)
        table.num_computed[slots] = ends
        scored = self._score(stretches, hidden[num_samples:])
        rounds = self._choose(hidden[:num_samples], slots, samples, guesses) if num_samples else [[]]
        num_drafted = [] if guesses is None else guesses.num_with
        return StepResult(plan.step_id, rounds[0], 0.0, scored, rounds[1:], num_drafted)

    @staticmethod
    def _rows(
        counts: NDArray[np.int64], samples: NDArray[np.bool_], guesses: Guesses | None
    ) -> list[NDArray[np.int64]]:
        """After which of a step's tokens one is sampled."""
        lasts = counts.cumsum() - 1
        if guesses is None:
            return [lasts[samples]]
        return guesses.of(samples).rows((lasts - guesses.counts)[samples])

    def _batch(
        self,
        slots: NDArray[np.int64],
        counts: NDArray[np.int64],
        ends: NDArray[np.int64],
        rows: NDArray[np.int64],
    ) -> ForwardBatch:
        """Lay the tokens of all slots side by side, [num_seqs]; hidden states are wanted of ``rows``, [num_rows]."""
        table, block_size = self._slots, self._block_size
        bounds = np.concatenate((np.zeros(1, np.int64), counts.cumsum()))
        slot_of = slots.repeat(counts)
        positions = np.arange(bounds[-1]) + (ends - bounds[1:]).repeat(counts)
        block_ids = table.block_tables[slot_of, positions // block_size].astype(np.int64)
        max_blocks = -(-int(ends.max()) // block_size)
        return ForwardBatch(
            token_ids=torch.from_numpy(table.token_ids[slot_of, positions].astype(np.int64)),
            positions=torch.from_numpy(positions),
            slot_mapping=torch.from_numpy(block_ids * block_size + positions % block_size),
            cu_seqlens_q=torch.from_numpy(bounds.astype(np.int32)),
            seq_lens=torch.from_numpy(ends.astype(np.int32)),
            block_tables=torch.from_numpy(table.block_tables[slots, :max_blocks]),
            sample_rows=torch.from_numpy(rows),
        )


class ModelRunner(StepRunner):
    """The rank that chooses the tokens, and tells the others if there are some."""

    def __init__(
        self,
        model: Decoder,
        kv_cache: KVCache,
        grammars: Grammars,
        ranks: Ranks = ALONE,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        speculation: Speculation | None = None,
    ) -> None:
        super().__init__(
            model,
            kv_cache,
            ranks,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            block_size=block_size,
        )
        self._grammars = grammars
        self._sampler = Sampler(max_num_seqs, model.config.vocab_size, grammars.fill_masks)
        self.drafter = None if speculation is None else Drafter(speculation, self._slots)

    def _admit(self, admission: Admission) -> None:
        token_ids = self._slots.admit(admission)
        self._sampler.admit(
            admission.slot,
            admission.params,
            token_ids,
            admission.num_prompt_tokens,
            self._grammars.constraint(admission),
        )
        if self.drafter is not None:
            self.drafter.admit(admission.slot, admission.params)

    def _release(self, slot: int) -> None:
        self._slots.release(slot)
        self._sampler.release(slot)

    def _guess(self, slots: NDArray[np.int64], samples: NDArray[np.bool_], most: int) -> Guesses | None:
        if self.drafter is None:
            return None
        counts = self.drafter.guess(slots, samples, most)
        guesses = None if counts is None else Guesses(self._slots.behind(slots, int(counts.max())), counts)
        if self._ranks.tp_size > 1:
            self._ranks.share(as_numbers(guesses, len(slots), most))
        return guesses

    def _choose(
        self,
        hidden: torch.Tensor,
        slots: NDArray[np.int64],
        samples: NDArray[np.bool_],
        guesses: Guesses | None,
    ) -> list[list[SampledToken]]:
        sampling = slots[samples]
        num_known = self._slots.num_tokens[sampling]
        if guesses is not None:
            rounds = self._verify(hidden, slots, samples, guesses)
        else:
            rounds = [self._sample(hidden, sampling)]
        if self._ranks.tp_size > 1:
            self._ranks.share(self._slots.news(sampling, num_known))
        return rounds

    def _score(self, stretches: list[Stretch], hidden: torch.Tensor) -> list[PromptLogprobs]:
        return self._scorer.score(stretches, hidden, self._model.compute_logits, self._slots)

    def _sample(self, hidden: torch.Tensor, slots: NDArray[np.int64]) -> list[SampledToken]:
        """Choose, append and report a token for each of ``slots``, the rows of ``hidden``, and what must follow it."""
        logits = self._model.compute_logits(hidden)
        return self._take(slots, self._sampler.sample(logits, slots, self._slots.num_tokens[slots]))

    def _verify(
        self,
        hidden: torch.Tensor,
        slots: NDArray[np.int64],
        samples: NDArray[np.bool_],
        guesses: Guesses,
    ) -> list[list[SampledToken]]:
        """The same, and further tokens for those of ``slots`` whose guesses were right; in rounds."""
        assert self.drafter is not None, "nobody guesses"
        table = self._slots
        table.num_computed[slots] -= guesses.counts
        sampling, guesses = slots[samples], guesses.of(samples)
        logits = self._model.compute_logits(hidden)
        rounds = []
        num_right = np.zeros_like(sampling)
        for place, (members, chosen) in enumerate(
            verify(self._sampler, logits, sampling, table.num_tokens[sampling], guesses)
        ):
            if place:
                table.accept(sampling[members])
                num_right[members] += 1
            rounds.append(self._take(sampling[members], chosen))
        self.drafter.learn(sampling, guesses.counts, num_right)
        return rounds

    def _take(self, slots: NDArray[np.int64], chosen: Samples) -> list[SampledToken]:
        """Append and report the tokens chosen for ``slots``, and what must follow them."""
        table = self._slots
        table.append(slots, chosen.token_ids)
        rows = zip(
            slots.tolist(),
            table.seq_ids[slots].tolist(),
            chosen.token_ids.tolist(),
            chosen.logprobs,
            chosen.is_certain.tolist(),
            strict=True,
        )
        if not chosen.turns:
            return [SampledToken(*row) for row in rows]
        return [self._turned(SampledToken(*row), chosen.turns.get(at)) for at, row in enumerate(rows)]

    def _turned(self, sampled: SampledToken, turn: Turn | None) -> SampledToken:
        """Append what ``sampled`` has led to, and report it as well."""
        if turn is None:
            return sampled
        self._slots.follow(sampled.slot, turn.forced)
        if turn.is_last:
            self._slots.end(sampled.slot)
        if not turn.forced and not turn.failure:
            return sampled
        return structs.replace(sampled, forced=turn.forced, failure=turn.failure)


def as_numbers(guesses: Guesses | None, num_seqs: int, most: int) -> NDArray[np.int64]:
    """[num_seqs, 1 + most], how many tokens are guessed, and these."""
    numbers = np.zeros((num_seqs, 1 + most), np.int64)
    if guesses is not None:
        numbers[:, 0] = guesses.counts
        numbers[:, 1 : 1 + guesses.token_ids.shape[1]] = guesses.token_ids
    return numbers
