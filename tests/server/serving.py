"""Runs a server for a test, in this process or in one of its own, and talks to it by raw sockets."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

import h11
import trio

from tests.server.apps import TinyApp
from trioserve.server.config import ServerConfig
from trioserve.server.serve import serve
from trioserve.server.signals import Notices
from trioserve.server.sockets import Listener
from trioserve.server.sockets import bind as bind_listeners
from trioserve.settings import Settings

ROOT = Path(__file__).parents[2]
QUICK = {"drain_delay_s": 0.0, "drain_timeout_s": 2.0}


class Server:
    """A server in this process."""

    def __init__(self, app: Any, port: int, notices: Notices) -> None:
        self.app = app
        self.port = port
        self.notices = notices
        self.exit_code: int | None = None
        self.ended = trio.Event()

    async def connect(self) -> "Client":
        return Client(await trio.open_tcp_stream("127.0.0.1", self.port))

    async def drain(self, within_s: float = 3.0) -> int:
        """Tell it to drain, and wait for its exit code."""
        self.notices.tell()
        with trio.fail_after(within_s):
            await self.ended.wait()
        assert self.exit_code is not None
        return self.exit_code


@asynccontextmanager
async def serving(
    app: Any = None,
    *,
    configure: Callable[[ServerConfig], None] = lambda config: None,
    listeners: list[Listener] | None = None,
    **settings: Any,
) -> AsyncIterator[Server]:
    """Serve ``app`` on a free port, drained quickly at the end of the block."""
    made = Settings(**{**QUICK, **settings})
    app = TinyApp() if app is None else app
    config = ServerConfig.build(made)
    configure(config)
    listeners = bind_listeners("127.0.0.1", 0) if listeners is None else listeners
    server = Server(app, listeners[0].sock.getsockname()[1], Notices())

    async def run(task_status: trio.TaskStatus[list[str]]) -> None:
        server.exit_code = await serve(
            app, made, listeners, config=config, notices=server.notices, task_status=task_status
        )
        server.ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        yield server
        if not server.ended.is_set():
            while server.notices.count < 2:  # a third would end this process
                server.notices.tell()
            with trio.fail_after(8):
                await server.ended.wait()


class Client:
    """One raw connection. Leaves the block: closes it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._rest = b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await trio.aclose_forcefully(self.stream)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def get(self, path: str, *headers: str) -> None:
        await self.send(request("GET", path, *headers))

    async def answer(self, within_s: float = 2.0) -> "Answer":
        """Read one whole response; bytes after it stay for the next one."""
        connection = h11.Connection(h11.CLIENT)
        connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
        connection.send(h11.EndOfMessage())
        if self._rest:
            connection.receive_data(self._rest)
        status, headers, body = 0, {}, b""
        with trio.fail_after(within_s):
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await self.stream.receive_some())
                elif isinstance(event, h11.Response):
                    status = event.status_code
                    headers = {name.decode(): value.decode() for name, value in event.headers}
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    break
        self._rest = connection.trailing_data[0]
        return Answer(status, headers, body)

    async def fetch(self, path: str, *headers: str) -> "Answer":
        await self.get(path, *headers)
        return await self.answer()

    async def read_some(self, within_s: float = 2.0) -> bytes:
        with trio.fail_after(within_s):
            return bytes(await self.stream.receive_some())

    async def read_to_end(self, within_s: float = 2.0) -> bytes:
        """Everything until the server closes; a reset raises."""
        data = self._rest
        with trio.fail_after(within_s):
            while more := await self.stream.receive_some():
                data += more
        return bytes(data)

    async def reset(self) -> None:
        """Close so that the server gets a reset."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        await trio.aclose_forcefully(self.stream)


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Process:
    """A server in a process group of its own, as a shell or systemd would start it."""

    def __init__(
        self, command: list[str], port: int, *, pass_fds: tuple[int, ...] = (), **environ: str
    ) -> None:
        self.port = port
        self.started = time.monotonic()
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TRIOSERVE_DRAIN_DELAY_S": "0", **environ}
        self._popen = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
            pass_fds=pass_fds,
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def send_signal(self, signum: signal.Signals = signal.SIGTERM) -> None:
        self._popen.send_signal(signum)

    def send_group_signal(self, signum: signal.Signals = signal.SIGTERM) -> None:
        os.killpg(self._popen.pid, signum)

    def wait(self, within_s: float = 5.0) -> int:
        return self._popen.wait(within_s)

    def errors(self) -> str:
        """What it wrote to standard error; call it once, after the end."""
        assert self._popen.stderr is not None
        return self._popen.stderr.read()

    def wait_serving(self, path: str = "/ready", status: int = 200, within_s: float = 15.0) -> None:
        """Wait until ``path`` is answered with ``status``."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            assert self._popen.poll() is None, self.errors()
            if fetch(self.port, path)[0] == status:
                return
            time.sleep(0.02)
        raise AssertionError(f"{path} never said {status}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._popen.poll() is None:
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        assert self._popen.stderr is not None
        self._popen.stderr.close()


def hypercorn(*options: str, app: str = "tests.server.apps:app", **environ: str) -> Process:
    """``hypercorn`` with ``app`` and options, on a free port."""
    port = free_port()
    command = [sys.executable, "-m", "hypercorn", app, "-b", f"127.0.0.1:{port}", *options]
    return Process(command, port, pass_fds=(), **environ)


def trioserve(**environ: str) -> Process:
    """The small app as ``trioserve serve`` would serve it."""
    port = free_port()
    return Process(
        [sys.executable, "-m", "tests.server.apps"],
        port,
        pass_fds=(),
        **{"TRIOSERVE_PORT": str(port), **environ},
    )


def fetch(port: int, path: str) -> tuple[int, bytes]:
    """A blocking GET on a new connection; status 0 when nobody is there."""
    try:
        with open_connection(port) as sock:
            sock.sendall(request("GET", path, "Connection: close"))
            data = b"".join(iter(lambda: sock.recv(65536), b""))
    except OSError:
        return 0, b""
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@contextmanager
def open_connection(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        yield sock


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
