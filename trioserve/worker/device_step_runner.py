"""Carries out step plans on a device: a step is started before the one before is done, and its result comes later."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trioserve.core.step import (
    Admission,
    PromptLogprobs,
    SlotWork,
    StepPlan,
    StepResult,
)
from trioserve.kernels.attention_plan import AttentionPlan, graph_splits, split_keys
from trioserve.kernels.device import Device, Event
from trioserve.kernels.staging import Region, Staging
from trioserve.model.batch import DeviceBatch, DeviceCache
from trioserve.model.device import DeviceDecoder
from trioserve.model.ranks import ALONE, Ranks
from trioserve.sampling.device_sampler import Choice
from trioserve.worker.device_steps import DecodeGraphs, DeviceSlots, StepInputs
from trioserve.worker.pending import Chosen, Finish, Pending, Rounds, StepTimes
from trioserve.worker.scoring import PromptScorer, Stretch
from trioserve.worker.slots import SlotTable

_SOME_KEYS: Final = 128
UNKNOWN: Final = -1
"""Stands in the slot table for a token that only the device knows."""


ShareTokens = Callable[[Tensor], None]
"""Makes [num_rows] int32 those of rank 0, in place; a graph may hold it."""


class Swaps(Protocol):
    """What moves KV blocks between the device and the host."""

    def carry_out(self, plan: StepPlan) -> None:
        """Start what ``plan`` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceShape:
    """The sizes of a runner."""

    block_size: int
    max_num_seqs: int
    max_model_len: int
    vocab_size: int
    num_kv_heads: int
    """That are here."""
    batch_invariant: bool = False


class Work(NamedTuple):
    """What a step computes."""

    slots: NDArray[np.int64]
    """[num_seqs]"""
    counts: NDArray[np.int64]
    """[num_seqs], tokens of each"""
    ends: NDArray[np.int64]
    """[num_seqs], tokens computed after the step"""
    samples: NDArray[np.bool_]
    """[num_seqs], whether a token is chosen behind them"""

    @property
    def is_decode(self) -> bool:
        """Whether each has one token, behind which one is chosen."""
        return bool(self.samples.all() and (self.counts == 1).all())


