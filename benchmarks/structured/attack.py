"""Streams of others while hostile schemas, regular expressions and grammars come in, one after the other."""

import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.structured.schemas import body, hostile
from benchmarks.structured.serving import Served, load, running

_CLIENTS = 8
_REQUESTS = 64
_TOKENS = 128


class _Attacker:
    """Sends what is meant to hurt, again and again, and keeps what came back."""

    def __init__(self, url: str) -> None:
        self.statuses: Counter[int] = Counter()
        self.slowest_s = 0.0
        self._url = url
        self._ended = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self._ended.clear()
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=120) as client:
            while not self._ended.is_set():
                for fields in hostile(time.monotonic_ns()):
                    if self._ended.is_set():
                        return
                    started = time.perf_counter()
                    answer = client.post("/v1/chat/completions", content=body(fields, max_tokens=4))
                    self.slowest_s = max(self.slowest_s, time.perf_counter() - started)
                    self.statuses[answer.status_code] += 1


def main(rounds: int) -> None:
    """Measure in turns and print the percentiles and their ratio."""
    found: dict[str, list[dict[str, float]]] = {"quiet": [], "attacked": []}
    with running() as served:
        attacker = _Attacker(served.url)
        _load(served)
        for _ in range(rounds):
            found["quiet"].append(_load(served))
            with attacker.at_work():
                found["attacked"].append(_load(served))
    table = Table("inter-token, ms", "quiet", "attacked", "ratio")
    for percentile in ("p50", "p99"):
        quiet, attacked = ([1e3 * point[percentile] for point in found[kind]] for kind in found)
        ratios = [there / here for here, there in zip(quiet, attacked, strict=True)]
        table.add_row(
            percentile,
            f"{statistics.median(quiet):.1f}",
            f"{statistics.median(attacked):.1f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        )
    Console().print(table)
    print(f"answers to the attacker: {dict(attacker.statuses)}, the slowest after {attacker.slowest_s:.2f} s")


def _load(served: Served) -> dict[str, float]:
    point = load(served, clients=_CLIENTS, requests=_REQUESTS, tokens=_TOKENS, fields={})
    times: dict[str, float] = point["itl_s"]
    return times
