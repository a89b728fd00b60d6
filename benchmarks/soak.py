"""A server under mixed traffic for a while: nothing fails, nothing grows, and the probes answer all the time.

    python -m benchmarks.soak [--minutes 10] [--clients 12]

The built-in model through `trioserve serve` with two keys. Clients stream, ask for whole answers, choices, tools and
schemas, count tokens, send what is wrong, and leave in the middle. It fails unless every answer has the status that it
should have, /live answers within 50 ms in 99 of 100 cases, and memory does not grow once the server is warm.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio
from rich.console import Console
from rich.status import Status
from rich.table import Table

from benchmarks.load.answer import AnswerReader, Outcome, Record
from benchmarks.load.wire import Client, Hub, Response
from benchmarks.rolling.replicas import ROOT, free_port, tail

_KEYS: Final = ("soak-key-one", "soak-key-two")
_LIVE_P99_S: Final = 0.05
_GROWTH_MB_PER_MIN: Final = 1.0
_PROBE_EVERY_S: Final = 0.1
_SAMPLE_EVERY_S: Final = 1.0
_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
}
_TOOL: Final = {"type": "function", "function": {"name": "f", "parameters": _SCHEMA}}


@dataclass
class Soak:
    """What has been seen so far."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    probes_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    """Between two tokens of a stream."""
    memory_mb: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By process: minutes since the start, and what it holds."""

    def fault(self, what: str) -> None:
        self.faults.append(what)

    def growth(self, process: str) -> float:
        """MB a minute over the second half of the time."""
        samples = self.memory_mb[process]
        half = samples[len(samples) // 2 :]
        return statistics.linear_regression([at for at, _ in half], [size for _, size in half]).slope


Act = Callable[["Visitor"], Awaitable[None]]


class Visitor:
    """One client, who does this and that."""

    def __init__(self, client: Client, soak: Soak, seed: int) -> None:
        self._client = client
        self._soak = soak
        self.rng = random.Random(seed)

    async def come_and_go(self, until: float) -> None:
        acts: list[Act] = [_stream, _stream, _whole, _choices, _schema, _tool, _count, _wrong, _leave]
        while time.monotonic() < until:
            act = self.rng.choice(acts)
            await act(self)
            self._soak.counts[act.__name__.strip("_")] += 1

    def question(self) -> list[dict[str, str]]:
        first = self.rng.randrange(100)
        return [{"role": "user", "content": f"Count from {first} to {first + self.rng.randrange(20)}."}]

    async def ask(self, path: str, body: dict[str, Any], status: int = 200) -> Any:
        """The JSON of an answer, which must have ``status``."""
        data = bytearray()
        response = Response(lambda part, _: data.extend(part))
        try:
            await self._client.exchange(self._request(path, body), response)
        except OSError as exc:
            self._soak.fault(f"{path}: {exc!r}")
            return None
        if response.status != status or not response.ended:
            self._soak.fault(f"{path}: status {response.status} instead of {status}: {bytes(data[:200])!r}")
            return None
        return json.loads(data)

    async def stream(self, body: dict[str, Any]) -> None:
        reader, record = AnswerReader(), Record(0.0, 0.0, 0)
        start, failure = time.perf_counter(), None
        try:
            await self._client.exchange(self._request(_CHAT, {**body, "stream": True}), reader.response)
        except OSError as exc:
            failure = exc
        reader.finish(record, start=start, now=time.perf_counter(), failure=failure)
        self._soak.gaps_s += record.itl_s
        if record.outcome is not Outcome.OK:
            self._soak.fault(f"a stream: {record.outcome} {record.error}")

    def _request(self, path: str, body: dict[str, Any]) -> bytes:
        key = self.rng.choice(_KEYS)
        return self._client.encode_post(path, json.dumps(body).encode(), Authorization=f"Bearer {key}")


async def _stream(visitor: Visitor) -> None:
    await visitor.stream({"messages": visitor.question(), "max_tokens": visitor.rng.randrange(1, 200)})


async def _whole(visitor: Visitor) -> None:
    await visitor.ask(
        _CHAT, {"messages": visitor.question(), "max_tokens": 60, "store": visitor.rng.random() < 0.3}
    )


async def _choices(visitor: Visitor) -> None:
    prompts = ["Once upon a time", "The capital of"] * visitor.rng.randrange(1, 4)
    await visitor.ask(_COMPLETIONS, {"prompt": prompts, "n": 2, "max_tokens": 16, "logprobs": 3, "seed": 5})


async def _schema(visitor: Visitor) -> None:
    schema = {**_SCHEMA, "title": f"t{visitor.rng.randrange(50)}"}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    await visitor.ask(_CHAT, {"messages": visitor.question(), "response_format": form, "max_tokens": 40})


async def _tool(visitor: Visitor) -> None:
    body = {"messages": visitor.question(), "tools": [_TOOL], "tool_choice": "required", "max_tokens": 60}
    await visitor.ask(_CHAT, body)


async def _count(visitor: Visitor) -> None:
    await visitor.ask("/tokenize", {"prompt": "word " * visitor.rng.randrange(1, 500)})


async def _wrong(visitor: Visitor) -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": -1},
        {"max_tokens": -1},
        {"top_p": "x"},
        {"guided_regex": "("},
    ]
    wrong = visitor.rng.choice(kinds)
    await visitor.ask(_CHAT, {"messages": visitor.question(), **wrong}, status=400)


async def _leave(visitor: Visitor) -> None:
    with trio.move_on_after(visitor.rng.random() * 0.1):
        await visitor.stream({"messages": visitor.question(), "max_tokens": 2000, "ignore_eos": True})


