"""CPU of the server per small JSON request, over connections that are kept."""

import json
import socket
import statistics
from functools import partial
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.http.events import Start
from benchmarks.http.processes import Served, bare, has_peer, peer, product

_NUM_WARM: Final = 200
_NUM_REQUESTS: Final = 1500
_TOKENIZE: Final = ("POST", "/tokenize", {"prompt": "How many tokens is this?"})
_CALLS: Final[tuple[tuple[str, str, dict[str, Any] | None], ...]] = (
    _TOKENIZE,
    ("GET", "/v1/models", None),
    ("POST", "/v1/completions", {"prompt": "One", "max_tokens": 1}),
)


def main(rounds: int, peer_python: str) -> None:
    same_work: dict[str, Start] = {"serving loop": partial(bare, hz=1.0)}
    if has_peer(peer_python):
        same_work["uvicorn + starlette"] = partial(peer, peer_python, hz=1.0)
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name, start in same_work.items():
            with start() as served:
                found.setdefault((name, "the same answer"), []).append(measure(served, *_TOKENIZE))
        with product() as served:
            for method, path, body in _CALLS:
                cost = measure(served, method, path, body)
                found.setdefault(("whole server", f"{method} {path}"), []).append(cost)
    show(found)


def measure(served: Served, method: str, path: str, body: dict[str, Any] | None) -> float:
    """Microseconds of CPU a request, one at a time on one connection."""
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(data)}\r\n\r\n".encode() + data
    with socket.create_connection(("127.0.0.1", served.port)) as sock:
        for _ in range(_NUM_WARM):
            _ask(sock, request)
        before = served.cpu_s()
        for _ in range(_NUM_REQUESTS):
            _ask(sock, request)
        return 1e6 * (served.cpu_s() - before) / _NUM_REQUESTS


def _ask(sock: socket.socket, request: bytes) -> None:
    sock.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += sock.recv(1 << 16)
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"refused: {answer[:500]!r}")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(rest) < length:
        rest += sock.recv(1 << 16)


def show(found: dict[tuple[str, str], list[float]]) -> None:
    table = Table(title="CPU of the serving process a request, us: median (range)")
    for column in ("", "request", "us"):
        table.add_column(column, justify="right" if column == "us" else "left")
    for (name, what), costs in found.items():
        table.add_row(name, what, f"{statistics.median(costs):.0f} ({min(costs):.0f}-{max(costs):.0f})")
    Console(width=100).print(table)
