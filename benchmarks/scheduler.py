"""What the scheduler costs a step and a token, how that grows, and what a waiting request holds.

    python benchmarks/scheduler.py [--rounds 300] [--json FILE]

A plan and the booking of its result, with two steps in flight as in the engine; the rank is a few lines here that are
not timed. "encode" and "decode" are the frames on their way to the rank and back. Figures are medians, in brackets the
10th and the 90th percentile of the rounds.
"""

import argparse
import gc
import json
import platform
import random
import statistics
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import trio
import trio.testing
from rich.console import Console
from rich.table import Table

from trioserve._speedups.detokenizer import Vocabulary
from trioserve.core.frames import FrameReader, encode_frame
from trioserve.core.sampling import SamplingParams
from trioserve.core.sequence import FinishReason, Sequence
from trioserve.core.step import FromWorker, GrammarRequest, SampledToken, StepPlan, StepResult, WorkerReady
from trioserve.engine.checkpoint import open_model
from trioserve.engine.engine import Engine
from trioserve.engine.lifecycle import Lifecycle
from trioserve.scheduler.limits import SchedulerLimits
from trioserve.scheduler.scheduler import Scheduler
from trioserve.settings import Settings

T = TypeVar("T")
Costs = dict[str, list[float]]
"""Microseconds by what was done, one for each round."""

BLOCK_SIZE: Final = 16
RUNNING: Final = (1, 32, 256)
WAITING: Final = (1, 32, 1_024)
BLOCKS: Final = (1_024, 4_096, 32_768)
NUM_GROWN: Final = 32
"""Sequences that run while something else grows."""
NUM_HELD: Final = 10_000
"""Waiting requests whose memory is measured."""
PROMPT: Final = 128
"""Tokens of a prompt."""
ANSWER: Final = 16
"""Tokens of an answer, where sequences come and go."""
FOREVER: Final = 1 << 20
STEP_S: Final = 0.01
"""What the rank says that a step took."""


class House:
    """A scheduler with one slot for each sequence that runs, and a rank that answers every decode with the token 7."""

    def __init__(self, *, num_seqs: int, num_blocks: int) -> None:
        limits = SchedulerLimits(
            max_num_seqs=num_seqs,
            max_num_batched_tokens=8_192,
            max_model_len=FOREVER,
            max_num_queued_reqs=FOREVER,
            max_num_queued_tokens=1 << 40,
            target_step_s=None,
        )
        self.scheduler = Scheduler(limits, num_blocks=num_blocks, block_size=BLOCK_SIZE)
        self._num_seqs = num_seqs
        self._rng = random.Random(1)
        self._reader = FrameReader[FromWorker](FromWorker)
        self._in_flight: deque[StepPlan] = deque()
        self._slots: dict[int, tuple[int, int]] = {}
        """slot -> (seq_id, tokens of the prompt that are not computed)"""

    def add(self, count: int, *, max_tokens: int = FOREVER) -> None:
        """Let sequences wait, each with a prompt of its own."""
        self.line_up([self.sequence(max_tokens) for _ in range(count)])

    def line_up(self, sequences: list[Sequence]) -> None:
        """Let them wait."""
        for seq in sequences:
            self.scheduler.add(seq)

    def sequence(self, max_tokens: int) -> Sequence:
        """A sequence with a prompt that no other has."""
        prompt = [self._rng.randrange(100_000) for _ in range(PROMPT)]
        return Sequence(prompt, SamplingParams(max_tokens=max_tokens, stop_token_ids=(2,)))

    def step(self) -> tuple[dict[str, float], int, int]:
        """Plan a step and book the one before it; seconds by what was done, tokens booked, sequences that ended."""
        spent = {"plan": 0.0}
        while len(self._in_flight) < 2:
            seconds, plan = timed(self.scheduler.plan_step)
            spent["plan"] += seconds
            if plan is None:
                break
            self._in_flight.append(plan)
        plan = self._in_flight.popleft()
        spent["encode"], _ = timed(partial(encode_frame, plan))
        frame = encode_frame(self._carry_out(plan))
        spent["decode"], (result,) = timed(partial(self._reader.feed, frame))
        assert isinstance(result, StepResult)
        spent["commit"], rounds = timed(lambda: list(self.scheduler.commit(result)))
        booked = [seq for each in rounds for seq, _ in each]
        return spent, len(booked), sum(seq.finish_reason is not None for seq in booked)

    def settle(self) -> None:
        """Compute until every slot decodes."""
        while self.step()[1] < self._num_seqs:
            pass

    def _carry_out(self, plan: StepPlan) -> StepResult:
        for admission in plan.admitted:
            num_missing = admission.num_prompt_tokens - admission.num_computed_tokens
            self._slots[admission.slot] = admission.seq_id, num_missing
        sampled = []
        for work in plan.work:
            seq_id, num_missing = self._slots[work.slot]
            self._slots[work.slot] = seq_id, num_missing - work.num_tokens
            if num_missing <= work.num_tokens:
                sampled.append(SampledToken(work.slot, seq_id, 7))
        return StepResult(plan.step_id, sampled, STEP_S)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and what came of it."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


