"""The block pool against a slow, obvious model of it."""

import copy
import random
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trioserve._speedups.blocks import BlockPool, siphash_128
from trioserve.errors import NoFreeBlocks

T = TypeVar("T")

KEY = bytes(range(16))
SALTS = (b"", b"a", b"tenant-2")


def tokens(values: Sequence[int]) -> "array[int]":
    return array("i", values)


# ---- the model -------------------------------------------------------------------------------------------------------


class SlowPool:
    """What a BlockPool does, with lists that are searched and prefixes that are compared token by token."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.refs = [0] * num_blocks
        self.bare = list(range(num_blocks))
        self.cached: list[int] = []
        self.prefixes: dict[tuple[bytes, tuple[int, ...]], int] = {}
        self.registered: set[int] = set()
        self.stale: set[int] = set()

    def take(self, count: int) -> list[int]:
        if count > len(self.bare) + len(self.cached):
            raise NoFreeBlocks
        taken = (self.bare + self.cached)[:count]
        for block_id in taken:
            self.prefixes = {prefix: found for prefix, found in self.prefixes.items() if found != block_id}
            self.registered.discard(block_id)
            self._hold(block_id)
        return taken

    def release(self, block_ids: Sequence[int]) -> None:
        for block_id in block_ids:
            if not 0 <= block_id < len(self.refs) or self.refs[block_id] < list(block_ids).count(block_id):
                raise ValueError(block_id)
        for block_id in reversed(block_ids):
            self.refs[block_id] -= 1
            if self.refs[block_id] == 0 and block_id in self.prefixes.values():
                self.cached.append(block_id)
            elif self.refs[block_id] == 0:
                self.registered.discard(block_id)
                self.stale.discard(block_id)
                self.bare.append(block_id)

    def match(self, token_ids: Sequence[int], max_tokens: int, salt: bytes) -> list[int]:
        matched = []
        for end in range(self.block_size, min(max_tokens, len(token_ids)) + 1, self.block_size):
            block_id = self.prefixes.get((salt, tuple(token_ids[:end])))
            if block_id is None:
                break
            matched.append(block_id)
        for block_id in matched:
            self._hold(block_id)
        return matched

    def register(
        self, token_ids: Sequence[int], block_table: Sequence[int], first: int, last: int, salt: bytes
    ) -> None:
        for i in range(first, last):
            block_id = block_table[i]
            if block_id in self.stale or (i > 0 and block_table[i - 1] in self.stale):
                self.stale.add(block_id)
            elif block_id not in self.registered:
                self.registered.add(block_id)
                self.prefixes.setdefault((salt, tuple(token_ids[: (i + 1) * self.block_size])), block_id)

    def reset_prefix_cache(self) -> int:
        forgotten = len(self.prefixes)
        self.stale |= {block_id for block_id in self.registered if self.refs[block_id]}
        self.registered.clear()
        self.prefixes.clear()
        self.bare += self.cached
        self.cached.clear()
        return forgotten

    def _hold(self, block_id: int) -> None:
        for line in (self.bare, self.cached):
            if block_id in line:
                line.remove(block_id)
        self.refs[block_id] += 1


# ---- both side by side -----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Stream:
    """A sequence as a scheduler keeps it."""

    token_ids: list[int]
    salt: bytes
    block_table: list[int] = field(default_factory=list)
    num_registered: int = 0


class Pair:
    """Does everything to a BlockPool and to the model, and compares what comes back and what can be seen."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.pool = BlockPool(num_blocks, block_size, key=KEY)
        self.slow = SlowPool(num_blocks, block_size)
        self.streams: list[Stream] = []
        self.num_operations = 0

    def both(self, call: Callable[[Any], T]) -> T | None:
        """Return what ``call`` returns for the pool and for the model, or None where it raises for both."""
        results: list[T | type[Exception]] = []
        for pool in (self.pool, self.slow):
            try:
                results.append(call(pool))
            except (ValueError, NoFreeBlocks) as exc:
                results.append(type(exc))
        assert results[0] == results[1]
        self.num_operations += 1
        return None if isinstance(results[0], type) else results[0]

    def compare(self) -> None:
        self.pool.check_integrity()
        assert self.pool.num_free == len(self.slow.bare) + len(self.slow.cached)
        assert self.pool.num_cached == len(self.slow.prefixes)
        assert [self.pool.ref_count(block_id) for block_id in range(self.pool.num_blocks)] == self.slow.refs

    def start(self, token_ids: list[int], max_tokens: int, salt: bytes) -> None:
        stream = Stream(token_ids, salt)
        matched = self.both(lambda pool: pool.match(tokens(token_ids), max_tokens, salt))
        assert matched is not None
        stream.block_table += matched
        stream.num_registered = len(matched)
        self.streams.append(stream)
        self.grow(stream, [])

    def grow(self, stream: Stream, more: list[int]) -> None:
        stream.token_ids += more
        lacking = -(-len(stream.token_ids) // self.pool.block_size) - len(stream.block_table)
        taken = self.both(lambda pool: pool.take(lacking))
        if taken is None:
            self.finish(stream)
        else:
            stream.block_table += taken

    def register(self, stream: Stream, last: int) -> None:
        last = min(last, len(stream.token_ids) // self.pool.block_size)
        first = min(stream.num_registered, last)
        ids, table = tokens(stream.token_ids), stream.block_table
        self.both(lambda pool: pool.register(ids, table, first, last, stream.salt))
        stream.num_registered = max(stream.num_registered, last)

    def finish(self, stream: Stream) -> None:
        self.streams.remove(stream)
        self.both(lambda pool: pool.release(stream.block_table))

    def drain(self) -> None:
        """End everything; the order in which the blocks then come out is the order of eviction."""
        while self.streams:
            self.finish(self.streams[0])
        count = self.pool.num_blocks
        everything = self.both(lambda pool: pool.take(count))
        self.compare()
        assert sorted(everything or []) == list(range(count))


def random_operation(pair: Pair, rng: random.Random) -> None:
    choice = rng.random()
    if choice < 0.3 or not pair.streams:
        length = rng.randint(1, 12 * pair.pool.block_size)
        ids = [0] * length if rng.random() < 0.5 else [rng.randint(0, 1) for _ in range(length)]
        pair.start(ids, rng.choice([length - 1, length, 2 * length]), rng.choice(SALTS))
    elif choice < 0.5:
        pair.grow(rng.choice(pair.streams), [rng.randint(0, 1) for _ in range(rng.randint(0, 9))])
    elif choice < 0.75:
        pair.register(rng.choice(pair.streams), rng.randint(0, 12))
    elif choice < 0.95:
        pair.finish(rng.choice(pair.streams))
    elif choice < 0.99:
        ids = [rng.randrange(-1, pair.pool.num_blocks + 1) for _ in range(rng.randint(1, 3))]
        if any(
            block_id not in range(pair.pool.num_blocks) or not pair.pool.ref_count(block_id)
            for block_id in ids
        ):
            pair.both(lambda pool: pool.release(ids))
    else:
        pair.both(lambda pool: pool.reset_prefix_cache())


@pytest.mark.parametrize(("num_blocks", "block_size"), [(1, 1), (5, 3), (16, 2), (40, 4), (97, 1)])
def test_random_schedules_agree_with_the_model(num_blocks: int, block_size: int) -> None:
    pair = Pair(num_blocks, block_size)
    rng = random.Random(num_blocks)
    while pair.num_operations < 4_000:
        random_operation(pair, rng)
        pair.compare()
    pair.drain()


class Schedules(RuleBasedStateMachine):
    """The same comparison with steps that hypothesis chooses, and shortens when they fail."""

    @initialize(num_blocks=st.integers(1, 24), block_size=st.integers(1, 4))
    def make(self, num_blocks: int, block_size: int) -> None:
        self.pair = Pair(num_blocks, block_size)

    def one(self, index: int) -> Stream:
        return self.pair.streams[index % len(self.pair.streams)]

    @rule(
        ids=st.lists(st.integers(0, 1), min_size=1, max_size=40),
        max_tokens=st.integers(0, 40),
        salt=st.sampled_from(SALTS),
    )
    def start(self, ids: list[int], max_tokens: int, salt: bytes) -> None:
        self.pair.start(ids, max_tokens, salt)

    @precondition(lambda self: self.pair.streams)
    @rule(index=st.integers(0, 9), more=st.lists(st.integers(0, 1), max_size=9))
    def grow(self, index: int, more: list[int]) -> None:
        self.pair.grow(self.one(index), more)

    @precondition(lambda self: self.pair.streams)
    @rule(index=st.integers(0, 9), last=st.integers(0, 40))
    def register(self, index: int, last: int) -> None:
        self.pair.register(self.one(index), last)

    @precondition(lambda self: self.pair.streams)
    @rule(index=st.integers(0, 9))
    def finish(self, index: int) -> None:
        self.pair.finish(self.one(index))

    @rule()
    def reset(self) -> None:
        self.pair.both(lambda pool: pool.reset_prefix_cache())

    @invariant()
    def agree(self) -> None:
        self.pair.compare()

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.pair.drain()


Schedules.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSchedules = Schedules.TestCase


# ---- taking and releasing --------------------------------------------------------------------------------------------


def test_take_gives_all_or_none() -> None:
    pool = BlockPool(4, 16, key=KEY)
    held = pool.take(3)
    with pytest.raises(NoFreeBlocks, match="2 blocks asked for, 1 of 4 are free"):
        pool.take(2)
    assert pool.num_free == 1
    pool.release(held)
    assert sorted(pool.take(4)) == [0, 1, 2, 3]
    assert pool.take(0) == []


def test_the_end_of_a_list_is_evicted_before_its_start() -> None:
    pool = BlockPool(3, 1, key=KEY)
    pool.release(pool.take(3))
    assert pool.take(3) == [2, 1, 0]


def test_blocks_without_an_entry_go_before_cached_ones() -> None:
    pool = BlockPool(3, 1, key=KEY)
    cached = pool.take(1)
    pool.register(tokens([7]), cached, 0, 1, b"")
    pool.release(cached)
    assert pool.take(2) == [1, 2]
    assert pool.num_cached == 1
    assert pool.take(1) == cached
    assert pool.num_cached == 0


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([0, 9], ValueError, r"block id 9 is not in 0 \.\. 3"),
        ([0, -1], ValueError, r"block id -1 is not in 0 \.\. 3"),
        ([0, 2**80], ValueError, "is not in 0"),
        ([0, 3], ValueError, "block 3 is free"),
        ([1, 0, 1], ValueError, "block 1 is free"),
        ([0, 1.0], TypeError, "1.0 is not an int"),
        ([0, None], TypeError, "None is not an int"),
        (5, TypeError, "not a sequence of block ids"),
    ],
)
def test_a_wrong_release_changes_nothing(ids: Any, error: type[Exception], message: str) -> None:
    pool = BlockPool(4, 16, key=KEY)
    pool.take(3)
    with pytest.raises(error, match=message):
        pool.release(ids)
    assert [pool.ref_count(block_id) for block_id in range(4)] == [1, 1, 1, 0]
    assert pool.num_free == 1
    pool.check_integrity()


