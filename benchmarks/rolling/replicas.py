"""One server process after another at one place, and what their access logs say."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import trio

from benchmarks.load.wire import Client, Hub

ROOT = Path(__file__).resolve().parents[2]
_READY_WITHIN_S = 120.0
_ASK_EVERY_S = 0.05
_TAIL_CHARACTERS = 2000
_ANSWERED = re.compile(r" POST /v1/\S+ 200 [\d.]+ ms (\S+?)\"?\}?$", re.MULTILINE)


class ReplicaError(Exception):
    """A server did not become ready or did not end; the message has the end of its log."""


class Replica:
    """A place where one server follows another: a port of its own, or a socket that several share."""

    def __init__(
        self, name: str, folder: Path, hub: Hub, *, shared: socket.socket | None, drain_delay_s: float
    ) -> None:
        """
        Args:
            shared: The listening socket that all servers of this place are handed; None: each binds the place's port.
            drain_delay_s: Time for whoever is in front to notice.
        """
        self.name = name
        self.port = free_port() if shared is None else int(shared.getsockname()[1])
        self.probe_port = free_port()
        self.log_path = folder / f"{name}.log"
        self._shared = shared
        self._drain_delay_s = drain_delay_s
        self._probe = Client(hub, f"http://127.0.0.1:{self.probe_port}")
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start a server here and wait until it is ready.

        Raises:
            ReplicaError: It never is.
        """
        self._process = process = self._spawn()
        with trio.move_on_after(_READY_WITHIN_S):
            while process.poll() is None:
                if await self._is_ready():
                    return
                await trio.sleep(_ASK_EVERY_S)
        raise ReplicaError(f"{self.name} did not become ready:\n{tail(self.log_path)}")

    async def stop(self, signum: signal.Signals = signal.SIGTERM) -> float:
        """Send ``signum``, and wait for the end; returns the seconds it took.

        Raises:
            ReplicaError: It did not end in good order, unless it was killed.
        """
        process = self._process
        assert process is not None, "nothing was started"
        begin = time.monotonic()
        process.send_signal(signum)
        code = await trio.to_thread.run_sync(process.wait)
        self._process = None
        if code and signum != signal.SIGKILL:
            raise ReplicaError(f"{self.name} ended with exit code {code}:\n{tail(self.log_path)}")
        return time.monotonic() - begin

    def kill(self) -> None:
        """End whatever is left of it."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def answered(self) -> list[str]:
        """The ids of the requests that its servers answered with 200, once for each time."""
        return _ANSWERED.findall(self.log_path.read_text("utf-8", "replace"))

    def _spawn(self) -> subprocess.Popen[bytes]:
        flags = ["--metrics-port", str(self.probe_port), "--drain-delay-s", str(self._drain_delay_s)]
        where = ["--port", str(self.port)] if self._shared is None else ["--fd", str(self._shared.fileno())]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "trioserve.cli", "serve", *where, *flags, "--log-format", "json"],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=() if self._shared is None else (self._shared.fileno(),),
            )

    async def _is_ready(self) -> bool:
        try:
            status, _ = await self._probe.get("/ready")
        except OSError:
            return False
        return status == 200


def tail(path: Path) -> str:
    """The end of a log."""
    return path.read_text("utf-8", "replace")[-_TAIL_CHARACTERS:]


def free_port() -> int:
    """A port of loopback that nobody has at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