# ---- what is measured ------------------------------------------------------------------------------------------------


def decode(num_running: int, rounds: int, *, num_waiting: int = 0, num_blocks: int = 32_768) -> Costs:
    """Steps of ``num_running`` sequences that decode, one token each, while others wait."""
    house = House(num_seqs=num_running, num_blocks=num_blocks)
    house.add(num_running + num_waiting)
    house.settle()
    costs: Costs = {}
    for _ in range(rounds):
        spent, num_tokens, _ = house.step()
        assert num_tokens == num_running, f"{num_tokens} tokens of {num_running}"
        for name, seconds in spent.items():
            costs.setdefault(name, []).append(seconds * 1e6)
    costs["plan + commit"] = [sum(pair) for pair in zip(costs["plan"], costs["commit"], strict=True)]
    return costs


def turn_over(rounds: int, *, num_waiting: int, num_blocks: int = 32_768) -> list[float]:
    """Microseconds a token where sequences come and go: whoever ends makes room for the next in line, and another joins
    it. Everything the scheduler does for them is in it. The blocks are full of what is cached."""
    house = House(num_seqs=NUM_GROWN, num_blocks=num_blocks)
    house.add(NUM_GROWN + num_waiting, max_tokens=ANSWER)
    replaced = 0
    while replaced * (PROMPT + ANSWER) < 2 * num_blocks * BLOCK_SIZE:  # until blocks are evicted, and beyond
        _, _, num_ended = house.step()
        house.add(num_ended, max_tokens=ANSWER)
        replaced += num_ended
    costs = []
    for _ in range(rounds):
        num_tokens, spent_s = 0, 0.0
        for _ in range(ANSWER):
            spent, num_booked, num_ended = house.step()
            newcomers = [house.sequence(ANSWER) for _ in range(num_ended)]
            added_s, _ = timed(partial(house.line_up, newcomers))
            num_tokens += num_booked
            spent_s += spent["plan"] + spent["commit"] + added_s
        costs.append(spent_s / num_tokens * 1e6)
    return costs


def leave(rounds: int, *, num_waiting: int) -> list[float]:
    """Microseconds for one that joins the line and one that leaves it unserved, while ``num_waiting`` stand there."""
    house = House(num_seqs=NUM_GROWN, num_blocks=32_768)
    house.add(NUM_GROWN)
    house.settle()
    rng, waiting = random.Random(2), [house.sequence(ANSWER) for _ in range(num_waiting)]
    for seq in waiting:
        house.scheduler.add(seq)

    def pass_by(newcomer: Sequence, leaver: Sequence) -> None:
        house.scheduler.add(newcomer)
        house.scheduler.finish(leaver, FinishReason.ABORT)

    costs = []
    for _ in range(rounds):
        newcomer, at = house.sequence(ANSWER), rng.randrange(num_waiting)
        costs.append(timed(partial(pass_by, newcomer, waiting[at]))[0] * 1e6)
        waiting[at] = newcomer
    return costs


