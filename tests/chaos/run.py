"""Lets a fault happen to a server of its own while witnesses ask, and looks at what is left."""

from pathlib import Path

import trio

from tests.chaos import oracles
from tests.chaos.clients import Witnesses
from tests.chaos.faults import Fault
from tests.e2e.harness import TRIOSERVE, Server, running_server

_NUM_WITNESSES = 3
_COMMON = {"max_restarts": 50, "max_num_seqs": 32}


def undergo(fault: Fault, folder: Path, size: float) -> Witnesses:
    """Start a server, let ``fault`` happen to it, check it, end it.

    Returns:
        What the witnesses have seen.

    Raises:
        AssertionError: Something is left behind, an answer is wrong, or one was lost that should not have been.
    """
    settings = {**_COMMON, **fault.settings}
    with running_server(folder / "log", command=TRIOSERVE, settings=settings) as server:
        witnesses = Witnesses(server.url)
        trio.run(witnesses.learn)
        server.wait_idle()
        before, ranks = oracles.Ground.of(server), server.rank_pids()
        trio.run(_happen, fault, server, witnesses, size)
        assert fault.ends_works or not witnesses.losses, witnesses.losses[:3]
        assert witnesses.outcomes["whole"] > 0
        assert (server.rank_pids() != ranks) == fault.ends_works, (
            f"ranks {ranks} before, {server.rank_pids()} now"
        )
        oracles.check(server, before)
        server.terminate()
        assert server.wait() == 0
        return witnesses


async def _happen(fault: Fault, server: Server, witnesses: Witnesses, size: float) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(_NUM_WITNESSES):
            nursery.start_soon(witnesses.keep_asking, number)
        witnesses.note = await fault.happen(server, size)
        witnesses.is_over = True