def test_release_takes_any_sequence() -> None:
    pool = BlockPool(4, 16, key=KEY)
    pool.release(tuple(pool.take(2)))
    pool.release(array("i", pool.take(2)))
    assert pool.num_free == 4


# ---- the prefix map --------------------------------------------------------------------------------------------------


def cached_pool(num_blocks: int = 8, block_size: int = 2) -> tuple[BlockPool, list[int]]:
    """A pool in which the prefix 0 1 2 3 4 5 is registered by a sequence that still runs."""
    pool = BlockPool(num_blocks, block_size, key=KEY)
    table = pool.take(3)
    pool.register(tokens(range(6)), table, 0, 3, b"")
    return pool, table


def test_match_stays_within_max_tokens_and_full_blocks() -> None:
    pool, table = cached_pool()
    ids = tokens([0, 1, 2, 3, 4, 5, 6])
    assert [len(pool.match(ids, limit, b"")) for limit in range(9)] == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert pool.match(ids[:5], 7, b"") == table[:2]
    assert pool.match(tokens([]), 7, b"") == []


def test_match_needs_the_same_start_tokens_and_salt() -> None:
    pool, table = cached_pool()
    assert pool.match(tokens([2, 3, 4, 5]), 4, b"") == []
    assert pool.match(tokens([0, 1, 2, 9, 4, 5]), 6, b"") == table[:1]
    assert pool.match(tokens(range(6)), 6, b"other") == []


