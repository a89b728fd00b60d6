"""Streams of others while hostile schemas, regular expressions and grammars come in, one after the other.

The attacker would sit on another machine. Here it is a process that runs only where nobody else wants to, and sends so
many requests a second. Measured with the built-in model, whose steps take less than a millisecond, and with one of the
shape of SmolLM2-135M. Each hostile request is refused in the end, for an id that no model has: one that is served
costs its prompt, as any other does.
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

from benchmarks.cpu.checkpoints import default_cache, make_checkpoint
from benchmarks.structured.schemas import body, hostile
from benchmarks.structured.serving import Served, load, running

_CLIENTS = 8
_TOKENS = 128
_NO_TOKEN = 10**8
_DURATION_S = 16
"""Of a load: time for every form, and enough steps for a 99th percentile."""
_EVERY_S = 0.5
"""Between an answer to the attacker and its next request."""


def main(rounds: int) -> None:
    """Measure in turns and print the percentiles and their ratio."""
    table = Table("model", "attack", "inter-token, ms", "quiet", "attacked", "ratio")
    with running() as served:
        told = _measure(served, "built-in", rounds, table)
    with running("--model", str(make_checkpoint("S", default_cache()))) as served:
        told += _measure(served, "135M", rounds, table)
    Console().print(table)
    print(told)


def _measure(served: Served, model: str, rounds: int, table: Table) -> str:
    """Add the rows of a model; returns what the attacker was told."""
    told = ""
    _load(served)
    for kind in hostile(0):
        quiet, attacked, answers = (
            list[dict[str, float]](),
            list[dict[str, float]](),
            list[tuple[int, float]](),
        )
        for _ in range(rounds):
            quiet.append(_load(served))
            with _attacked(served.url, kind) as of_round:
                attacked.append(_load(served))
            assert len(of_round) >= len(hostile(0)[kind]), "the load was over before all forms had come"
            answers += of_round
        for percentile in ("p50", "p99"):
            ratios = [
                there[percentile] / here[percentile] for here, there in zip(quiet, attacked, strict=True)
            ]
            table.add_row(
                model,
                kind,
                percentile,
                *(
                    f"{1e3 * statistics.median(point[percentile] for point in points):.1f}"
                    for points in (quiet, attacked)
                ),
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            )
        statuses = dict(Counter(status for status, _ in answers))
        told += f"{model}, {kind}: {statuses}, the slowest after {max(took for _, took in answers):.2f} s\n"
    return told


def _load(served: Served) -> dict[str, float]:
    point = load(served, clients=_CLIENTS, tokens=_TOKENS, fields={}, duration_s=_DURATION_S)
    times: dict[str, float] = point["itl_s"]
    return times


@contextmanager
def _attacked(url: str, kind: str) -> Iterator[list[tuple[int, float]]]:
    """Under attack while the block is open; status and seconds of each answer are there when it is left."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    attacker = context.Process(target=_attack, args=(url, kind, theirs))
    attacker.start()
    answers: list[tuple[int, float]] = []
    try:
        ours.recv()
        yield answers
    finally:
        ours.send("enough")
        answers += ours.recv()
        attacker.join()


def _attack(url: str, kind: str, pipe: Connection) -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    answers: list[tuple[int, float]] = []
    with httpx.Client(base_url=url, timeout=120) as client:
        pipe.send("ready")
        while not pipe.poll():
            for fields in hostile(time.monotonic_ns())[kind]:
                data = body({**fields, "stop_token_ids": [_NO_TOKEN]}, max_tokens=1)
                started = time.perf_counter()
                answer = client.post("/v1/chat/completions", content=data)
                answers.append((answer.status_code, time.perf_counter() - started))
                if pipe.poll(_EVERY_S):
                    break
    pipe.recv()
    pipe.send(answers)
