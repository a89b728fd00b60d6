"""What the scheduler keeps to, and what it counts."""

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """What the scheduler keeps to; see ``settings.EngineSettings`` and ``LimitSettings`` for each."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_num_queued_reqs: int
    max_num_queued_tokens: int
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    kv_cache_ratio: float | None = None
    num_drafts: int = 0
    """Tokens that the ranks may guess for each sequence of a step; 0: none."""
    max_drafting_seqs: int = 0
    """Sequences of a step with which they may."""
    max_moved_blocks: int = 1
    """Blocks that a step with other work copies from host memory at most, and as many to it."""
    target_step_s: float | None = 0.0
    """Seconds that a step with decodes should take at most; None: what suits the model; 0: what
    ``max_num_batched_tokens`` take."""


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """A moment's counts."""

    num_waiting: int
    num_waiting_tokens: int
    num_running: int
    num_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    """Blocks that a prompt could find by their content, used or not."""
    num_preemptions: int
    """Since the start."""
    num_prompt_tokens: int
    """Of all sequences admitted since the start."""
    num_cached_tokens: int
    """Of those, found in the prefix cache."""
    num_host_blocks: int = 0
    num_cached_host_blocks: int = 0
    """Blocks of host memory that hold a prefix."""
    num_swapped_out: int = 0
    """Blocks copied to host memory since the start."""
    num_swapped_in: int = 0
    """And from there."""

    def __add__(self, other: "SchedulerStatistics") -> "SchedulerStatistics":
        """What both have counted since their starts, in all."""
        return replace(
            other,
            num_preemptions=self.num_preemptions + other.num_preemptions,
            num_prompt_tokens=self.num_prompt_tokens + other.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens + other.num_cached_tokens,
            num_swapped_out=self.num_swapped_out + other.num_swapped_out,
            num_swapped_in=self.num_swapped_in + other.num_swapped_in,
        )


NOTHING_SCHEDULED: Final = SchedulerStatistics(0, 0, 0, 0, 0, 0, 0, 0, 0)
"""Before there is a scheduler."""