def test_match_adds_a_reference() -> None:
    pool, table = cached_pool()
    assert pool.match(tokens(range(6)), 6, b"") == table
    assert [pool.ref_count(block_id) for block_id in table] == [2, 2, 2]
    pool.release(table)
    pool.release(table)
    assert (pool.num_free, pool.num_cached) == (8, 3)
    assert pool.match(tokens(range(6)), 4, b"") == table[:2]
    assert pool.num_free == 6


def test_the_first_block_of_a_prefix_stays_mapped() -> None:
    pool, table = cached_pool()
    twins = pool.take(3)
    pool.register(tokens(range(6)), twins, 0, 2, b"")
    pool.register(tokens(range(6)), twins, 2, 3, b"")
    assert pool.num_cached == 3
    assert pool.match(tokens(range(6)), 6, b"") == table
    pool.release(twins)
    assert pool.take(pool.num_free)[-3:] == twins[::-1]


def test_registering_in_pieces_or_twice_is_registering_once() -> None:
    pool, table = cached_pool()
    pieces = BlockPool(8, 2, key=KEY)
    pieces.take(3)
    for i in range(3):
        pieces.register(tokens(range(6)), table, i, i + 1, b"")
        pieces.register(tokens(range(6)), table, 0, i + 1, b"")
    assert pieces.num_cached == pool.num_cached == 3
    assert pieces.match(tokens(range(6)), 6, b"") == table


