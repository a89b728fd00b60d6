"""The block pool with blocks of host memory behind it: whatever moves, a block holds what it is found by."""

from array import array
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trioserve._speedups.blocks import BlockPool

KEY = bytes(range(16))
BLOCK_SIZE = 2


def tokens(values: list[int]) -> "array[int]":
    return array("i", values)


@dataclass
class Plan:
    """What happens between two moves: first sequences end, then others begin, as in the scheduler."""

    num_ended: int
    prompts: list[list[int]]
    is_reset: bool
    """Whether everything cached is forgotten in between."""


@dataclass
class Tiers:
    """A pool, and what its blocks and the host's hold: the tokens of a prefix."""

    pool: BlockPool
    held: dict[int, tuple[int, ...]] = field(default_factory=dict)
    at_host: dict[int, tuple[int, ...]] = field(default_factory=dict)
    running: list[tuple[list[int], list[int]]] = field(default_factory=list)
    """Tokens and block table of each sequence."""
    num_found_at_host: int = 0

    def carry_out(self, plan: Plan) -> None:
        for _ in range(min(plan.num_ended, len(self.running))):
            self.pool.release(self.running.pop(0)[1])
        if plan.is_reset:
            self.pool.reset_prefix_cache()
            assert self.pool.num_host_cached == 0
        computed: dict[int, tuple[int, ...]] = {}
        for prompt in plan.prompts:
            computed |= self._begin(prompt)
        self.pool.check_integrity()
        outward, inward = self.pool.take_moves()
        self._copy(outward, inward)
        self.held |= computed
        for prompt, block_table in self.running:
            for i in range(len(prompt) // BLOCK_SIZE):
                assert self.held[block_table[i]] == tuple(prompt[: (i + 1) * BLOCK_SIZE])
        self.pool.check_integrity()

    def _begin(self, prompt: list[int]) -> dict[int, tuple[int, ...]]:
        """Start a sequence if there is room; returns what its blocks hold once they are computed."""
        ids, pool = tokens(prompt), self.pool
        found = pool.match(ids, len(ids) - 1, b"")
        hosted = pool.match_host(ids, found, len(ids) - 1, b"")
        num_missing = -(-len(ids) // BLOCK_SIZE) - len(found)
        if num_missing > pool.num_free:
            pool.release(found)
            return {}
        taken = pool.take(num_missing)
        pool.move_in(hosted, taken[: len(hosted)])
        self.num_found_at_host += len(hosted)
        block_table = found + taken
        pool.register(ids, block_table, len(found), len(ids) // BLOCK_SIZE, b"")
        self.running.append((prompt, block_table))
        return {
            block_table[i]: tuple(prompt[: (i + 1) * BLOCK_SIZE])
            for i in range(len(found) + len(hosted), len(ids) // BLOCK_SIZE)
        }

    def _copy(self, outward: list[tuple[int, int]], inward: list[tuple[int, int]]) -> None:
        assert len({host_id for _, host_id in outward}) == len(outward)
        assert len({block_id for block_id, _ in inward}) == len(inward)
        self.at_host |= {host_id: self.held[block_id] for block_id, host_id in outward}
        self.held |= {block_id: self.at_host[host_id] for block_id, host_id in inward}


@settings(deadline=None, max_examples=300)
@given(
    num_blocks=st.integers(4, 24),
    num_host_blocks=st.integers(1, 40),
    max_moves=st.sampled_from([0, 1, 3, 100]),
    plans=st.lists(
        st.builds(
            Plan,
            num_ended=st.integers(0, 3),
            prompts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=14), max_size=3),
            is_reset=st.sampled_from([False] * 15 + [True]),
        ),
        min_size=1,
        max_size=40,
    ),
)
def test_a_block_that_is_found_holds_its_content_in_both_tiers(
    num_blocks: int, num_host_blocks: int, max_moves: int, plans: list[Plan]
) -> None:
    pool = BlockPool(num_blocks, BLOCK_SIZE, key=KEY, num_host_blocks=num_host_blocks, max_moves=max_moves)
    tiers = Tiers(pool)
    for plan in plans:
        tiers.carry_out(plan)
    tiers.carry_out(Plan(len(tiers.running), [], is_reset=True))
    assert (pool.num_free, pool.num_cached, pool.num_host_cached) == (num_blocks, 0, 0)
    assert sorted(pool.take(num_blocks)) == list(range(num_blocks))


def full_pool(num_blocks: int = 3, num_host_blocks: int = 8, max_moves: int = 8) -> BlockPool:
    """A pool whose blocks all hold a prefix of 0, 1, 2, ... and are free."""
    pool = BlockPool(num_blocks, BLOCK_SIZE, key=KEY, num_host_blocks=num_host_blocks, max_moves=max_moves)
    table = pool.take(num_blocks)
    pool.register(tokens(list(range(num_blocks * BLOCK_SIZE))), table, 0, num_blocks, b"")
    pool.release(table)
    pool.take_moves()
    return pool


def test_what_is_taken_moves_under_its_hash_and_its_salt() -> None:
    pool = full_pool()
    ids = tokens(list(range(6)))
    assert pool.match_host(ids, [], 6, b"") == []
    pool.take(3)
    hosted = pool.match_host(ids, [], 6, b"")
    assert len(hosted) == 3
    assert pool.match_host(ids, [], 5, b"") == hosted[:2]
    assert pool.match_host(ids, [], 6, b"other") == []
    assert pool.match_host(tokens([0, 1, 9, 9]), [], 4, b"") == hosted[:1]


def test_more_than_a_plan_may_copy_is_forgotten() -> None:
    pool = full_pool(max_moves=2)
    pool.take(3)
    assert len(pool.take_moves()[0]) == 2
    assert pool.num_host_cached == 2


def test_what_a_plan_copies_from_is_not_written_over_by_it() -> None:
    pool = full_pool(num_blocks=2, num_host_blocks=2)
    ids = tokens([0, 1, 2, 3])
    table = pool.take(2)
    pool.take_moves()
    hosted = pool.match_host(ids, [], 4, b"")
    assert len(hosted) == 2
    pool.register(tokens([7, 7, 7, 7]), table, 0, 2, b"")
    pool.release(table)
    pool.move_in(hosted, pool.take(2))
    outward, inward = pool.take_moves()
    assert outward == []  # there is no host block that the plan does not need
    assert [host_id for _, host_id in inward] == hosted


def test_moves_that_cannot_be_are_refused() -> None:
    pool = full_pool()
    ids = tokens(list(range(6)))
    table = pool.take(3)
    pool.take_moves()
    with pytest.raises(ValueError, match="host block 7 holds nothing"):
        pool.move_in([7], table[:1])
    with pytest.raises(ValueError, match="host block 8 holds nothing"):
        pool.move_in([8], table[:1])
    with pytest.raises(ValueError, match=r"host block \d was not matched since the last moves"):
        pool.move_in([0], table[:1])
    hosted = pool.match_host(ids, [], 6, b"")
    with pytest.raises(ValueError, match="is shorter than argument 1"):
        pool.move_in(hosted, table[:2])
    pool.release(table[2:])
    with pytest.raises(ValueError, match=f"block {table[2]} is free"):
        pool.move_in(hosted, table)
    assert pool.take_moves() == ([], [])


@pytest.mark.parametrize("value", [-1, 2**28 + 1])
def test_sizes_out_of_range_are_named(value: int) -> None:
    with pytest.raises(ValueError, match=f"num_host_blocks is {value}"):
        BlockPool(1, 1, key=KEY, num_host_blocks=value)
    with pytest.raises(ValueError, match=f"max_moves is {value}"):
        BlockPool(1, 1, key=KEY, max_moves=value)


def test_without_host_blocks_there_is_nothing_to_find_and_nothing_moves() -> None:
    pool = full_pool(num_host_blocks=0)
    pool.take(3)
    assert pool.match_host(tokens(list(range(6))), [], 6, b"") == []
    assert pool.take_moves() == ([], [])
