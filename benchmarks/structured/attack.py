"""Streams of others while hostile schemas, regular expressions and grammars come in, one after the other.

The attacker would sit on another machine. Here it is a process that yields to everybody else, and what it sends is made
before anything is measured.
"""

import multiprocessing
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.structured.schemas import body, hostile
from benchmarks.structured.serving import Served, load, running

_CLIENTS = 8
_REQUESTS = 64
_TOKENS = 128
_NUM_VARIANTS = 4
_NICENESS = 19


def main(rounds: int) -> None:
    """Measure in turns and print the percentiles and their ratio."""
    found: dict[str, list[dict[str, float]]] = {"quiet": [], "attacked": []}
    statuses: Counter[int] = Counter()
    slowest_s = 0.0
    with running() as served:
        _load(served)
        for _ in range(rounds):
            found["quiet"].append(_load(served))
            with _attacked(served.url) as answers:
                found["attacked"].append(_load(served))
            statuses.update(status for status, _ in answers)
            slowest_s = max([slowest_s, *(took for _, took in answers)])
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
    print(f"answers to the attacker: {dict(statuses)}, the slowest after {slowest_s:.2f} s")


def _load(served: Served) -> dict[str, float]:
    point = load(served, clients=_CLIENTS, requests=_REQUESTS, tokens=_TOKENS, fields={})
    times: dict[str, float] = point["itl_s"]
    return times


@contextmanager
def _attacked(url: str) -> Iterator[list[tuple[int, float]]]:
    """Under attack while the block is open; status and seconds of each answer are there when it is left."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    attacker = context.Process(target=_attack, args=(url, theirs))
    attacker.start()
    answers: list[tuple[int, float]] = []
    try:
        ours.recv()
        yield answers
    finally:
        ours.send("enough")
        answers += ours.recv()
        attacker.join()


def _attack(url: str, pipe: Connection) -> None:
    os.nice(_NICENESS)
    first = time.monotonic_ns()
    bodies = [
        body(fields, max_tokens=1) for number in range(_NUM_VARIANTS) for fields in hostile(first + number)
    ]
    answers: list[tuple[int, float]] = []
    with httpx.Client(base_url=url, timeout=120) as client:
        pipe.send("ready")
        for data in bodies:
            started = time.perf_counter()
            answer = client.post("/v1/chat/completions", content=data)
            answers.append((answer.status_code, time.perf_counter() - started))
            if pipe.poll():
                break
    pipe.recv()
    pipe.send(answers)
