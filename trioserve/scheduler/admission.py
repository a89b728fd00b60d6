"""What an admission says to the ranks, and which blocks it leaves to those that run."""

from collections.abc import Collection

from trioserve._speedups.blocks import BlockPool
from trioserve.core.sequence import Sequence
from trioserve.core.step import Admission
from trioserve.scheduler.limits import SchedulerLimits


def admission_of(seq: Sequence) -> Admission:
    """What ranks are told of a sequence that was started and has computed nothing since."""
    assert seq.slot is not None
    return Admission(
        slot=seq.slot,
        seq_id=seq.seq_id,
        token_ids=seq.token_ids.tolist(),
        num_prompt_tokens=seq.num_prompt_tokens,
        num_computed_tokens=seq.num_computed_tokens,
        block_table=list(seq.block_table),
        params=seq.params,
    )


def num_reserved_blocks(running: Collection[Sequence], limits: SchedulerLimits, pool: BlockPool) -> int:
    """Blocks kept back for the next tokens of those that run, or each newcomer would soon drive one of them out."""
    num_blocks, block_size = pool.num_blocks, pool.block_size
    if limits.kv_cache_ratio is None:
        return min(len(running), num_blocks // 16)
    num_of_answers = sum(len(seq.block_table) - -(-seq.num_prompt_tokens // block_size) for seq in running)
    return max(0, num_blocks - int(num_blocks * limits.kv_cache_ratio) - num_of_answers)
