"""Carries out step plans: slot table -> tensors -> decoder -> sampler -> result."""

import time

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray

from trioserve.core.step import PromptLogprobs, SampledToken, StepPlan, StepResult
from trioserve.model.batch import ForwardBatch
from trioserve.model.decoder import Decoder
from trioserve.sampling.constraint import Turn
from trioserve.sampling.sampler import Sampler
from trioserve.worker.grammars import Grammars
from trioserve.worker.kv_cache import KVCache
from trioserve.worker.scoring import PromptScorer
from trioserve.worker.slots import SlotTable


class ModelRunner:
    """One rank's model with its KV cache and the sequences that are in its slots.

    A sampled token stays here and feeds the next step, so a plan may be made before the result of the last is known;
    so do those that follow it without a choice.
    """

    def __init__(
        self,
        model: Decoder,
        kv_cache: KVCache,
        grammars: Grammars,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._block_size = block_size
        self._slots = SlotTable(
            max_num_seqs, max_model_len, block_size, kv_cache.num_blocks, model.config.vocab_size
        )
        self._grammars = grammars
        self._sampler = Sampler(max_num_seqs, model.config.vocab_size, grammars.fill_masks)
        self._scorer = PromptScorer(max_num_seqs)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Carry out ``plan`` in the order released, admitted, work."""
        started = time.perf_counter()
        for slot in plan.released:
            self._slots.release(slot)
            self._sampler.release(slot)
        for admission in plan.admitted:
            token_ids = self._slots.admit(admission)
            self._sampler.admit(
                admission.slot,
                admission.params,
                token_ids,
                admission.num_prompt_tokens,
                self._grammars.constraint(admission),
            )
            self._scorer.admit(admission)
        sampled, scored = self._compute(plan) if plan.work else ([], [])
        return StepResult(plan.step_id, sampled, time.perf_counter() - started, scored)

    def _compute(self, plan: StepPlan) -> tuple[list[SampledToken], list[PromptLogprobs]]:
        table = self._slots
        slots, counts = table.begin(plan.work)
        if not slots.size:
            return [], []
        ends = table.num_computed[slots] + counts
        samples = ends == table.num_tokens[slots]
        stretches = self._scorer.stretches(slots, counts, ends)
        rows = [counts.cumsum()[samples] - 1]
        rows += [np.arange(first, first + count) for _, first, _, count in stretches]
        batch = self._batch(slots, counts, ends, np.concatenate(rows))
        hidden = self._model(batch, self._kv_cache.layers)
        table.num_computed[slots] = ends
        num_samples = len(rows[0])
        scored = self._scorer.score(stretches, hidden[num_samples:], self._model, table)
        sampled = self._sample(hidden[:num_samples], slots[samples]) if num_samples else []
        return sampled, scored

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

    def _sample(self, hidden: torch.Tensor, slots: NDArray[np.int64]) -> list[SampledToken]:
        """Choose, append and report a token for each of ``slots``, the rows of ``hidden``, and what must follow it."""
        table = self._slots
        chosen = self._sampler.sample(self._model.compute_logits(hidden), slots, table.num_tokens[slots])
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
