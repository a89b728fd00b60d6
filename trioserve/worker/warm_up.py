"""Steps of nobody's, so that what is made on first use is made before somebody waits for it."""

from collections.abc import Callable

from trioserve.core.sampling import SamplingParams
from trioserve.core.step import Admission, SlotWork, StepPlan, WorkerConfig


def run_once(
    run: Callable[[StepPlan], object],
    config: WorkerConfig,
    num_blocks: int,
    *,
    num_seqs: int,
    num_tokens: int,
) -> None:
    """Compute ``num_tokens`` of prompts in one step and one token for each of ``num_seqs`` in the next.

    Every other sequence is sampled and not greedy. The prompts are shorter where the blocks or the context are.
    """
    per_seq = min(num_blocks // num_seqs * config.block_size, config.max_model_len) - 1
    length = min(num_tokens // num_seqs, per_seq)
    if length < 1:
        return
    num_blocks_each = -(-(length + 1) // config.block_size)
    slots = range(num_seqs)
    admitted = [
        Admission(
            slot=slot,
            seq_id=slot,
            token_ids=[0] * length,
            num_prompt_tokens=length,
            num_computed_tokens=0,
            block_table=list(range(slot * num_blocks_each, (slot + 1) * num_blocks_each)),
            params=SamplingParams(max_tokens=2, temperature=float(slot % 2), top_p=0.9),
        )
        for slot in slots
    ]
    run(StepPlan(-3, [], admitted, [SlotWork(slot, length, []) for slot in slots]))
    run(StepPlan(-2, [], [], [SlotWork(slot, 1, []) for slot in slots]))
    run(StepPlan(-1, list(slots), [], []))
