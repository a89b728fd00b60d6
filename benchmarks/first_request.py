"""What ``use_warmup`` is worth: how long the first requests of a server take with it and without.

Starts ``trioserve serve`` again and again, both ways in turn, and measures at each start the time until /ready says
200, the first request, one like it, and a first burst of requests at once.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the server; times in seconds."""

    ready_s: float
    """From the start of the process to 200 from /ready."""
    first_s: float
    second_s: float
    burst_s: float
    """Until the last of a burst was answered."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=5, help="starts each way [5]")
    parser.add_argument("--prompt-tokens", type=int, default=400, help="tokens of a prompt [400]")
    parser.add_argument("--burst", type=int, default=32, help="requests at once [32]")
    parser.add_argument("flags", nargs="*", help="flags for the server, behind --")
    options = parser.parse_args()
    found: dict[bool, list[Start]] = {False: [], True: []}
    for _ in range(options.starts):
        for use_warmup, starts in found.items():
            starts.append(measure(use_warmup, options))
    table = Table(
        "use_warmup", "ready, s", "first request, ms", "second, ms", f"burst of {options.burst}, ms"
    )
    for use_warmup, starts in found.items():
        table.add_row(
            str(use_warmup).lower(),
            f"{statistics.median(start.ready_s for start in starts):.2f}",
            *(
                _milliseconds([getattr(start, name) for start in starts])
                for name in ("first_s", "second_s", "burst_s")
            ),
        )
    Console().print(
        f"median (least to most) of {options.starts} starts, {options.prompt_tokens} tokens in, 2 out"
    )
    Console().print(table)
    return 0


def measure(use_warmup: bool, options: argparse.Namespace) -> Start:
    """Start a server, ask it, and end it."""
    port = _free_port()
    command = ["--port", str(port), f"--use-warmup={use_warmup}", "--drain-delay-s=0", *options.flags]
    started_at = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "trioserve.cli", "serve", *command],
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).resolve().parent.parent,
        env={name: value for name, value in os.environ.items() if not name.startswith("TRIOSERVE_")},
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            _wait_ready(client, process)
            ready_s = time.perf_counter() - started_at
            first_s, second_s = (_ask(client, 7 * i, options.prompt_tokens) for i in range(2))
            burst_at = time.perf_counter()
            with ThreadPoolExecutor(options.burst) as pool:
                list(pool.map(lambda i: _ask(client, 100 + i, options.prompt_tokens), range(options.burst)))
            return Start(ready_s, first_s, second_s, time.perf_counter() - burst_at)
    finally:
        process.terminate()
        process.wait(30)


def _ask(client: httpx.Client, first_id: int, num_tokens: int) -> float:
    """Seconds for two tokens after a prompt that shares no beginning with another's."""
    asked_at = time.perf_counter()
    prompt = [300 + first_id, *range(300, 299 + num_tokens)]
    answer = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 2, "ignore_eos": True})
    answer.raise_for_status()
    return time.perf_counter() - asked_at


def _wait_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            if client.get("/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise SystemExit(f"the server ended with exit code {process.returncode} before it was ready")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _milliseconds(seconds: list[float]) -> str:
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    return f"{middle * 1e3:.0f} ({low * 1e3:.0f}-{high * 1e3:.0f})"


if __name__ == "__main__":
    sys.exit(main())
