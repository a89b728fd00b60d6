"""What the block pool costs, against the same pool in pure Python, and how it grows with the number of blocks.

    python benchmarks/blocks.py [--rounds 101] [--json FILE]

Both pools do the same work in turn, and are checked to give the same blocks. The Python pool is what one would write
without a compiler: a deque of bare blocks, an OrderedDict as the LRU list, a dict from keyed BLAKE2b hashes.
"""

import argparse
import json
import platform
import random
import statistics
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final, TypeVar

from rich.console import Console
from rich.table import Table

from trioserve._speedups.blocks import BlockPool
from trioserve.errors import NoFreeBlocks

T = TypeVar("T")

BLOCK_SIZE: Final = 16
SIZES: Final = (1_024, 4_096, 32_768)
BATCH: Final = 256
"""Blocks that a measurement handles: those of a prompt of 4,096 tokens."""
TARGETS_NS: Final = {
    "take": "100",
    "take, evicting": "100",
    "release": "100",
    "release, cached": "100",
    "match": "195",
}


class PythonPool:
    """A BlockPool in Python; releases what is referenced only, and checks nothing."""

    def __init__(self, num_blocks: int, block_size: int, *, key: bytes) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._key = key
        self._refs = [0] * num_blocks
        self._bare = deque(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._prefixes: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._bare) + len(self._cached)

    def take(self, count: int) -> list[int]:
        if count > self.num_free:
            raise NoFreeBlocks(count)
        refs, bare = self._refs, self._bare
        taken = []
        for _ in range(count):
            block_id = bare.popleft() if bare else self._evict()
            refs[block_id] = 1
            taken.append(block_id)
        return taken

    def release(self, block_ids: Sequence[int]) -> None:
        refs = self._refs
        for block_id in reversed(block_ids):
            refs[block_id] -= 1
            if refs[block_id]:
                continue
            hash_ = self._hashes[block_id]
            if hash_ is not None and self._prefixes.get(hash_) == block_id:
                self._cached[block_id] = None
            else:
                self._hashes[block_id] = None
                self._bare.append(block_id)

    def match(self, token_ids: "array[int]", max_tokens: int, salt: bytes) -> list[int]:
        matched = []
        hash_ = self._hash(b"", salt)
        for i in range(min(max_tokens, len(token_ids)) // self.block_size):
            hash_ = self._hash(hash_, self._block(token_ids, i))
            block_id = self._prefixes.get(hash_)
            if block_id is None:
                break
            matched.append(block_id)
        for block_id in matched:
            if not self._refs[block_id]:
                del self._cached[block_id]
            self._refs[block_id] += 1
        return matched

    def register(
        self, token_ids: "array[int]", block_table: Sequence[int], first: int, last: int, salt: bytes
    ) -> None:
        parent = self._hashes[block_table[first - 1]] if first else self._hash(b"", salt)
        if parent is None:
            raise ValueError(first)
        for i in range(first, last):
            parent = self._hash(parent, self._block(token_ids, i))
            self._hashes[block_table[i]] = parent
            self._prefixes.setdefault(parent, block_table[i])

    def _evict(self) -> int:
        block_id, _ = self._cached.popitem(last=False)
        hash_ = self._hashes[block_id]
        if hash_ is not None:
            del self._prefixes[hash_]
            self._hashes[block_id] = None
        return block_id

    def _hash(self, parent: bytes, data: bytes) -> bytes:
        return blake2b(parent + data, digest_size=16, key=self._key).digest()

    def _block(self, token_ids: "array[int]", i: int) -> bytes:
        return token_ids[i * self.block_size : (i + 1) * self.block_size].tobytes()


Pool = BlockPool | PythonPool


# ---- what is measured ------------------------------------------------------------------------------------------------


def prompt(rng: random.Random) -> "array[int]":
    return array("i", rng.randbytes(BATCH * BLOCK_SIZE * 4))


def run_prompt(pool: Pool, token_ids: "array[int]") -> None:
    """Leave a prompt in the pool as a finished sequence does."""
    table = pool.take(BATCH)
    pool.register(token_ids, table, 0, BATCH, b"")
    pool.release(table)


def full_pool(make: type[BlockPool] | type[PythonPool], num_blocks: int) -> Pool:
    """A pool in which every block is cached, so that each one taken evicts another."""
    pool = make(num_blocks, BLOCK_SIZE, key=bytes(16))
    rng = random.Random(1)
    for _ in range(num_blocks // BATCH):
        run_prompt(pool, prompt(rng))
    return pool


class Stopwatch:
    """Collects the seconds of named pieces of work, and what they returned."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - start
        return result


def measure(pool: Pool, token_ids: "array[int]") -> tuple[dict[str, float], list[int]]:
    """Do everything once; return the seconds of each operation and all block ids that came back."""
    timed = Stopwatch()
    table = timed("take, evicting", lambda: pool.take(BATCH))
    timed("register", lambda: pool.register(token_ids, table, 0, BATCH, b""))
    timed("release, cached", lambda: pool.release(table))
    matched = timed("match", lambda: pool.match(token_ids, len(token_ids), b""))
    pool.release(matched)
    bare = pool.take(BATCH)
    timed("release", lambda: pool.release(bare))
    fresh = timed("take", lambda: pool.take(BATCH))
    pool.release(fresh)
    singles = timed("take, one a call", lambda: [pool.take(1) for _ in range(BATCH)])
    timed("release, one a call", lambda: [pool.release(single) for single in singles])
    run_prompt(pool, token_ids[::-1])
    return timed.seconds, [*table, *matched, *bare, *fresh, *(block_id for (block_id,) in singles)]


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Nanoseconds a block."""
    return {name: statistics.median(each[name] for each in rounds) / BATCH * 1e9 for name in rounds[0]}


def compare(num_blocks: int, rounds: int) -> dict[str, dict[str, float]]:
    """Run both pools in turn; the medians of each, in nanoseconds a block."""
    pools = {"python": full_pool(PythonPool, num_blocks), "cython": full_pool(BlockPool, num_blocks)}
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in pools}
    rng = random.Random(2)
    for _ in range(rounds):
        token_ids = prompt(rng)
        returned = []
        for name, pool in pools.items():
            spent, block_ids = measure(pool, token_ids)
            seconds[name].append(spent)
            returned.append(block_ids)
        if returned[0] != returned[1]:
            raise SystemExit(f"the pools of {num_blocks} blocks disagree")
    return {name: medians(each) for name, each in seconds.items()}


# ---- the report ------------------------------------------------------------------------------------------------------


def show(results: dict[int, dict[str, dict[str, float]]], console: Console) -> None:
    largest = max(results)
    table = Table(title=f"one block, in a full pool of {largest:,}")
    for heading in ("operation", "Python, ns", "BlockPool, ns", "ratio", "at most, ns"):
        table.add_column(heading, justify="left" if heading == "operation" else "right")
    for name, python in results[largest]["python"].items():
        cython = results[largest]["cython"][name]
        table.add_row(
            name, f"{python:,.0f}", f"{cython:,.0f}", f"{python / cython:.1f}x", TARGETS_NS.get(name, "")
        )
    console.print(table)

    growth = Table(title="BlockPool as it grows, ns a block")
    growth.add_column("operation")
    for num_blocks in results:
        growth.add_column(f"{num_blocks:,}", justify="right")
    growth.add_column("last / first", justify="right")
    for name in results[largest]["cython"]:
        row = [each["cython"][name] for each in results.values()]
        growth.add_row(name, *(f"{ns:,.0f}" for ns in row), f"{row[-1] / row[0]:.2f}x")
    console.print(growth)

    us = results[largest]["cython"]["match"] * BATCH / 1e3
    console.print(f"match of a prompt of {BATCH * BLOCK_SIZE:,} tokens: {us:.1f} us (at most 50)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=101, help="alternating runs of which the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    arguments = parser.parse_args()
    results = {num_blocks: compare(num_blocks, arguments.rounds) for num_blocks in SIZES}
    show(results, Console())
    if arguments.json:
        machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        arguments.json.write_text(json.dumps(machine | {"ns_a_block": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
