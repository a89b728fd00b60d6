"""Starts the real server as its users do, and watches it from outside."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.certificates import Certificate

START_TIMEOUT_S = 60.0
HYPERCORN = (sys.executable, "-m", "hypercorn", "trioserve.app:app")
HYPERCORN_TRIO = (sys.executable, "-m", "hypercorn", "-k", "trio", "trioserve.app:app")
TRIOSERVE = (sys.executable, "-m", "trioserve.cli", "serve")


@dataclass(frozen=True)
class Server:
    """A server process on a port of this machine."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path
    certificate: Certificate | None = None
    """With which it speaks TLS."""

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> httpx.Client:
        """A client that trusts this server's certificate."""
        verify = True if self.certificate is None else self.certificate.trusting()
        return httpx.Client(base_url=self.url, verify=verify, timeout=30, **options)

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def health(self) -> dict[str, Any]:
        body: dict[str, Any] = httpx.get(self.url + "/health", timeout=10).json()
        return body

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until /ready says 200."""

        def is_ready() -> bool:
            assert self.process.poll() is None, (
                f"the server ended with {self.process.returncode}:\n{self.log}"
            )
            try:
                with self.client() as client:
                    return client.get("/ready").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_ready, timeout_s, lambda: f"the server is not ready:\n{self.log}")

    def wait_idle(self, timeout_s: float = 5.0) -> None:
        """Wait until nothing runs or waits and every block is free."""

        def is_idle() -> bool:
            health = self.health()
            return (health["num_running"], health["num_waiting"]) == (0, 0) and health[
                "num_free_blocks"
            ] == health["num_blocks"]

        wait_until(is_idle, timeout_s, lambda: f"the server is not idle: {self.health()}")

    def rank_pids(self) -> list[int]:
        """The processes of its ranks."""
        return [pid for pid in descendants(self.process.pid) if b"trioserve.worker" in command_line(pid)]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Its ranks do nothing while the block is open: what they were at is not over before it was looked at."""
        pids = self.rank_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def serving_pid(self) -> int:
        """The process that answers HTTP: the parent of the rank."""
        return parent_of(self.rank_pids()[0])

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for the end; returns the exit code."""
        return self.process.wait(timeout_s)


@contextmanager
def running_server(
    log_path: Path,
    *,
    command: tuple[str, ...] = HYPERCORN,
    address: tuple[str, ...] | None = None,
    settings: Mapping[str, object] | None = None,
    wait_ready: bool = True,
    certificate: Certificate | None = None,
) -> Iterator[Server]:
    """A server for as long as the block is open; ended by SIGTERM, and checked to have gone in good order.

    Args:
        address: What the command is told of where to listen, if not on ``Server.port``.
    """
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIOSERVE_")}
    chosen = {"drain_delay_s": 0, "num_threads": 1, **(settings or {})}
    environment |= {"TRIOSERVE_" + name.upper(): str(value) for name, value in chosen.items()}
    if address is None:
        is_ours = "serve" in command
        address = ("--port", str(port)) if is_ours else ("--bind", f"127.0.0.1:{port}")
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [*command, *address],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=log_path.parent,
        )
    server = Server(process, port, log_path, certificate)
    try:
        if wait_ready:
            server.wait_ready()
        yield server
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server that may have ended already, its ranks with it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)
            raise


def wait_until(condition: Any, timeout_s: float, complaint: Any) -> float:
    """Poll ``condition`` until it holds; returns the seconds that took."""
    started_at = time.monotonic()
    while not condition():
        assert time.monotonic() - started_at < timeout_s, complaint()
        time.sleep(0.02)
    return time.monotonic() - started_at


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def descendants(pid: int) -> list[int]:
    """The processes below ``pid``."""
    children = [
        int(entry.name) for entry in Path("/proc").glob("[0-9]*") if parent_of(int(entry.name)) == pid
    ]
    return children + [below for child in children for below in descendants(child)]


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return -1


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