def test_what_ran_before_a_reset_never_enters_the_map_again() -> None:
    pool, table = cached_pool()
    table += pool.take(1)
    assert pool.reset_prefix_cache() == 3
    pool.register(tokens(range(8)), table, 3, 4, b"")
    pool.register(tokens(range(8)), table, 0, 4, b"")
    assert pool.num_cached == 0
    fresh = pool.take(3)
    pool.register(tokens(range(6)), fresh, 0, 3, b"")
    assert pool.match(tokens(range(8)), 8, b"") == fresh
    pool.check_integrity()


@pytest.mark.parametrize(
    ("length", "table", "first", "last", "message"),
    [
        (8, [0, 1, 2, 3], 3, 4, "block 3 is free"),
        (8, [0, 1, 2, 8], 3, 4, "block id 8 is not in"),
        (5, [0, 1, 2], 2, 3, "5 tokens do not fill 3 blocks of 2"),
        (6, [0, 1], 0, 3, r"blocks 0 \.\. 3 are not within a table of 2"),
        (6, [0, 1], 2, 1, r"blocks 2 \.\. 1 are not within"),
        (6, [0, 1], -1, 1, r"blocks -1 \.\. 1 are not within"),
        (6, [0, 2, 1], 2, 3, "block 1 is registered with other tokens"),
    ],
)
def test_register_refuses_what_does_not_fit(
    length: int, table: list[int], first: int, last: int, message: str
) -> None:
    pool, _ = cached_pool()
    with pytest.raises(ValueError, match=message):
        pool.register(tokens(range(length)), table, first, last, b"")
    assert pool.num_cached == 3
    pool.check_integrity()


def test_register_needs_the_hash_of_the_block_before() -> None:
    pool = BlockPool(4, 2, key=KEY)
    with pytest.raises(ValueError, match="block 0 has no hash to continue from"):
        pool.register(tokens(range(4)), pool.take(2), 1, 2, b"")
    assert pool.num_cached == 0


