"""CPU of the server per streamed event, while all streams are open."""

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.http.processes import Served, bare, has_peer, peer, product
from benchmarks.http.streams import opened

STREAMS: Final = (64, 256)
HZ: Final = 50.0
"""Events a second of each stream, but for the product's: those come as fast as its model makes them."""
_WINDOW_S: Final = 3.0
BODY: Final[dict[str, Any]] = {
    "messages": [{"role": "user", "content": "Tell me a long story."}],
    "stream": True,
    "max_tokens": 4000,
    "ignore_eos": True,
    "temperature": 1.0,
}
Start = Callable[[], AbstractContextManager[Served]]


def main(rounds: int, peer_python: str) -> None:
    servers: dict[str, Start] = {"serving loop": partial(bare, hz=HZ)}
    if has_peer(peer_python):
        servers["uvicorn + starlette"] = partial(peer, peer_python, hz=HZ)
    servers["whole server, built-in model"] = partial(product, "--max-num-seqs", str(max(STREAMS)))
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for name, start in servers.items():
            with start() as served:
                for num_streams in STREAMS:
                    found.setdefault((name, num_streams), []).append(measure(served, num_streams, BODY))
    show(found)


def measure(served: Served, num_streams: int, body: dict[str, Any]) -> tuple[float, float]:
    """Microseconds of CPU an event, and events a second."""
    with opened(served, num_streams, body) as streams:
        streams.read(0.5)
        before = served.cpu_s()
        num_events = streams.read(_WINDOW_S)
        spent = served.cpu_s() - before
    return 1e6 * spent / num_events, num_events / _WINDOW_S


def show(found: dict[tuple[str, int], list[tuple[float, float]]]) -> None:
    table = Table(title="CPU of the serving process an event, us: median (range)")
    for column in ("", "streams", "us an event", "events/s"):
        table.add_column(column, justify="left" if not column else "right")
    for (name, num_streams), runs in found.items():
        costs = [cost for cost, _ in runs]
        spread = f"{statistics.median(costs):.1f} ({min(costs):.1f}-{max(costs):.1f})"
        table.add_row(name, str(num_streams), spread, f"{statistics.median(rate for _, rate in runs):,.0f}")
    Console(width=100).print(table)
