"""Grammars between the engine and several ranks: rank 0 has them."""

import pytest
import trio

from trioserve.core.frames import FrameReader
from trioserve.core.sampling import Grammar
from trioserve.core.step import (
    FromWorker,
    GrammarReady,
    GrammarRequest,
    StepResult,
    ToWorker,
    WorkerReady,
)
from trioserve.errors import EngineError, WireError
from trioserve.executor.executor import ProcessExecutor

READY = WorkerReady(
    tp_rank=0,
    num_blocks=1,
    load_s=0.0,
    kv_cache_bytes=0,
    weights_bytes=0,
    dtype="float32",
    attention="none",
)
RESULT = StepResult(0, [], 0.0)


class ScriptedRank:
    """A rank without a process: says what the test says."""

    def __init__(self, tp_rank: int) -> None:
        self.tp_rank = tp_rank
        self.heard = bytearray()
        self.say, self._said = trio.open_memory_channel[FromWorker](99)

    async def send_bytes(self, frame: bytes) -> None:
        for byte in frame:  # as slow as can be
            self.heard.append(byte)
            await trio.lowlevel.checkpoint()

    async def receive(self) -> FromWorker:
        return await self._said.receive()


def make(num_ranks: int) -> tuple[list[ScriptedRank], ProcessExecutor]:
    ranks = [ScriptedRank(tp_rank) for tp_rank in range(num_ranks)]
    return ranks, ProcessExecutor(ranks, READY)  # type: ignore[arg-type]  # as much of a Rank as is used


async def test_the_rank_that_chooses_the_tokens_hears_the_request_and_no_other_does() -> None:
    ranks, executor = make(2)
    request = GrammarRequest(Grammar("any", "text", b"key"), [b"old"])
    await executor.submit_grammar(request)
    heard = [FrameReader[ToWorker](ToWorker).feed(bytes(rank.heard)) for rank in ranks]
    assert heard == [[request], []]


async def test_results_come_whatever_is_said_of_grammars() -> None:
    (rank,), executor = make(1)
    for message in (GrammarReady(b"a"), RESULT, GrammarReady(b"b", "too large"), RESULT):
        rank.say.send_nowait(message)
    assert [await executor.result() for _ in range(2)] == [RESULT, RESULT]
    assert [await executor.grammar_ready() for _ in range(2)] == [
        GrammarReady(b"a"),
        GrammarReady(b"b", "too large"),
    ]


async def test_ranks_say_nothing_else() -> None:
    ranks, executor = make(2)
    ranks[0].say.send_nowait(READY)
    with pytest.raises(WireError, match="rank 0 sent WorkerReady instead of a result"):
        await executor.result()
    ranks[1].say.send_nowait(RESULT)
    with pytest.raises(EngineError, match="rank 1 sent StepResult unasked"):
        await executor.watch(ranks[1])  # type: ignore[arg-type]
