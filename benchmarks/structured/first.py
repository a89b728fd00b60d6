"""The first request with a schema: one that nobody has seen, one that is known, and none at all."""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.structured.schemas import PERSON, body, unlike
from benchmarks.structured.serving import running

_REQUESTS_PER_ROUND = 10


def main(rounds: int) -> None:
    """Measure in turns and print a row for each kind."""
    numbers = itertools.count(1)
    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "no schema": dict,
        "a known schema": lambda: _asking(PERSON),
        "a new schema of the same size": lambda: _asking(unlike(PERSON, next(numbers))),
    }
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    with running() as served, httpx.Client(base_url=served.url, timeout=60) as client:
        for make in kinds.values():
            _time(client, make())
        for _ in range(rounds * _REQUESTS_PER_ROUND):
            for kind, make in kinds.items():
                found[kind].append(_time(client, make()))
    table = Table("one token, whole", "ms, median", "ms, 95 %", "more than without, ms")
    free = statistics.median(found["no schema"])
    for kind, times in found.items():
        median = statistics.median(times)
        table.add_row(
            kind, f"{median:.1f}", f"{statistics.quantiles(times, n=20)[-1]:.1f}", f"{median - free:.1f}"
        )
    Console().print(table)


def _asking(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}}


def _time(client: httpx.Client, fields: dict[str, Any]) -> float:
    """Milliseconds until the answer of one token is there."""
    data = body(fields, max_tokens=1)
    started = time.perf_counter()
    answer = client.post("/v1/chat/completions", content=data)
    took = time.perf_counter() - started
    answer.raise_for_status()
    return 1e3 * took
