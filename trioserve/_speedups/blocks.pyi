"""The KV blocks of one replica: who holds them, which to give out next, and what the full ones contain."""

from array import array
from collections.abc import Sequence
from typing import Self, final

def siphash_128(data: bytes, *, key: bytes) -> bytes:
    """Hash ``data`` with the function that the prefix map uses; for tests.

    Args:
        key: 16 bytes.
    Returns:
        16 bytes; on a little-endian machine those of the reference implementation.
    Source:
        SipHash-2-4 with 128-bit output, https://github.com/veorq/SipHash.
    """

@final
class BlockPool:
    """Hands out block ids ``0 .. num_blocks - 1``, and again those that hold a prefix already computed.

    A full block is found by a keyed hash of its tokens, of all tokens before them and of a salt: 128 bits of
    SipHash-2-4, so two prefixes are taken for one with a chance of 2**-128 a pair, and nobody without the key can
    look for such a pair. Every method is O(blocks it touches), whatever the size of the pool, except where it says
    otherwise. Memory: 32 bytes a block and 16 to 32 for the map, as much for each block of the host.

    Behind it there may be blocks of host memory, which are told of by what they are to be copied from and to. What a
    cached block holds is copied to the host when the block is taken, under the same hash, and moves back into a block
    that was taken for it; the host keeps its copy, so that it need not be copied again. The copies of a plan are made
    before its work, those to the host first.

    Not thread-safe.
    """

    def __new__(
        cls, num_blocks: int, block_size: int, *, key: bytes, num_host_blocks: int = 0, max_moves: int = 0
    ) -> Self:
        """Make a pool with every block free and nothing cached.

        Args:
            num_blocks: Blocks, 1 to 2**28.
            block_size: Tokens a block holds, 1 to 65,536.
            key: 16 random bytes, drawn anew by each process.
            num_host_blocks: Blocks of host memory, 0 to 2**28.
            max_moves: Blocks that a plan copies to the host at most, 0 to 2**28; what it has no room for is forgotten.
        Raises:
            ValueError: An argument is outside its range; the message names the value (of the key, its length).
            MemoryError: There is no memory for that many blocks.
        """

    @property
    def num_blocks(self) -> int:
        """Blocks in the pool."""

    @property
    def block_size(self) -> int:
        """Tokens a block holds."""

    @property
    def num_free(self) -> int:
        """Blocks that nobody refers to, cached or not: as many as ``take`` can give."""

    @property
    def num_cached(self) -> int:
        """Entries of the prefix map, of referenced blocks too."""

    @property
    def num_host_blocks(self) -> int:
        """Blocks of host memory."""

    @property
    def num_host_cached(self) -> int:
        """Those of them that hold something."""

    def match_host(
        self, token_ids: array[int], matched: Sequence[int], max_tokens: int, salt: bytes
    ) -> list[int]:
        """Find the longest prefix whose blocks the host holds, behind one that is in the pool.

        Args:
            token_ids, max_tokens, salt: As given to ``match``.
            matched: What ``match`` returned, still referenced.
        Returns:
            The host's blocks that hold the tokens behind those of ``matched``. They keep what they hold until
            ``take_moves``.
        Raises:
            ValueError: As of ``match``, or the last block of ``matched`` is free or has no hash.
        """

    def move_in(self, host_ids: Sequence[int], block_ids: Sequence[int]) -> None:
        """Let the plan that is being made copy what the host's blocks hold to as many blocks of the pool.

        The blocks hold it from then on: they may be registered.

        Args:
            host_ids: What ``match_host`` returned since the last ``take_moves``, or a part of it.
            block_ids: Blocks that were taken, each for one move since then.
        Raises:
            ValueError: A block is free or out of range, a host block holds nothing or was not matched, or they are not
                as many; the pool is unchanged.
        """

    def take_moves(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Say what to copy before anything else of the plan that was made, and begin the next one.

        Where less than a quarter of the blocks is bare or was copied, more of those that will be taken next are copied.

        Returns:
            (block, host block) of all copies to the host, at most ``max_moves``, each host block named once; and of all
            copies to blocks, which come after them.
        """

    def take(self, count: int) -> list[int]:
        """Take ``count`` blocks, or none of them.

        Blocks without a prefix entry go first, then cached ones, whose entries are forgotten; in both groups the
        one that was released longest ago goes first.

        Returns:
            ``count`` block ids, each with one reference.
        Raises:
            NoFreeBlocks: Fewer than ``count`` are free; the pool is unchanged.
            ValueError: ``count`` is below 0.
        """

    def release(self, block_ids: Sequence[int]) -> None:
        """Give back one reference to each block of the list.

        The blocks are released from the last to the first, so that the end of a prefix is evicted before its start.

        Raises:
            ValueError: An id is out of range, or named more often than it is referenced; the pool is unchanged.
            TypeError: An id is not an int; the pool is unchanged.
        """

    def match(self, token_ids: array[int], max_tokens: int, salt: bytes) -> list[int]:
        """Take a reference to each block of the longest cached prefix.

        Args:
            token_ids: The sequence from its first token on, ``array('i')``.
            max_tokens: The prefix may be this long; more than ``len(token_ids)`` means all of them.
            salt: Only blocks registered with the same salt match.
        Returns:
            The blocks that hold tokens ``0 .. len(result) * block_size - 1``; ``release`` gives them back.
        Raises:
            ValueError: ``token_ids`` is not an array of C ints, or ``max_tokens`` is below 0.
        """

    def register(
        self, token_ids: array[int], block_table: Sequence[int], first: int, last: int, salt: bytes
    ) -> None:
        """Enter the full and computed blocks ``first .. last - 1`` of a sequence in the prefix map.

        Where another block is already known for the same prefix, it stays the one that ``match`` finds; registering
        a block again changes nothing. Blocks that follow one from before ``reset_prefix_cache`` are left out.

        Args:
            token_ids: The sequence from its first token on, ``array('i')``, at least ``last * block_size`` long.
            block_table: The sequence's blocks in order; those registered are referenced.
            first, last: Indices into ``block_table``; block ``first - 1`` has been registered or matched.
            salt: As given to ``match``.
        Raises:
            ValueError: Block ``first - 1`` has no hash, a block is free, out of range or registered with other
                tokens, or the table or the tokens are too short. Blocks before the one named may be registered.
        """

    def reset_prefix_cache(self) -> int:
        """Forget every entry, those of the host's blocks too; references stay. O(num_blocks).

        What is referenced now was computed before the reset, so it never enters the map again, and neither do blocks
        computed after it in the same sequences.

        Returns:
            The number of entries of the pool forgotten.
        """

    def ref_count(self, block_id: int) -> int:
        """Count the references to a block; 0 means that it may be evicted.

        Raises:
            ValueError: ``block_id`` is out of range.
        """

    def check_integrity(self) -> None:
        """Compare everything that is written down twice. O(num_blocks), for tests and debugging.

        Raises:
            AssertionError: Something does not fit; the message says what.
        """