@pytest.mark.parametrize(
    "token_ids", [array("q", [1, 2]), array("I", [1, 2]), b"12345678", memoryview(b"1234")]
)
def test_token_ids_must_be_c_ints(token_ids: Any) -> None:
    pool, table = cached_pool()
    with pytest.raises(ValueError, match=r"array\('i'\)"):
        pool.match(token_ids, 2, b"")
    with pytest.raises(ValueError, match=r"array\('i'\)"):
        pool.register(token_ids, table, 0, 1, b"")
    with pytest.raises(TypeError):
        pool.match([1, 2], 2, b"")  # type: ignore[arg-type]


def test_token_ids_may_grow_after_a_call() -> None:
    pool, table = cached_pool()
    ids = tokens(range(6))
    pool.register(ids, table, 0, 3, b"")
    pool.match(ids, 6, b"")
    ids.append(7)  # a buffer still held would raise BufferError
    assert len(ids) == 7


def test_prefixes_with_the_same_32_bits_of_hash_are_told_apart() -> None:
    root = siphash_128(b"", key=KEY)
    seen: dict[bytes, int] = {}
    for second in range(10**6):
        tag = siphash_128(root + second.to_bytes(4, sys.byteorder), key=KEY)[:4]
        if (first := seen.setdefault(tag, second)) != second:
            break
    pool = BlockPool(2, 1, key=KEY)
    pool.register(tokens([first]), [*pool.take(1)], 0, 1, b"")
    assert pool.match(tokens([second]), 1, b"") == []
    pool.register(tokens([second]), [*pool.take(1)], 0, 1, b"")
    assert pool.num_cached == 2
    assert [pool.match(tokens([token]), 1, b"") for token in (first, second)] == [[0], [1]]


# ---- making one, and its hash ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, -(2**63), 2**28 + 1, 2**31, 2**64, 2**100])
def test_sizes_out_of_range_are_named(value: int) -> None:
    with pytest.raises(ValueError, match=f"num_blocks is {value}"):
        BlockPool(value, 16, key=KEY)
    with pytest.raises(ValueError, match=f"block_size is {value}"):
        BlockPool(16, value, key=KEY)
    if value < 0:
        with pytest.raises(ValueError, match=f"count is {value}"):
            BlockPool(16, 16, key=KEY).take(value)


@settings(deadline=None)
@given(
    num_blocks=st.integers() | st.text() | st.floats(),
    block_size=st.integers() | st.none(),
    key=st.binary(max_size=20),
)
def test_a_constructor_succeeds_or_says_why(num_blocks: Any, block_size: Any, key: bytes) -> None:
    if isinstance(num_blocks, int) and num_blocks > 1000:
        num_blocks += 2**28
    try:
        pool = BlockPool(num_blocks, block_size, key=key)
    except (TypeError, ValueError):
        return
    assert (pool.num_blocks, pool.block_size, len(key)) == (num_blocks, block_size, 16)


def test_the_key_is_sixteen_bytes_and_stays_secret() -> None:
    with pytest.raises(ValueError, match="key has 6 bytes, not 16") as caught:
        BlockPool(1, 1, key=b"secret")
    assert "secret" not in str(caught.value)


def test_fields_are_read_only_and_pools_are_not_copied() -> None:
    pool = BlockPool(1, 1, key=KEY)
    for name in ("num_blocks", "block_size", "num_free", "num_cached"):
        with pytest.raises(AttributeError):
            setattr(pool, name, 7)
    with pytest.raises(TypeError):
        copy.copy(pool)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (0, "a3817f04ba25a8e66df67214c7550293"),
        (1, "da87c1d86b99af44347659119b22fc45"),
        (63, "5150d1772f50834a503e069a973fbd7c"),
    ],
)
def test_siphash_is_the_published_one(length: int, expected: str) -> None:
    assert siphash_128(bytes(range(length)), key=KEY).hex() == expected
