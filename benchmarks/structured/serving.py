"""A server of ours for the length of a measurement, and load on it."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S = 180
_OF_A_PROCESS = 2
"""Which clock, in the lowest bits of a clock's number; those above are of the process (clock_getcpuclockid)."""


@dataclass(frozen=True)
class Served:
    """A server that is ready."""

    url: str
    pid: int

    def rank_cpu_s(self) -> float:
        """Seconds of CPU that the threads of its rank have used."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split()
        ranks = [pid for pid in listed if b"trioserve.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return sum(_cpu_s(pid) for pid in ranks)

    def front_cpu_s(self) -> float:
        """Seconds of CPU that the threads of HTTP and engine have used."""
        return _cpu_s(str(self.pid))


@contextmanager
def running(*flags: str) -> Iterator[Served]:
    """``trioserve serve`` with the built-in model."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    command = [sys.executable, "-m", "trioserve.cli", "serve", "--port", str(port), "--drain-delay-s", "0"]
    process = subprocess.Popen(
        [*command, "--log-level", "warning", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    served = Served(f"http://127.0.0.1:{port}", process.pid)
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _is_ready(served.url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server did not become ready")
            time.sleep(0.2)
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def load(
    served: Served,
    *,
    clients: int,
    tokens: int,
    fields: dict[str, Any],
    requests: int | None = None,
    duration_s: float | None = None,
) -> dict[str, Any]:
    """Stream answers of ``tokens`` tokens to closed-loop clients, so many or so long; the report's load point."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "serve.py"), "--url", served.url]
        command += ["--concurrency", str(clients), "--warmup", "0"]
        command += ["--requests", str(requests)] if duration_s is None else ["--duration", str(duration_s)]
        command += ["--input-tokens", "32", "--output-tokens", str(tokens), "--seed", "7"]
        command += ["--extra-body", json.dumps(fields), "--json", str(report)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        point: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["points"][0]
        return point


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url + "/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _cpu_s(pid: str) -> float:
    """By the clock of the process, which counts threads that have ended too; that of ``stat`` has ticks of 10 ms."""
    return time.clock_gettime((~int(pid) << 3) | _OF_A_PROCESS)
