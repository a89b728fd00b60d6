"""The ranks of one replica as the engine sees them."""

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from trioserve.core.frames import encode_frame
from trioserve.core.step import (
    GrammarReady,
    GrammarRequest,
    LoadProgress,
    StepPlan,
    StepResult,
    WorkerReady,
)
from trioserve.errors import EngineError, WireError, WorkerStalled
from trioserve.executor.rank import Rank


class Executor(Protocol):
    """Carries out plans, in order. One task submits, one waits for results, one for grammars."""

    ready: WorkerReady
    """What the ranks said when they had loaded; ``num_blocks`` is the least of all ranks."""

    async def submit(self, plan: StepPlan) -> None:
        """Hand a plan to every rank; returns when it lies in their sockets, not when it is done."""

    async def result(self) -> StepResult:
        """Wait for the next plan's result, in the order of plans."""

    async def submit_grammar(self, request: GrammarRequest) -> None:
        """Have every rank make a grammar ready, beside the steps; returns when the request lies in their sockets."""

    async def grammar_ready(self) -> GrammarReady:
        """Wait for the next grammar that every rank has ready, or that one of them cannot use.

        Results must be waited for at the same time.
        """

    def write_stacks(self) -> None:
        """Have every rank write its stacks to the log."""


class ProcessExecutor:
    """Ranks as processes on this machine."""

    def __init__(self, ranks: list[Rank], ready: WorkerReady) -> None:
        self.ready = ready
        self._ranks = ranks
        self._answers: dict[
            bytes, dict[int, GrammarReady]
        ] = {}  # by key and rank, until every rank has answered
        self._answered, self._grammars = trio.open_memory_channel[GrammarReady](math.inf)

    async def submit(self, plan: StepPlan) -> None:
        """Send the same bytes to every rank.

        A plan that is half sent would leave the ranks out of step. Whoever cancels this must end the ranks too.
        """
        await self._send(encode_frame(plan))

    async def submit_grammar(self, request: GrammarRequest) -> None:
        """Send the same bytes to every rank; not while a plan is being sent."""
        await self._send(encode_frame(request))

    async def result(self) -> StepResult:
        """Rank 0's next result.

        Raises:
            EngineError: The rank is gone, failed, or says something else.
        """
        while True:
            message = await self._ranks[0].receive()
            if isinstance(message, StepResult):
                return message
            if not isinstance(message, GrammarReady):
                raise WireError(f"rank 0 sent {type(message).__name__} instead of a result")
            self._take_answer(0, message)

    async def grammar_ready(self) -> GrammarReady:
        return await self._grammars.receive()

    async def watch(self, rank: Rank) -> None:
        """Ranks other than 0 speak of grammars, and say nothing else unless they fail.

        Raises:
            EngineError: The rank is gone, failed, or says something else.
        """
        while True:
            message = await rank.receive()
            if not isinstance(message, GrammarReady):
                raise EngineError(f"rank {rank.tp_rank} sent {type(message).__name__} unasked")
            self._take_answer(rank.tp_rank, message)

    def write_stacks(self) -> None:
        for rank in self._ranks:
            rank.write_stacks()

    async def _send(self, frame: bytes) -> None:
        for rank in self._ranks:
            await rank.send_bytes(frame)

    def _take_answer(self, tp_rank: int, answer: GrammarReady) -> None:
        """When all have answered, one with an error speaks for all, if there is one."""
        answers = self._answers.setdefault(answer.key, {})
        answers[tp_rank] = answer
        if len(answers) == len(self._ranks):
            self._answered.send_nowait(max(answers.values(), key=lambda each: each.error))
            del self._answers[answer.key]


@asynccontextmanager
async def run_ranks(
    ranks: list[Rank], *, start_timeout_s: float, on_progress: Callable[[LoadProgress], None]
) -> AsyncIterator[ProcessExecutor]:
    """Run ranks that were launched for as long as the block is open, and close them; a rank that ends early ends the
    block with ``WorkerDied``.

    Raises:
        ModelError: The model cannot be served.
        WorkerStalled: The ranks were not ready ``start_timeout_s`` later.
        EngineError: A rank died or failed.
    """
    try:
        ready = await _wait_loaded(ranks, start_timeout_s, on_progress)
        executor = ProcessExecutor(ranks, ready)
        async with trio.open_nursery() as nursery:
            for rank in ranks[1:]:
                nursery.start_soon(executor.watch, rank)
            yield executor
            nursery.cancel_scope.cancel()
    finally:
        for rank in ranks:
            await rank.aclose()


async def _wait_loaded(
    ranks: list[Rank], timeout_s: float, on_progress: Callable[[LoadProgress], None]
) -> WorkerReady:
    """Wait until every rank has loaded; rank 0 speaks of progress for all."""
    try:
        with trio.fail_after(timeout_s):
            readies = [await _wait_ready(rank, on_progress) for rank in ranks]
    except trio.TooSlowError as exc:
        raise WorkerStalled(f"the ranks were not ready after {timeout_s:g} s") from exc
    return min(readies, key=lambda ready: ready.num_blocks)


async def _wait_ready(rank: Rank, on_progress: Callable[[LoadProgress], None]) -> WorkerReady:
    while True:
        message = await rank.receive()
        if isinstance(message, WorkerReady):
            return message
        if isinstance(message, LoadProgress):
            if rank.tp_rank == 0:
                on_progress(message)
            continue
        raise WireError(f"rank {rank.tp_rank} sent {type(message).__name__} while loading")
