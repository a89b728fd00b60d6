"""Servers in processes of their own, and the CPU that they use."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_PEER: Final = Path(__file__).with_name("peer.py")
_START_TIMEOUT_S: Final = 180.0
_PROCESS_CLOCK: Final = 2
"""What Linux calls the clock of a process' running time, in the low bits of a clock's id."""


@dataclass(frozen=True)
class Served:
    """A server that is ready."""

    port: int
    pid: int

    def cpu_s(self) -> float:
        """Seconds that its process has run, all threads together; its children not counted."""
        return time.clock_gettime(~self.pid << 3 | _PROCESS_CLOCK)


def has_peer(python: str) -> bool:
    """Whether ``python`` has the peer; says so where it has not."""
    probe = [python, "-c", "import starlette, uvicorn"]
    if subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode == 0:
        return True
    print(f"{python} has no uvicorn and starlette: ours is measured alone (--peer-python).", file=sys.stderr)
    return False


@contextmanager
def peer(python: str, *, hz: float) -> Iterator[Served]:
    """uvicorn + starlette, with what ``peer.py`` serves."""
    with _running([python, str(_PEER)], ready="/ready", hz=hz) as served:
        yield served


@contextmanager
def bare(*, hz: float) -> Iterator[Served]:
    """Our serving loop with the same application."""
    with _running([sys.executable, "-m", "benchmarks.http.bare"], ready="/ready", hz=hz) as served:
        yield served


@contextmanager
def product(*flags: str) -> Iterator[Served]:
    """``trioserve serve``: the built-in model, if ``flags`` name no other."""
    command = [
        sys.executable,
        "-m",
        "trioserve.cli",
        "serve",
        "--drain-delay-s",
        "0",
        "--log-level",
        "warning",
    ]
    with _running([*command, *flags], ready="/ready") as served:
        yield served


@contextmanager
def _running(command: list[str], *, ready: str, hz: float | None = None) -> Iterator[Served]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    arguments = ["--port", str(port), *([] if hz is None else ["--hz", str(hz)])]
    process = subprocess.Popen([*command, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _answers(port, ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{' '.join(command)} did not become ready")
            time.sleep(0.1)
        yield Served(port, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _answers(port: int, path: str) -> bool:
    """Whether ``path`` is answered with a 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % path.encode())
            return sock.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
