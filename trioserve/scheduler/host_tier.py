"""Prefixes that a GPU's KV cache had no room for any more and that lie in host memory: when they come back."""

from typing import Final

from trioserve._speedups.blocks import BlockPool
from trioserve.core.sequence import Sequence

MAX_MOVED_BYTES: Final = 128 << 20
"""That a step with decodes copies each way at most: 5 ms at 25 GB/s, which PCIe 4 gives, half of that on PCIe 5."""

Moves = tuple[list[tuple[int, int]], list[tuple[int, int]]]


def max_moved_blocks(bytes_per_block: int) -> int:
    """Blocks that a step with other work may copy each way."""
    return max(1, MAX_MOVED_BYTES // max(1, bytes_per_block))


class HostTier:
    """What the scheduler does with the host's blocks of its pool; nothing where there are none."""

    def __init__(self, pool: BlockPool, max_moves: int) -> None:
        """``max_moves``: blocks that a plan in which something else is computed moves in at most, at least 1."""
        self._pool = pool
        self._max_moves = max_moves
        self._num_inward = 0
        """Blocks that the plan that is being made moves in."""
        self.num_swapped_in = self.num_swapped_out = 0
        """Blocks, since the start."""

    def find(self, seq: Sequence, found: list[int]) -> list[int]:
        """The host's blocks that hold what follows the prefix in ``found``; they keep it until the moves are taken."""
        if not self._pool.num_host_blocks:
            return []
        return self._pool.match_host(seq.token_ids, found, len(seq.token_ids) - 1, seq.cache_salt)

    def room(self, *, is_alone: bool) -> int:
        """Blocks that the plan may still move in; as many as it likes where nothing else is computed in it."""
        return self._pool.num_blocks if is_alone else self._max_moves - self._num_inward

    def move_in(self, seq: Sequence, block_table: list[int], first: int, hosted: list[int]) -> None:
        """Let the plan copy ``hosted`` to the blocks of the table from ``first`` on, which were just taken, and enter
        them in the prefix map."""
        last = first + len(hosted)
        self._pool.move_in(hosted, block_table[first:last])
        self._pool.register(seq.token_ids, block_table, first, last, seq.cache_salt)
        self._num_inward += len(hosted)

    def bring_nearer(self, seq: Sequence, found: list[int], hosted: list[int]) -> None:
        """Let the plan copy ``hosted`` to the pool, where ``seq`` will find them when its turn comes."""
        block_table = found + self._pool.take(len(hosted))
        self.move_in(seq, block_table, len(found), hosted)
        self._pool.release(block_table)

    def take_moves(self) -> Moves:
        """The copies of the plan that was made."""
        outward, inward = self._pool.take_moves()
        self.num_swapped_out += len(outward)
        self.num_swapped_in += len(inward)
        self._num_inward = 0
        return outward, inward
