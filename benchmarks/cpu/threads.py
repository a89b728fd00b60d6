"""Where a rank's threads sit, and what that does to the gaps between tokens through HTTP with both floors busy.

    python -m benchmarks.cpu.threads [--streams 8 32] [--rounds 3] [--requests 4] [--tokens 128] [--idle-s 10]

Every round starts the server anew with ``pin_threads`` true and false, each first in every other round. It streams to
closed-loop clients on the same cores (the HTTP process, the rank and the load generator share them), and takes the gaps
between the tokens of a stream. Before the load it watches the idle server: what share of a core its processes use.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.cpu.checkpoints import default_cache, make_checkpoint
from benchmarks.structured.serving import Served, load, running

PINNINGS: Final = ("true", "false")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Run(NamedTuple):
    """One server under one load."""

    tokens_per_s: float
    p50_ms: float
    p99_ms: float


def processes_of(served: Served) -> dict[str, int]:
    """The front and its rank."""
    listed = Path(f"/proc/{served.pid}/task/{served.pid}/children").read_text(encoding="ascii").split()
    ranks = [pid for pid in listed if b"trioserve.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return {"front": served.pid, "rank": int(ranks[0])}


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def idle_shares(served: Served, seconds: float) -> dict[str, float]:
    """Of one core, for each process, while nobody asks for anything."""
    processes = processes_of(served)
    before = {name: cpu_s(pid) for name, pid in processes.items()}
    time.sleep(seconds)
    return {name: (cpu_s(pid) - before[name]) / seconds for name, pid in processes.items()}


def loaded(served: Served, streams: int, options: argparse.Namespace) -> Run:
    point = load(
        served,
        clients=streams,
        requests=streams * options.requests,
        tokens=options.tokens,
        fields={"ignore_eos": True},
    )
    gaps = point["itl_s"]
    return Run(point["output_tokens_per_s"], 1e3 * gaps["p50"], 1e3 * gaps["p99"])


def compare(
    model: str, flags: tuple[str, ...], options: argparse.Namespace, tables: tuple[Table, Table]
) -> None:
    """Both pinnings in turn, and a row for each number of streams."""
    runs: dict[tuple[str, int], list[Run]] = {}
    idle: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for pinning in PINNINGS if number % 2 == 0 else reversed(PINNINGS):
            with running(*flags, "--pin-threads", pinning) as served:
                loaded(served, min(options.streams), options)  # caches, imports, kept memory
                for name, share in idle_shares(served, options.idle_s).items():
                    idle.setdefault(name, []).append(share)
                for streams in options.streams:
                    runs.setdefault((pinning, streams), []).append(loaded(served, streams, options))
    for name, shares in idle.items():
        tables[0].add_row(model, name, f"{statistics.median(shares):.2%}", f"{max(shares):.2%}")
    for streams in options.streams:
        for pinning in PINNINGS:
            of_it = runs[pinning, streams]
            cells = [
                f"{statistics.median(values):,.1f} ({min(values):,.1f}-{max(values):,.1f})"
                for values in zip(*of_it, strict=True)
            ]
            tables[1].add_row(model, str(streams), pinning, *cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=["builtin", "135M"], default=["builtin", "135M"])
    parser.add_argument("--streams", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4, help="of each stream, one after the other")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--idle-s", type=float, default=10.0)
    options = parser.parse_args()
    tables = (Table(title="idle, of a core"), Table(title="medians over the rounds (least-most)"))
    for heading in ("model", "process", "median", "most"):
        tables[0].add_column(heading)
    for heading in ("model", "streams", "pinned", "tokens/s", "ITL p50, ms", "ITL p99, ms"):
        tables[1].add_column(heading)
    flags = {"builtin": (), "135M": ("--model", str(make_checkpoint("S", default_cache())))}
    for model in options.models:
        compare(model, flags[model], options, tables)
    for table in tables:
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