# ---- watching --------------------------------------------------------------------------------------------------------


async def _probe(client: Client, soak: Soak, until: float) -> None:
    while time.monotonic() < until:
        begin = time.perf_counter()
        try:
            status, _ = await client.get("/live")
        except OSError as exc:
            soak.fault(f"/live: {exc!r}")
        else:
            soak.probes_s.append(time.perf_counter() - begin)
            if status != 200:
                soak.fault(f"/live: status {status}")
        await trio.sleep(_PROBE_EVERY_S)


async def _sample(pid: int, soak: Soak, until: float, status: Status) -> None:
    begin = time.monotonic()
    while (now := time.monotonic()) < until:
        for name, process in (
            ("server", pid),
            *((f"rank {i}", child) for i, child in enumerate(_ranks(pid))),
        ):
            if (size := _resident_mb(process)) is not None:
                soak.memory_mb.setdefault(name, []).append(((now - begin) / 60, size))
        status.update(
            f"{until - now:.0f} s to go, {soak.counts.total()} requests, {len(soak.faults)} faults, "
            + ", ".join(f"{name} {samples[-1][1]:.0f} MB" for name, samples in soak.memory_mb.items())
        )
        await trio.sleep(_SAMPLE_EVERY_S)


def _ranks(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    return [
        int(child) for child in children if b"trioserve.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def _resident_mb(pid: int) -> float | None:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# ---- the run ---------------------------------------------------------------------------------------------------------


async def run(minutes: float, num_clients: int, status: Status) -> Soak:
    """Let visitors come and go for so long."""
    soak = Soak()
    async with trio.open_nursery() as nursery:
        hub = Hub()
        nursery.start_soon(hub.run)
        async with _server(hub) as (pid, client):
            until = time.monotonic() + 60 * minutes
            async with trio.open_nursery() as visitors:
                visitors.start_soon(_probe, client, soak, until)
                visitors.start_soon(_sample, pid, soak, until, status)
                for seed in range(num_clients):
                    visitors.start_soon(Visitor(client, soak, seed).come_and_go, until)
            await _check_empty(client, soak)
        nursery.cancel_scope.cancel()
    return soak


async def _check_empty(client: Client, soak: Soak) -> None:
    """Nothing runs any more, and all blocks are free."""
    await trio.sleep(2)
    data = bytearray()
    request = f"GET /health HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {_KEYS[0]}\r\n\r\n".encode()
    await client.exchange(request, Response(lambda part, _: data.extend(part)))
    health = json.loads(data)
    if health["num_running"] or health["num_waiting"] or health["num_free_blocks"] != health["num_blocks"]:
        soak.fault(f"something is left behind: {health}")


@asynccontextmanager
async def _server(hub: Hub) -> AsyncIterator[tuple[int, Client]]:
    port = free_port()
    flags = ["--port", str(port), "--api-key", *_KEYS, "--drain-delay-s", "0", "--log-level", "warning"]
    flags += ["--num-kv-blocks", "2048", "--max-stored-completions", "500"]  # full soon, and then of one size
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        log_path = Path(folder) / "log"
        with log_path.open("wb") as log:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "trioserve.cli", "serve", *flags],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        client = Client(hub, f"http://127.0.0.1:{port}")
        try:
            await _wait_ready(client, process, log_path)
            yield process.pid, client
        finally:
            with trio.CancelScope(shield=True):
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                await process.wait()


async def _wait_ready(client: Client, process: trio.Process, log_path: Path) -> None:
    with trio.move_on_after(120):
        while process.poll() is None:
            try:
                if (await client.get("/ready"))[0] == 200:
                    return
            except OSError:
                pass  # it does not listen yet
            await trio.sleep(0.1)
    raise SystemExit(f"the server did not become ready:\n{tail(log_path)}")


def _table(soak: Soak) -> Table:
    table = Table(title=f"{soak.counts.total()} requests")
    table.add_column("what")
    table.add_column("", justify="right")
    for name, count in sorted(soak.counts.items()):
        table.add_row(name, str(count))
    table.add_section()
    table.add_row("faults", str(len(soak.faults)))
    table.add_row(
        "/live p50 / p99, ms", f"{_percentile(soak.probes_s, 50):.1f} / {_percentile(soak.probes_s, 99):.1f}"
    )
    table.add_row(
        "inter-token p50 / p99, ms",
        f"{_percentile(soak.gaps_s, 50):.1f} / {_percentile(soak.gaps_s, 99):.1f}",
    )
    for name, samples in soak.memory_mb.items():
        sizes = [size for _, size in samples]
        growth = f"{soak.growth(name):+.2f} MB a minute"
        table.add_row(
            f"memory of {name}", f"{sizes[0]:.0f} to {sizes[-1]:.0f} MB, in the second half {growth}"
        )
    return table


def _percentile(values_s: list[float], percent: int) -> float:
    """In ms."""
    return 1000 * statistics.quantiles(values_s, n=100)[percent - 1]


def is_good(soak: Soak) -> bool:
    """Whether nothing failed, the probes were answered in time, and nothing grows."""
    is_flat = all(soak.growth(name) <= _GROWTH_MB_PER_MIN for name in soak.memory_mb)
    return not soak.faults and _percentile(soak.probes_s, 99) <= 1000 * _LIVE_P99_S and is_flat


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=12)
    options = parser.parse_args()
    console = Console()
    with console.status("the server starts") as status:
        soak = trio.run(run, options.minutes, options.clients, status)
    console.print(_table(soak))
    for fault in soak.faults[:10]:
        console.print(fault, style="red", markup=False)
    return 0 if is_good(soak) else 1


if __name__ == "__main__":
    sys.exit(main())