class DeviceStepRunner(ABC):
    """One rank's part of a model on a device, with its KV cache and the sequences that are in its slots.

    What is planned needs no tokens: positions, blocks and lengths are counts, and the tokens are on the device. So a
    step is started as soon as its plan is here, and nobody waits for the device but who wants a result. The exceptions
    are steps in which a bound slot samples (``DeviceSampler``), which end with their result known, and scored prompts.
    """

    def __init__(
        self,
        model: DeviceDecoder,
        caches: list[DeviceCache],
        device: Device,
        shape: DeviceShape,
        *,
        ranks: Ranks = ALONE,
        share_tokens: ShareTokens | None = None,
        swaps: Swaps | None = None,
    ) -> None:
        """``share_tokens``: where there are several ranks, what gives all of them those of rank 0, on the device."""
        self.timeline: list[StepTimes] | None = None
        """Of steps, for who puts a list here; they take the device's time then."""
        self._start: Event | None = None
        self._model = model
        self._device = device
        self._shape = shape
        self._ranks = ranks
        self._share_tokens = share_tokens
        self.use(caches, swaps)
        self._scorer = PromptScorer(shape.max_num_seqs, shape.vocab_size)
        max_blocks = self._slots.block_tables.shape[1]
        self._there = DeviceSlots(device, shape.max_num_seqs, max_blocks)
        self._inputs = StepInputs(device, shape.max_num_seqs, self._there, shape.block_size)
        self._staging = Staging(device)
        self._graphs = DecodeGraphs(device, self._forward, self._choose)
        self._finish = Finish(self._staging)

    def use(self, caches: list[DeviceCache], swaps: Swaps | None = None) -> None:
        """Have the KV blocks of these, while nobody has a slot and before there are graphs."""
        shape = self._shape
        self._caches, self._swaps = caches, swaps
        num_blocks = len(caches[0].k) if caches else 0
        self._slots = SlotTable(
            shape.max_num_seqs, shape.max_model_len, shape.block_size, num_blocks, shape.vocab_size
        )

    @property
    def num_graphs(self) -> int:
        """How many graphs there are."""
        return self._graphs.num_graphs

    @torch.inference_mode()
    def capture(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Capture the graphs of decode steps; without it every step is launched kernel by kernel."""
        with self._nobody():
            self._graphs.capture(self._shape.max_num_seqs, progress)

    @torch.inference_mode()
    def decode_nobody(self) -> None:
        """Compute the decode step of the most rows that a graph may have, without one."""
        with self._nobody():
            self._graphs.try_largest(self._shape.max_num_seqs)

    @torch.inference_mode()
    def decode_again(self, num_seqs: int, times: int) -> float:
        """Seconds that the graphs of the last step, which decoded ``num_seqs``, take where nobody starts them late:
        the mean of so many times. The sequences are of no use then."""
        bucket = self._graphs.bucket_for(num_seqs)
        assert bucket is not None, "there are no graphs of so many rows"
        began = self._device.record(timed=True)
        for _ in range(times):
            self._graphs.forward(bucket)
            self._graphs.choose(bucket, Choice.PLAIN)
        ended = self._device.record(timed=True)
        ended.wait()
        return ended.seconds_since(began) / times

    @contextmanager
    def _nobody(self) -> Iterator[None]:
        """Rows that only fill a step are sent; what is started inside is done at the end."""
        nobody = np.empty(0, np.int64)
        region = self._staging.take()
        self._inputs.send_decodes(nobody, nobody, nobody, self._shape.max_num_seqs, _SOME_KEYS, region)
        self._send_wishes(region)
        yield
        self._device.record().wait()
        self._staging.give_back(region)

    def run(self, plan: StepPlan) -> StepResult:
        """Carry out ``plan`` and wait for its result."""
        return self.launch(plan).result()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Pending:
        """Start ``plan``, in the order swapped, released, admitted, work.

        All of the tables is as it will be after the step, when this returns, but for tokens that only the device knows.
        """
        started_s, region = time.perf_counter(), self._staging.take()
        if self._swaps is not None:
            self._swaps.carry_out(plan)
        for slot in plan.released:
            self._slots.release(slot)
            self._leave(slot)
        for admission in plan.admitted:
            self._admit(admission, region)
        work = self._begin(plan.work)
        self._there.send(region)
        self._send_wishes(region)
        chosen, scored = self._compute(work, plan.num_drafts, region) if work.slots.size else (None, [])
        event = self._device.record(timed=self.timeline is not None)
        if self.timeline is not None:
            self.timeline.append(StepTimes(self._start or event, event))
            self._start = None
        return Pending(self._finish, plan.step_id, region, started_s, chosen, scored, event)

    # --- tables ---

    def _admit(self, admission: Admission, region: Region) -> None:
        slot = admission.slot
        token_ids = self._slots.admit(admission)
        self._there.extend(slot, 0, admission.block_table)
        self._there.begin(slot, int(token_ids[-1]))
        self._enter(admission, token_ids, region)
        self._scorer.admit(admission)

    def _begin(self, work: list[SlotWork]) -> Work:
        table = self._slots
        for item in work:
            if item.new_block_ids:
                self._there.extend(item.slot, int(table.num_blocks[item.slot]), item.new_block_ids)
        slots, counts = table.begin(work)
        ends = table.num_computed[slots] + counts
        return Work(slots, counts, ends, ends == table.num_tokens[slots])

    # --- what the ranks do differently ---

    @abstractmethod
    def _enter(self, admission: Admission, token_ids: NDArray[np.int32], region: Region) -> None:
        """Note what a sequence with so far ``token_ids`` wants of its tokens."""

    @abstractmethod
    def _leave(self, slot: int) -> None:
        """Forget it."""

    @abstractmethod
    def _send_wishes(self, region: Region) -> None:
        """Let the device know of those that have come."""

    @abstractmethod
    def _choice_of(self, slots: NDArray[np.int64]) -> Choice:
        """What a step takes in which these sample."""

    @abstractmethod
    def _pick(self, logits: Tensor, num_rows: int, choice: Choice) -> Tensor:
        """[num_rows] int32, the token of each row that was sent, or room for it; for a graph too."""

    @abstractmethod
    def _choose_for(
        self,
        slots: NDArray[np.int64],
        logits: Tensor | None,
        bucket: int | None,
        choice: Choice,
        region: Region,
    ) -> Chosen | None:
        """Start the choice for ``slots``, by a graph or from ``logits``; where one of them is bound, wait for it."""

    @abstractmethod
    def _score(self, stretches: list[Stretch], hidden: Tensor) -> list[PromptLogprobs]:
        """The log probabilities of ``stretches``."""

    # --- a step ---

    def _compute(
        self, work: Work, num_drafts: int, region: Region
    ) -> tuple[Chosen | Rounds | None, list[PromptLogprobs]]:
        """Start a step; what it chooses, and what it has scored.

        ``num_drafts``: tokens of each that may be guessed; here nobody does.
        """
        table, sampling = self._slots, work.slots[work.samples]
        choice, scored = self._choice_of(sampling), list[PromptLogprobs]()
        if work.is_decode:
            bucket = None if choice is Choice.UNUSUAL else self._graphs.bucket_for(len(sampling))
            logits = self._decode(work, bucket, region)
        else:
            bucket = None
            logits, scored = self._compute_mixed(work, region)
        table.num_computed[work.slots] = work.ends
        if not sampling.size:
            return None, scored
        return self._choose_for(sampling, logits, bucket, choice, region), scored

    def _decode(self, work: Work, bucket: int | None, region: Region) -> Tensor | None:
        """One token of each; returns the logits, or None where a graph has them."""
        shape, table, slots = self._shape, self._slots, work.slots
        num_rows = bucket or len(slots)
        most = self._splits(num_rows)
        split_size, num_splits = split_keys(
            work.ends.tolist(),
            shape.num_kv_heads,
            self._device.gpu.num_multiprocessors,
            batch_invariant=shape.batch_invariant,
            most_splits=most,
        )
        block_ids = table.block_tables[slots, (work.ends - 1) // shape.block_size].astype(np.int64)
        self._inputs.send_decodes(slots, work.ends, block_ids, num_rows, split_size, region)
        self._note_start()
        if bucket is None:
            return self._logits(self._inputs.decodes(num_rows, num_splits))
        self._graphs.forward(bucket)
        return None

    def _compute_mixed(self, work: Work, region: Region) -> tuple[Tensor | None, list[PromptLogprobs]]:
        """Prompts, chunks and decodes side by side; returns the logits of those that sample, if any do."""
        counts, samples, table = work.counts, work.samples, self._slots
        stretches = self._scorer.stretches(work.slots, counts, work.ends)
        rows = [counts.cumsum()[samples] - 1]
        rows += [np.arange(first, first + count) for _, first, _, count in stretches]
        batch = self._mixed(work, np.concatenate(rows), region)
        self._note_start()
        hidden = self._model(batch, self._caches)
        num_samples = len(rows[0])
        scored = self._score(stretches, hidden[num_samples:])
        if not num_samples:
            return None, scored
        slots = work.slots[samples]
        self._inputs.send_samples(slots, table.num_tokens[slots], num_samples, region)
        return self._model.compute_logits(hidden[:num_samples]), scored

    def _note_start(self) -> None:
        """What comes next are the layers of a step."""
        if self.timeline is not None:
            self._start = self._device.record(timed=True)

    # --- what the device is told ---

    def _splits(self, num_rows: int) -> int:
        """The splits of keys in a graph of so many rows."""
        shape = self._shape
        return graph_splits(
            num_rows,
            shape.max_model_len,
            shape.num_kv_heads,
            self._device.gpu.num_multiprocessors,
            batch_invariant=shape.batch_invariant,
        )

    def _forward(self, num_rows: int) -> Tensor:
        """The logits of the decode step that was sent, for a graph."""
        return self._logits(self._inputs.decodes(num_rows, self._splits(num_rows)))

    def _logits(self, batch: DeviceBatch) -> Tensor:
        return self._model.compute_logits(self._model(batch, self._caches))

    def _choose(self, logits: Tensor, num_rows: int, choice: Choice) -> None:
        """The choice for the rows that were sent; the device keeps the tokens for the next step."""
        token_ids = self._pick(logits, num_rows, choice)
        if self._share_tokens is not None:
            self._share_tokens(token_ids)
        self._inputs.keep(token_ids)

    def _start_choice(self, num_rows: int, logits: Tensor | None, bucket: int | None, choice: Choice) -> None:
        """The same, by a graph where there is a ``bucket``."""
        if bucket is not None:
            self._graphs.choose(bucket, choice)
        else:
            assert logits is not None, "nobody has the logits"
            self._choose(logits, num_rows, choice)

    def _mixed(self, work: Work, rows: NDArray[np.int64], region: Region) -> DeviceBatch:
        """Lay the tokens of all slots side by side; hidden states are wanted of ``rows``, [num_rows]."""
        table, shape, there = self._slots, self._shape, self._there
        bounds = np.concatenate((np.zeros(1, np.int64), work.counts.cumsum()))
        slot_of = work.slots.repeat(work.counts)
        positions = np.arange(bounds[-1]) + (work.ends - bounds[1:]).repeat(work.counts)
        block_ids = table.block_tables[slot_of, positions // shape.block_size].astype(np.int64)
        places = block_ids * shape.block_size + positions % shape.block_size
        token_ids = table.token_ids[slot_of, positions].astype(np.int64)
        unknown = np.flatnonzero(token_ids == UNKNOWN)
        split_size, num_splits = split_keys(
            work.ends[work.counts == 1].tolist(),
            shape.num_kv_heads,
            self._device.gpu.num_multiprocessors,
            batch_invariant=shape.batch_invariant,
        )
        wide = (token_ids, positions, places, rows, work.slots, unknown, slot_of[unknown])
        ids, at, mapping, wanted, slots, rows_of, slots_of = _sent(wide, np.int64, region)
        narrow = (bounds, work.ends, np.array([split_size]))
        cu_seqlens_q, seq_lens, size = _sent(narrow, np.int32, region)
        if unknown.size:
            ids.index_copy_(0, rows_of, there.last_tokens.index_select(0, slots_of))
        width = -(-int(work.ends.max()) // shape.block_size)
        plan = AttentionPlan(
            cu_seqlens_q=cu_seqlens_q,
            seq_lens=seq_lens,
            block_tables=there.block_tables[:, :width].index_select(0, slots),
            split_size=size,
            num_splits=num_splits,
            has_decodes=bool((work.counts == 1).any()),
            has_prefills=bool((work.counts > 1).any()),
        )
        return DeviceBatch(ids, at, mapping, wanted, plan)


def _sent(
    arrays: Sequence[NDArray[np.int64]], kind: type[np.int64 | np.int32], region: Region
) -> list[Tensor]:
    """``arrays`` on the device, by one copy."""
    together = region.send(np.concatenate(arrays).astype(kind))
    ends = np.cumsum([len(each) for each in arrays]).tolist()
    return [together[end - len(each) : end] for each, end in zip(arrays, ends, strict=True)]
