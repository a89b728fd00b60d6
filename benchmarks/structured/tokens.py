"""A token under a schema against a free one: wall time and the rank's CPU, through HTTP."""

import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.structured.schemas import ENDLESS
from benchmarks.structured.serving import Served, load, running

_CLIENTS = (1, 8, 32)
_TOKENS = 96
_REQUESTS_PER_CLIENT = 4
_KINDS: dict[str, dict[str, Any]] = {"free": {}, "schema": {"guided_json": ENDLESS}}


def main(rounds: int) -> None:
    """Measure in turns and print a row for each number of clients."""
    table = Table(
        "clients", "tokens/s, free", "under a schema", "wall a token, ratio", "rank CPU a token, ratio"
    )
    with running() as served:
        for clients in _CLIENTS:
            found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in _KINDS}
            for kind in _KINDS:
                _run(served, clients, kind)  # caches, kernels for this batch size
            for _ in range(rounds):
                for kind, points in found.items():
                    points.append(_run(served, clients, kind))
            table.add_row(str(clients), *_row(found))
    Console().print(table)


def _run(served: Served, clients: int, kind: str) -> tuple[float, float]:
    """Tokens a second, and the rank's CPU a token in microseconds."""
    before = served.rank_cpu_s()
    num_requests = clients * _REQUESTS_PER_CLIENT
    point = load(served, clients=clients, requests=num_requests, tokens=_TOKENS, fields=_KINDS[kind])
    spent = served.rank_cpu_s() - before
    return point["output_tokens_per_s"], 1e6 * spent / (num_requests * _TOKENS)


def _row(found: dict[str, list[tuple[float, float]]]) -> list[str]:
    speeds = {kind: statistics.median(speed for speed, _ in points) for kind, points in found.items()}
    pairs = list(zip(found["free"], found["schema"], strict=True))
    walls = [free / bound for (free, _), (bound, _) in pairs]
    cpus = [bound / free for (_, free), (_, bound) in pairs]
    return [
        f"{speeds['free']:,.0f}",
        f"{speeds['schema']:,.0f}",
        *(
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            for ratios in (walls, cpus)
        ),
    ]