async def held_bytes() -> dict[str, float]:
    """Bytes that a waiting request holds, its tokens' aside: in the scheduler, and in the engine that it waits at."""
    params = [SamplingParams(max_tokens=100, stop_token_ids=(2,)) for _ in range(NUM_HELD)]
    scheduler = House(num_seqs=1, num_blocks=BLOCKS[0]).scheduler
    with traced() as held:
        sequences = [Sequence(range(PROMPT), each) for each in params]
        for seq in sequences:
            scheduler.add(seq)
    found = {"a sequence in the scheduler's line": held[0] / NUM_HELD - 4 * PROMPT}
    del sequences
    settings = Settings(max_num_seqs=1)
    vocabulary = Vocabulary([b"a"], [False], byte_tokens=None, strip_leading_space=False)
    engine = Engine(settings, open_model(settings), vocabulary, Lifecycle())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, Deaf())
        await trio.testing.wait_all_tasks_blocked()
        with ExitStack() as stack:
            with traced() as held:
                for each in params:
                    stack.enter_context(engine.stream([Sequence(range(PROMPT), each)]))
                    await trio.lowlevel.checkpoint()
            found["an open engine.stream"] = held[0] / NUM_HELD - 4 * PROMPT
        nursery.cancel_scope.cancel()
    return found


class Deaf:
    """Ranks that take plans and never answer, so that whoever comes waits."""

    ready = WorkerReady(
        tp_rank=0, num_blocks=BLOCKS[0], load_s=0.0, kv_cache_bytes=0, weights_bytes=0, dtype="", attention=""
    )

    async def submit(self, plan: StepPlan) -> None: ...

    async def submit_grammar(self, request: GrammarRequest) -> None: ...

    async def result(self) -> NoReturn:
        await trio.sleep_forever()

    async def grammar_ready(self) -> NoReturn:
        await trio.sleep_forever()

    def write_stacks(self) -> None: ...


@contextmanager
def traced() -> Iterator[list[int]]:
    """The bytes that the block has left allocated, in the list once it is over."""
    found: list[int] = []
    gc.collect()
    tracemalloc.start()
    try:
        yield found
        gc.collect()
        found.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()


# ---- the report ------------------------------------------------------------------------------------------------------


def spread(costs: list[float]) -> str:
    """Median, and in brackets the 10th and the 90th percentile."""
    tenths = statistics.quantiles(costs, n=10)
    digits = 0 if tenths[4] >= 100 else 1 if tenths[4] >= 10 else 2
    return f"{statistics.median(costs):.{digits}f} ({tenths[0]:.{digits}f}-{tenths[-1]:.{digits}f})"


def show(title: str, columns: dict[str, dict[str, list[float]]], console: Console) -> None:
    """A table with a column for each of ``columns`` and a row for each kind of cost."""
    table = Table(title=title)
    table.add_column("")
    for heading in columns:
        table.add_column(heading, justify="right")
    for name in next(iter(columns.values())):
        table.add_row(name, *(spread(costs[name]) for costs in columns.values()))
    console.print(table)


def grown(rounds: int, **size: int) -> dict[str, list[float]]:
    """Microseconds a token of both kinds of load."""
    steady = [us / NUM_GROWN for us in decode(NUM_GROWN, rounds, **size)["plan + commit"]]
    size.setdefault("num_waiting", NUM_GROWN)
    return {"decodes": steady, "sequences come and go": turn_over(rounds, **size)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=300, help="steps of which the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the medians there")
    rounds, path = (arguments := parser.parse_args()).rounds, arguments.json
    console = Console()
    tables = {
        "a step of so many sequences that decode, us": {f"{num:,}": decode(num, rounds) for num in RUNNING},
        f"a token while so many wait, {NUM_GROWN} run, us": {
            f"{num:,}": grown(rounds, num_waiting=num)
            | {"one comes, one leaves": leave(rounds, num_waiting=num)}
            for num in WAITING
        },
        f"a token with so many blocks, {NUM_GROWN} run, us": {
            f"{num:,}": grown(rounds, num_blocks=num) for num in BLOCKS
        },
    }
    for title, columns in tables.items():
        show(title, columns, console)
    held = trio.run(held_bytes)
    for name, num_bytes in held.items():
        console.print(f"{name} holds {num_bytes:,.0f} bytes beside its {PROMPT} tokens (at most 4,096)")
    if path:
        medians = {
            title: {
                heading: {name: statistics.median(costs) for name, costs in column.items()}
                for heading, column in columns.items()
            }
            for title, columns in tables.items()
        }
        machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        path.write_text(json.dumps(machine | {"us": medians, "bytes": held}, indent=2) + "\n")


if __name__ == "__main__":
    main()
