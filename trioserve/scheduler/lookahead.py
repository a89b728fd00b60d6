"""Sequences whose steps may add several tokens: how far ahead of the front the ranks may be with them."""

from typing import Final

from trioserve._speedups.blocks import BlockPool
from trioserve.core.sampling import MAX_FORCED_TOKENS
from trioserve.core.sequence import Sequence
from trioserve.core.step import SlotWork
from trioserve.scheduler.limits import SchedulerLimits

_REST: Final = 7


class Lookahead:
    """What is planned for tokens that nobody may be certain of: those that are forced or guessed."""

    def __init__(self, limits: SchedulerLimits, pool: BlockPool) -> None:
        self._limits: Final = limits
        self._pool: Final = pool
        self._rest = 0  # plans to come that let nobody guess

    def full_length(self, seq: Sequence) -> int:
        """Tokens that a sequence may ever have."""
        return min(seq.num_prompt_tokens + seq.params.max_tokens, self._limits.max_model_len)

    def most_tokens(self, seq: Sequence) -> int:
        """The most tokens that the rank may know of a sequence when it comes to its next step."""
        most, num_pending = len(seq.token_ids) + seq.num_pending_tokens, seq.num_pending_tokens
        if seq.forces_tokens:
            return min(most + num_pending * MAX_FORCED_TOKENS, self.full_length(seq))
        # a guess leaves room in the blocks for the token behind it: only what comes without guesses goes beyond them
        room = len(seq.block_table) * self._pool.block_size + num_pending - 1 - most
        return min(most + min(seq.num_pending_drafts, max(0, room)), self.full_length(seq))

    def plan_drafts(self, work: dict[int, SlotWork], running: dict[int, Sequence], budget: int) -> int:
        """Let the rank guess tokens of the sequences of ``work``, by seq_id, all of which decode; how many of each.

        They get blocks for all of these as long as enough are left for those who need one next; else the rank guesses
        as far as their blocks go.
        """
        if self._rest:
            self._rest -= 1
            return 0
        pool = self._pool
        num_drafts = min(self._limits.num_drafts, budget // len(work))
        for seq_id, item in work.items() if num_drafts else ():
            seq = running[seq_id]
            if seq.forces_tokens:
                continue
            seq.num_pending_drafts += num_drafts
            most = len(seq.token_ids) + seq.num_pending_tokens + seq.num_pending_drafts
            num_blocks = -(-min(most, self.full_length(seq)) // pool.block_size) - len(seq.block_table)
            if num_blocks > 0 and num_blocks + len(running) <= pool.num_free:
                taken = pool.take(num_blocks)
                seq.block_table += taken
                work[seq_id] = SlotWork(item.slot, item.num_tokens, item.new_block_ids + taken)
        return num_drafts

    def note_guesses(self, *, were_any: bool) -> None:
        """Whether a rank that might guess in a step has done so; where not, it may again some plans later, so that
        text in which nothing is found costs little."""
        self._rest = 0 if were_any else _REST
