"""Clients that are there when a server's state changes, and what they see of it."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.e2e.harness import Server, wait_until

BODY: dict[str, Any] = {"prompt": "Hi", "max_tokens": 2}
ENDLESS: dict[str, Any] = {"prompt": "Once", "max_tokens": 8000, "ignore_eos": True, "stream": True}


def probed(server: Server) -> tuple[int, int, int, str]:
    """The statuses of /live, /ready and /health, and the state that the last one names."""
    with server.client() as client:
        answers = [client.get(path) for path in ("/live", "/ready", "/health")]
    live, ready, health = (answer.status_code for answer in answers)
    return live, ready, health, answers[2].json()["state"]


def refuses(server: Server) -> bool:
    """Whether it takes no connections any more."""
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5):
            return False
    except ConnectionRefusedError:
        return True


def exit_code(server: Server, within_s: float = 60.0) -> int:
    """How it ended. hypercorn's master ends with 0 whatever its worker's code was, which is in the log."""
    code = server.wait(within_s)
    words = [str(word) for word in server.process.args]  # type: ignore[union-attr]
    if "hypercorn" not in words or "-w" in words:
        return code
    told = re.findall(r"exit code (\d+)", server.log)
    return int(told[-1]) if told else code


class Stream(NamedTuple):
    """A stream that a thread reads."""

    thread: threading.Thread
    lines: list[str]


def started(server: Server, **fields: Any) -> Stream:
    """A stream that runs."""
    lines: list[str] = []

    def read() -> None:
        with httpx.stream(
            "POST", server.url + "/v1/completions", json={**ENDLESS, **fields}, timeout=60
        ) as answer:
            for line in filter(None, answer.iter_lines()):
                lines.append(line)  # noqa: PERF402  # others watch it grow

    thread = threading.Thread(target=read)
    thread.start()
    wait_until(lambda: len(lines) > 2, 20, lambda: "the stream does not start")
    return Stream(thread, lines)


def the_whole_stream(stream: Stream, within_s: float = 60.0) -> list[str]:
    """Its lines, once it has ended; in the last one is an error or the end, and only there."""
    stream.thread.join(within_s)
    assert not stream.thread.is_alive(), "the stream has not ended"
    *chunks, last = stream.lines
    assert not any('"error"' in line or "[DONE]" in line for line in chunks)
    return [*chunks, last]


def connections_at_rest(server: Server, count: int) -> list[socket.socket]:
    """Each has had an answer and could ask again."""
    socks = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(count)]
    for sock in socks:
        sock.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
    for sock in socks:
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")
    return socks


@contextmanager
def stalled_reader(server: Server) -> Iterator[None]:
    """A client that has asked for more than its window takes, and reads none of it."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(_request("/v1/completions", {**ENDLESS, "logprobs": 5, "n": 8}))
        wait_until(lambda: _is_full(sock), 30, lambda: "the window is not full")
        yield


def _is_full(sock: socket.socket) -> bool:
    """Whether the server's end holds what this one has no room for."""
    local = sock.getsockname()[1]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
    return any(
        int(row[2].rpartition(":")[2], 16) == local and int(row[4].partition(":")[0], 16) > 10_000
        for row in rows
    )


@dataclass(frozen=True)
class Answer:
    """What came."""

    status: int
    headers: dict[str, str]
    body: str


class Late:
    """A connection on which a request has begun to arrive, so that it is not at rest."""

    def __init__(self, server: Server, path: str, body: dict[str, Any] | None = None) -> None:
        is_post = path.startswith("/v1")
        data = _request(path, BODY if body is None else body) if is_post else _get(path)
        self._sock = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        self._sock.sendall(data[:10])
        self._rest = data[10:]

    def send_rest(self) -> None:
        """The whole request."""
        rest, self._rest = self._rest, b""
        self._sock.sendall(rest)

    def finish(self) -> Answer:
        """Send what is left of the request, and read its answer."""
        self.send_rest()
        data = b""
        with self._sock:
            while not _is_whole(data):
                more = self._sock.recv(65536)
                assert more, f"the connection ended behind {data!r}"
                data += more
        head, _, body = data.decode().partition("\r\n\r\n")
        first, *lines = head.split("\r\n")
        return Answer(int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body)


def _is_whole(data: bytes) -> bool:
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return length is not None and len(body) >= int(length[1])


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def _request(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data
