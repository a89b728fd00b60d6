"""A token under a schema against a free one, through HTTP: wall time, CPU of the rank, CPU of the server before it.

The built-in model, and one of the shape of SmolLM2-135M with random weights and a tokenizer that has all of its
vocabulary: what a schema costs is a matter of microseconds a token, and a small model has few of those.
"""

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.cpu.checkpoints import default_cache, make_checkpoint
from benchmarks.structured.schemas import ENDLESS
from benchmarks.structured.serving import Served, load, running

_TOKENS = 96
_REQUESTS = {"built-in": {1: 24, 8: 96, 32: 192}, "135M": {1: 4, 8: 16, 32: 64}}
"""By the number of clients, so that a run takes some two seconds."""
_KINDS: dict[str, dict[str, Any]] = {"free": {}, "schema": {"guided_json": ENDLESS}}


def main(rounds: int) -> None:
    """Measure in turns and print a row for each model and number of clients."""
    table = Table(
        "model",
        "clients",
        "tokens/s, free",
        "under a schema",
        "wall a token, ratio",
        "rank, us a token",
        "ratio",
        "server, us a token",
        "ratio",
    )
    with running() as served:
        _measure(served, "built-in", rounds, table)
    with running("--model", str(make_checkpoint("S", default_cache()))) as served:
        _measure(served, "135M", rounds, table)
    Console().print(table)


class _Run(NamedTuple):
    """What a run cost, a token."""

    wall_us: float
    rank_us: float
    server_us: float


def _measure(served: Served, model: str, rounds: int, table: Table) -> None:
    for clients, requests in _REQUESTS[model].items():
        found: dict[str, list[_Run]] = {kind: [] for kind in _KINDS}
        for kind in _KINDS:
            _run(served, clients, requests, kind)  # caches, kernels for this batch size
        for _ in range(rounds):
            for kind, runs in found.items():
                runs.append(_run(served, clients, requests, kind))
        table.add_row(model, str(clients), *_row(found["free"], found["schema"]))


def _run(served: Served, clients: int, requests: int, kind: str) -> _Run:
    rank, server = served.rank_cpu_s(), served.front_cpu_s()
    point = load(served, clients=clients, requests=requests, tokens=_TOKENS, fields=_KINDS[kind])
    spent = served.rank_cpu_s() - rank, served.front_cpu_s() - server
    return _Run(1e6 / point["output_tokens_per_s"], *(1e6 * cpu_s / (requests * _TOKENS) for cpu_s in spent))


def _row(free: list[_Run], bound: list[_Run]) -> Iterator[str]:
    """Medians, and those of the rounds' ratios with their range."""
    for number, name in enumerate(_Run._fields):
        here, there = ([run[number] for run in runs] for runs in (free, bound))
        values = [statistics.median(column) for column in (here, there)]
        if name == "wall_us":
            yield from (f"{1e6 / value:,.0f}" for value in values)
        else:
            yield " / ".join(f"{value:.1f}" for value in values)
        ratios = [after / before for before, after in zip(here, there, strict=True)]
        yield f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
