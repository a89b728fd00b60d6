"""How long a single request of one key waits while a thousand of another key's do.

    python -m benchmarks.fairness [--requests 1000] [--seqs 16] [--singles 20]

The built-in model through `trioserve serve` with two keys. The first key sends all its requests at once. While most of
them wait, the second key asks for one answer after the other, and the first one for one more. It fails unless single
requests of the second key are answered before half of what waited when they came.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import trio
from rich.console import Console
from rich.table import Table

from benchmarks.load.wire import Client, Hub, Response
from benchmarks.rolling.replicas import ROOT, free_port, tail

_MANY, _SINGLE = "fairness-key-many", "fairness-key-single"
_COMPLETIONS: Final = "/v1/completions"
_BODY: Final = b'{"prompt": "Once", "max_tokens": 200, "ignore_eos": true}'
_START_S: Final = 60.0


@dataclass(frozen=True)
class Wait:
    """One request among those of others."""

    seconds: float
    num_waiting_before: int
    num_waiting_after: int


class Keyholder:
    """A client with a key."""

    def __init__(self, hub: Hub, url: str, key: str) -> None:
        self._client = Client(hub, url, {"Authorization": f"Bearer {key}"})

    async def ask(self) -> None:
        """One answer."""
        answer = Response(lambda data, now: None)
        await self._client.exchange(self._client.encode_post(_COMPLETIONS, _BODY), answer)
        if answer.status != 200:
            raise SystemExit(f"a request was answered with {answer.status}")

    async def num_waiting(self) -> int:
        """Sequences in the line."""
        _, body = await self._client.get("/health")
        return int(json.loads(body)["num_waiting"])

    async def timed(self) -> Wait:
        """Ask once, and see how many waited then and now."""
        before, began = await self.num_waiting(), trio.current_time()
        await self.ask()
        return Wait(trio.current_time() - began, before, await self.num_waiting())


@contextmanager
def running_server(folder: Path, num_seqs: int) -> Iterator[str]:
    """A server's URL for as long as the block is open."""
    port, log_path = free_port(), folder / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIOSERVE_")}
    environment |= {"TRIOSERVE_API_KEY": f"{_MANY},{_SINGLE}", "TRIOSERVE_MAX_NUM_SEQS": str(num_seqs)}
    environment |= {"TRIOSERVE_DRAIN_DELAY_S": "0", "TRIOSERVE_DRAIN_TIMEOUT_S": "1"}
    command = [sys.executable, "-m", "trioserve.cli", "serve", "--port", str(port)]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
        while not _is_ready(url):
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"the server is not ready:\n{tail(log_path)}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url + "/ready").status_code == 200
    except httpx.TransportError:
        return False


async def measure(url: str, options: argparse.Namespace) -> bool:
    """Print the waits; returns whether they are fair."""
    async with trio.open_nursery() as nursery:
        hub = Hub()
        nursery.start_soon(hub.run)
        is_fair = await _measure(Keyholder(hub, url, _MANY), Keyholder(hub, url, _SINGLE), options)
        nursery.cancel_scope.cancel()
    return is_fair


async def _measure(many: Keyholder, single: Keyholder, options: argparse.Namespace) -> bool:
    alone = [await single.timed() for _ in range(options.singles)]
    behind: list[Wait] = []
    own: list[Wait] = []

    async def ask_behind_own() -> None:
        own.append(await many.timed())

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(options.requests):
            nursery.start_soon(many.ask)
        while await single.num_waiting() < options.requests // 2:  # noqa: ASYNC110  # it tells nobody
            await trio.sleep(0.01)
        nursery.start_soon(ask_behind_own)
        for _ in range(options.singles):
            behind.append(await single.timed())
            if behind[-1].num_waiting_after < options.seqs:
                break
    _show(alone, behind, own, trio.current_time() - began, options)
    return all(wait.num_waiting_after > wait.num_waiting_before / 2 for wait in behind[:5])


def _show(
    alone: list[Wait], behind: list[Wait], own: list[Wait], all_s: float, options: argparse.Namespace
) -> None:
    table = Table(title=f"{options.requests} requests of one key, at most {options.seqs} run at a time")
    for heading in ("request of", "wait, s: median", "longest", "in line before", "and after"):
        table.add_column(heading)
    for name, waits in (
        ("another key, alone", alone),
        ("another key, behind them", behind),
        ("their own key", own),
    ):
        seconds = sorted(wait.seconds for wait in waits)
        before = [wait.num_waiting_before for wait in waits]
        after = [wait.num_waiting_after for wait in waits]
        table.add_row(
            name,
            f"{statistics.median(seconds):.3f}",
            f"{seconds[-1]:.3f}",
            f"{before[0]} to {before[-1]}",
            f"{after[0]} to {after[-1]}",
        )
    console = Console()
    console.print(table)
    console.print(f"All {options.requests} are answered after {all_s:.1f} s.")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seqs", type=int, default=16)
    parser.add_argument("--singles", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fairness-") as folder:
        with running_server(Path(folder), options.seqs) as url:
            return 0 if trio.run(measure, url, options) else 1


if __name__ == "__main__":
    sys.exit(main())
