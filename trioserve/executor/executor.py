"""The ranks of one replica as the engine sees them."""

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import trio
from msgspec import structs

from trioserve.core.frames import encode_frame
from trioserve.core.step import (
    GrammarReady,
    GrammarRequest,
    LoadProgress,
    StepPlan,
    StepResult,
    WorkerReady,
)
from trioserve.errors import EngineError, ModelError, WireError, WorkerStalled
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
        """Have a grammar made ready, beside the steps; returns when the request lies in the rank's socket."""

    async def grammar_ready(self) -> GrammarReady:
        """Wait for the next grammar that is ready, or cannot be used.

        Results must be waited for at the same time.
        """

    def write_stacks(self) -> None:
        """Have every rank write its stacks to the log."""


class ProcessExecutor:
    """Ranks as processes, on this machine or others."""

    def __init__(self, ranks: Sequence[Rank], ready: WorkerReady) -> None:
        self.ready = ready
        self._ranks = ranks
        self._answered, self._grammars = trio.open_memory_channel[GrammarReady](math.inf)

    async def submit(self, plan: StepPlan) -> None:
        """Send the same bytes to every rank.

        A plan that is half sent would leave the ranks out of step. Whoever cancels this must end the ranks too.
        """
        frame = encode_frame(plan)
        for rank in self._ranks:
            await rank.send_bytes(frame)

    async def submit_grammar(self, request: GrammarRequest) -> None:
        """Send it to rank 0, which chooses the tokens; not while a plan is being sent."""
        await self._ranks[0].send_bytes(encode_frame(request))

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
            self._answered.send_nowait(message)

    async def grammar_ready(self) -> GrammarReady:
        return await self._grammars.receive()

    @staticmethod
    async def watch(rank: Rank) -> None:
        """Ranks other than 0 say nothing unless they fail.

        Raises:
            EngineError: The rank is gone, failed, or says something.
        """
        message = await rank.receive()
        raise EngineError(f"rank {rank.tp_rank} sent {type(message).__name__} unasked")

    def write_stacks(self) -> None:
        for rank in self._ranks:
            rank.write_stacks()


@asynccontextmanager
async def run_ranks(
    ranks: Sequence[Rank], *, start_timeout_s: float, on_progress: Callable[[LoadProgress], None]
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
    except BaseException:
        if len(ranks) > 1:  # where one is gone the others wait for it
            for rank in ranks:
                rank.kill()
        raise
    finally:
        await close_ranks(ranks)


async def close_ranks(ranks: Sequence[Rank]) -> None:
    """Close all at once."""
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            for rank in ranks:
                nursery.start_soon(rank.aclose)


async def _wait_loaded(
    ranks: Sequence[Rank], timeout_s: float, on_progress: Callable[[LoadProgress], None]
) -> WorkerReady:
    """Wait until every rank has loaded, or one of them has failed; rank 0 speaks of progress for all."""
    readies: list[WorkerReady] = []

    async def wait(rank: Rank) -> None:
        readies.append(await _wait_ready(rank, on_progress))

    try:
        with trio.fail_after(timeout_s):
            async with trio.open_nursery() as nursery:
                for rank in ranks:
                    nursery.start_soon(wait, rank)
    except trio.TooSlowError as exc:
        raise WorkerStalled(f"the ranks were not ready after {timeout_s:g} s") from exc
    except BaseExceptionGroup as group:
        # all ranks may have found the same fault, and one that died may have made others fail
        failures, others = group.split((EngineError, ModelError))
        if failures is None or others is not None:
            raise
        raise _first(failures) from None
    return _together(readies)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    failure = group.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure


def _together(readies: list[WorkerReady]) -> WorkerReady:
    """What all ranks are, where they share a model: as rank 0 is, with the memory of all."""
    first = min(readies, key=lambda ready: ready.tp_rank)
    return structs.replace(
        first,
        num_blocks=min(ready.num_blocks for ready in readies),
        load_s=max(ready.load_s for ready in readies),
        kv_cache_bytes=sum(ready.kv_cache_bytes for ready in readies),
        weights_bytes=sum(ready.weights_bytes for ready in readies),
        num_host_blocks=min(ready.num_host_blocks for ready in readies),
    )


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
