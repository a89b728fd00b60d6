"""A front in miniature: makes step plans for sequences and keeps what comes back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from trioserve.core.sampling import SamplingParams
from trioserve.core.step import (
    Admission,
    SampledToken,
    SlotWork,
    Speculation,
    StepPlan,
    StepResult,
    WorkerConfig,
)
from trioserve.worker.drafts import Price
from trioserve.worker.load import load_cpu_runner

BLOCK_SIZE = 16
GREEDY = SamplingParams(max_tokens=100, temperature=0.0)


def worker_config(folder: Path, **changes: object) -> WorkerConfig:
    """What the front would send for a small test."""
    values = {
        "model_path": str(folder),
        "device": "cpu",
        "dtype": "auto",
        "tp_rank": 0,
        "tp_size": 1,
        "block_size": BLOCK_SIZE,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
        "max_model_len": 128,
        "num_blocks": 64,
        "kv_cache_bytes": 0,
        "num_threads": 1,
    }
    return WorkerConfig(**(values | changes))  # type: ignore[arg-type] # as the fields are


@dataclass
class Front:
    """Drives one rank through ``execute``; every slot has its own blocks, from ``slot * 8`` on."""

    execute: Callable[[StepPlan], StepResult]
    outputs: dict[int, list[int]] = field(default_factory=dict)
    samples: dict[int, list[SampledToken]] = field(default_factory=dict)
    num_drafts: int = 0
    """Of every plan; sequences then get all their blocks at once."""
    num_guessed: int = 0
    num_right: int = 0
    """Guesses that were right."""
    step_id: int = 0
    _admitted: list[Admission] = field(default_factory=list)
    _released: list[int] = field(default_factory=list)
    _num_blocks: dict[int, int] = field(default_factory=dict)
    _ends: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, *, num_drafts: int = 0, **changes: object) -> "Front":
        """A front over a runner in this process; one that may guess does so whatever the price."""
        speculation = Speculation(num_drafts, 1, 3) if num_drafts else None
        config = worker_config(folder, speculation=speculation, **changes)
        runner, _ = load_cpu_runner(config, lambda progress: None, 0.0)
        torch.set_num_threads(1)
        if runner.drafter is not None:
            runner.drafter.prices = [Price(0.0, 1e-9)] * config.max_num_seqs
        return cls(runner.run, num_drafts=num_drafts)

    def admit(
        self,
        slot: int,
        token_ids: list[int],
        params: SamplingParams = GREEDY,
        *,
        num_prompt_tokens: int | None = None,
        shared: list[int] | None = None,
    ) -> None:
        """Admit a sequence with the next step; the blocks in ``shared`` hold its first tokens already.

        One whose steps may add several tokens gets all its blocks at once.
        """
        blocks = shared or []
        computed = len(blocks) * BLOCK_SIZE
        if params.forces_tokens or self.num_drafts:
            blocks = [*blocks, *range(slot * 8 + len(blocks), slot * 8 + 8)]
        num_prompt = len(token_ids) if num_prompt_tokens is None else num_prompt_tokens
        self._admitted.append(Admission(slot, 100 + slot, token_ids, num_prompt, computed, blocks, params))
        self._num_blocks[slot], self._ends[slot] = len(blocks), computed
        self.outputs[slot] = token_ids[num_prompt:]
        self.samples[slot] = []

    def release(self, *slots: int) -> None:
        """Release slots with the next step."""
        self._released += slots

    def step(self, **work: int) -> list[SampledToken]:
        """Compute so many tokens: ``step(s0=1, s3=20)``."""
        return self.take(self.execute(self.plan(**work)))

    def plan(self, **work: int) -> StepPlan:
        """The plan for a step, not carried out."""
        items = [self._work(int(name[1:]), count) for name, count in work.items()]
        plan = StepPlan(self.step_id, self._released, self._admitted, items, self.num_drafts)
        self._released, self._admitted = [], []
        self.step_id += 1
        return plan

    def take(self, result: StepResult) -> list[SampledToken]:
        """Note what a step sampled; returns it in the order of the sequences' tokens."""
        guessed = [sample for more in result.more for sample in more]
        for sample in guessed:
            self._ends[sample.slot] += 1
        self.num_right += len(guessed)
        self.num_guessed += sum(result.num_drafted)
        for sample in [*result.sampled, *guessed]:
            assert sample.seq_id == 100 + sample.slot
            if not sample.failure:
                self.outputs[sample.slot] += [sample.token_id, *sample.forced]
            self.samples[sample.slot].append(sample)
        return [*result.sampled, *guessed]

    def computed(self, slot: int) -> int:
        """Tokens of ``slot`` that the plans so far compute."""
        return self._ends[slot]

    def decode(self, num_steps: int, *slots: int) -> None:
        """Decode steps of all ``slots`` together."""
        for _ in range(num_steps):
            self.step(**{f"s{slot}": 1 for slot in slots})

    def _work(self, slot: int, count: int) -> SlotWork:
        self._ends[slot] += count
        have, need = self._num_blocks[slot], -(-self._ends[slot] // BLOCK_SIZE)
        self._num_blocks[slot] = max(have, need)
        return SlotWork(slot, count, [slot * 8 + number for number in range(have, need)])
