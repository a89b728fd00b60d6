"""What a rank remembers of each sequence between steps, in rows by slot; a step reads and writes them in bulk."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from trioserve.core.sampling import MAX_FORCED_TOKENS
from trioserve.core.step import MAX_GUESSES, Admission, SlotWork

FREE: Final = -1
_MOST_NEW: Final = 1 + max(MAX_FORCED_TOKENS, MAX_GUESSES)
"""Tokens that a step may add to a sequence."""
NEWS_WIDTH: Final = 3 + _MOST_NEW


class SlotTable:
    """Tokens, block tables and counts of up to ``max_num_seqs`` sequences.

    The tables are as long as a sequence may become, but the system gives them memory only where they are written.
    """

    def __init__(
        self, max_num_seqs: int, max_model_len: int, block_size: int, num_blocks: int, vocab_size: int
    ) -> None:
        self._block_size = block_size
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size
        self._num_blocks_total = num_blocks
        self.seq_ids = np.full(max_num_seqs, FREE, np.int64)
        """[max_num_seqs], FREE where nobody is"""
        self.num_tokens = np.zeros(max_num_seqs, np.int64)
        """[max_num_seqs], tokens known"""
        self.num_computed = np.zeros(max_num_seqs, np.int64)
        """[max_num_seqs], tokens whose KV is in the cache"""
        self.num_blocks = np.zeros(max_num_seqs, np.int64)
        self._has_sampled = np.zeros(max_num_seqs, np.bool_)
        """[max_num_seqs], since its admission"""
        self._most_tokens = np.zeros(max_num_seqs, np.int64)
        """[max_num_seqs], tokens that a sequence may ever have; with so many there is nothing left to compute"""
        self.limits = np.zeros(max_num_seqs, np.int64)
        """[max_num_seqs], the same, as far as there are blocks for them"""
        # one place more: the token sampled after the last position of the context is kept, though never computed
        self.token_ids = np.zeros((max_num_seqs, max_model_len + 1), np.int32)
        self.block_tables = np.zeros((max_num_seqs, -(-max_model_len // block_size)), np.int32)

    def admit(self, admission: Admission) -> NDArray[np.int32]:
        """Let a sequence into its slot; returns its tokens."""
        slot, length = admission.slot, len(admission.token_ids)
        assert self.seq_ids[slot] == FREE, f"slot {slot} is taken by sequence {self.seq_ids[slot]}"
        assert 0 <= admission.num_computed_tokens < length, (
            f"{admission.num_computed_tokens} of {length} computed"
        )
        largest = max(admission.token_ids)
        assert 0 <= min(admission.token_ids) <= largest < self._vocab_size, (
            f"token id {largest} is not in the model"
        )
        self.seq_ids[slot] = admission.seq_id
        self.num_tokens[slot], self.num_computed[slot] = length, admission.num_computed_tokens
        self.num_blocks[slot] = 0
        self._most_tokens[slot] = min(
            admission.num_prompt_tokens + admission.params.max_tokens, self._max_model_len
        )
        self._has_sampled[slot] = False
        self.token_ids[slot, :length] = admission.token_ids
        self.extend(slot, admission.block_table)
        return self.token_ids[slot, :length]

    def release(self, slot: int) -> None:
        """Let the sequence out."""
        assert self.seq_ids[slot] != FREE, f"slot {slot} is free already"
        self.seq_ids[slot] = FREE

    def extend(self, slot: int, block_ids: list[int]) -> None:
        """Append to the block table; ids out of range would let the kernels write anywhere, so they are looked at."""
        assert not block_ids or 0 <= min(block_ids) <= max(block_ids) < self._num_blocks_total, (
            f"slot {slot} is given block {max(block_ids)} of {self._num_blocks_total}"
        )
        start = self.num_blocks[slot]
        self.block_tables[slot, start : start + len(block_ids)] = block_ids
        self.num_blocks[slot] += len(block_ids)
        self.limits[slot] = min(self._most_tokens[slot], self.num_blocks[slot] * self._block_size)

    def begin(self, work: list[SlotWork]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Append new blocks and check the work; returns slots and the tokens to compute of each, both [num_seqs].

        They are those of ``work``, but a slot that has sampled computes all that it knows, and one that has ended
        nothing: it is left out.
        """
        for item in work:
            if item.new_block_ids:
                self.extend(item.slot, item.new_block_ids)
        slots = np.array([item.slot for item in work], np.int64)
        counts = np.array([item.num_tokens for item in work], np.int64)
        assert (self.seq_ids[slots] != FREE).all(), "a free slot is given work"
        num_tokens = self.num_tokens[slots]
        going_on = num_tokens < self._most_tokens[slots]
        if not going_on.all():
            slots, counts, num_tokens = slots[going_on], counts[going_on], num_tokens[going_on]
        known = num_tokens - self.num_computed[slots]
        assert (counts > 0).all() and (counts <= known).all(), "work beyond the tokens known"
        counts = np.where(self._has_sampled[slots], known, counts)
        ends = self.num_computed[slots] + counts
        assert (ends <= self.num_blocks[slots] * self._block_size).all(), "work beyond the blocks given"
        return slots, counts

    def behind(self, slots: NDArray[np.int64], count: int) -> NDArray[np.int32]:
        """What was written behind the known tokens of ``slots``; [num_slots, count]."""
        return self._from(slots, self.num_tokens[slots], count)

    def _from(self, slots: NDArray[np.int64], starts: NDArray[np.int64], count: int) -> NDArray[np.int32]:
        """``count`` tokens of each of ``slots``, known or not; past the last place, what is in it."""
        places = starts[:, None] + np.arange(count)
        found: NDArray[np.int32] = self.token_ids[
            slots[:, None], np.minimum(places, self.token_ids.shape[1] - 1)
        ]
        return found

    def append(self, slots: NDArray[np.int64], token_ids: NDArray[np.int64]) -> None:
        """Add one sampled token to each of ``slots``."""
        self.token_ids[slots, self.num_tokens[slots]] = token_ids
        self.num_tokens[slots] += 1
        self._has_sampled[slots] = True

    def follow(self, slot: int, token_ids: list[int]) -> None:
        """Add the tokens that come behind a sampled one without a choice."""
        start = self.num_tokens[slot]
        self.token_ids[slot, start : start + len(token_ids)] = token_ids
        self.num_tokens[slot] += len(token_ids)

    def accept(self, slots: NDArray[np.int64]) -> None:
        """The last token of each of ``slots`` was guessed: it is computed already."""
        self.num_computed[slots] += 1

    def end(self, slot: int) -> None:
        """The sequence has all tokens that it may ever have: whatever work it is given means nothing."""
        self._most_tokens[slot] = 0

    def news(self, slots: NDArray[np.int64], num_known: NDArray[np.int64]) -> NDArray[np.int64]:
        """What a step has made of ``slots`` that had ``num_known`` tokens before.

        Shapes:
            slots, num_known: [num_seqs]
            result: [num_seqs, NEWS_WIDTH], tokens known and computed, tokens there may ever be, and the new ones
        """
        counts = np.stack((self.num_tokens, self.num_computed, self._most_tokens), axis=1)[slots]
        assert (self.num_tokens[slots] - num_known <= _MOST_NEW).all(), "more tokens than a step can add"
        return np.concatenate((counts, self._from(slots, num_known, _MOST_NEW)), axis=1)

    def take_over(self, slots: NDArray[np.int64], news: NDArray[np.int64]) -> None:
        """Become what another table has ``news`` of, for ``slots`` that both knew alike."""
        known, computed, most = news[:, :3].T
        for row, (slot, start) in enumerate(
            zip(slots.tolist(), self.num_tokens[slots].tolist(), strict=True)
        ):
            self.token_ids[slot, start : known[row]] = news[row, 3 : 3 + known[row] - start]
        self.num_tokens[slots], self.num_computed[slots], self._most_tokens[slots] = known, computed, most
        self._has_sampled[slots] = True

    def write_behind(self, slots: NDArray[np.int64], token_ids: NDArray[np.int32]) -> None:
        """Write what ``behind`` returns, [num_slots, count]; what would lie past the end is dropped."""
        room = self.token_ids.shape[1] - self.num_tokens[slots]
        for slot, start, count, row in zip(
            slots.tolist(), self.num_tokens[slots].tolist(), room.tolist(), token_ids, strict=True
        ):
            self.token_ids[slot, start : start + len(row)] = row[:count]
