"""One trial: replicas behind a front, restarted or killed in turn while clients ask."""

import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from benchmarks.load.wire import Client, Hub
from benchmarks.rolling import fronts
from benchmarks.rolling.clients import Asker, Failure, Outcome, Tally
from benchmarks.rolling.replicas import Replica

_SETTLE_S = 1.5
"""Between two restarts, for checks to see the new server."""
_BACKLOG = 1024


@dataclass(frozen=True)
class Plan:
    """What a trial does."""

    front: str
    num_replicas: int
    num_restarts: int
    min_requests: int
    num_streams: int
    """Clients that stream."""
    num_wholes: int
    """Clients that take whole answers."""
    num_words: int
    drain_delay_s: float
    kills: bool = False
    """Whether one replica is killed instead of asked to end."""


@dataclass
class Result:
    """What a trial came to."""

    tally: Tally = field(default_factory=Tally)
    restarts_s: list[float] = field(default_factory=list)
    """From the signal to the end of each server."""
    num_duplicated: int = 0
    """Requests that were answered more than once."""
    num_elsewhere: int = 0
    """Requests that failed though a server that was not killed had answered them."""
    wall_s: float = 0.0

    @property
    def num_requests(self) -> int:
        return self.tally.outcomes.total()

    def count(self, outcome: Outcome) -> int:
        return self.tally.outcomes[outcome]

    @property
    def failures(self) -> list[Failure]:
        return self.tally.failures


async def run(plan: Plan, folder: Path, report: Callable[[Result], None]) -> Result:
    """Carry ``plan`` out; ``report`` is called now and then with what there is so far."""
    result = Result()
    async with trio.open_nursery() as nursery:
        hub = Hub()
        nursery.start_soon(hub.run)
        async with _servers(plan, folder, hub) as (replicas, asker):
            await asker.learn()
            begin = time.monotonic()
            async with trio.open_nursery() as clients:
                for number in range(plan.num_streams + plan.num_wholes):
                    clients.start_soon(_ask, asker, number, result.tally, number < plan.num_streams)
                await _disturb(plan, replicas, result, report)
                while result.num_requests < plan.min_requests:
                    report(result)
                    await trio.sleep(0.25)
                result.tally.is_over = True
            result.wall_s = time.monotonic() - begin
        nursery.cancel_scope.cancel()
    answered = Counter(request_id for replica in replicas for request_id in replica.answered())
    result.num_duplicated = sum(count > 1 for count in answered.values())
    result.num_elsewhere = sum(failure.request_id in answered for failure in result.failures)
    return result


async def _ask(asker: Asker, number: int, tally: Tally, is_stream: bool) -> None:
    await asker.keep_asking(number, tally, is_stream=is_stream)


async def _disturb(
    plan: Plan, replicas: list[Replica], result: Result, report: Callable[[Result], None]
) -> None:
    for turn in range(plan.num_restarts):
        await trio.sleep(_SETTLE_S)
        report(result)
        replica = replicas[turn % len(replicas)]
        if plan.front == "handover":
            await replicas[(turn + 1) % len(replicas)].start()
        result.restarts_s.append(await replica.stop(signal.SIGKILL if plan.kills else signal.SIGTERM))
        if plan.front != "handover":
            await replica.start()


@asynccontextmanager
async def _servers(plan: Plan, folder: Path, hub: Hub) -> AsyncIterator[tuple[list[Replica], Asker]]:
    """All that clients need; ended again with the block.

    Those that are handed one socket take turns: the next one starts before the last one ends.
    """
    with ExitStack() as stack:
        shared = None
        if plan.front == "handover":
            shared = stack.enter_context(socket.socket())
            shared.bind(("127.0.0.1", 0))
            shared.listen(_BACKLOG)
        replicas = [
            Replica(f"replica{i}", folder, hub, shared=shared, drain_delay_s=plan.drain_delay_s)
            for i in range(plan.num_replicas)
        ]
        for replica in replicas:
            stack.callback(replica.kill)
        for replica in replicas if shared is None else replicas[:1]:
            await replica.start()
        port = (
            replicas[0].port
            if shared is not None
            else stack.enter_context(
                fronts.running(plan.front, folder, [replica.port for replica in replicas])
            )
        )
        yield replicas, Asker(Client(hub, f"http://127.0.0.1:{port}"), plan.num_words)
