"""Reads many streams at once in one process, and counts; what is cheap here is not asked of the server."""

import json
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.http.processes import Served

_EVENT = b"data: "


@dataclass
class Streams:
    """Open answers to one request each."""

    selector: selectors.DefaultSelector = field(default_factory=selectors.DefaultSelector)
    counts: list[int] = field(default_factory=list)
    """Events that came, by stream."""

    def read(self, seconds: float) -> int:
        """Read for so long; returns how many events came.

        Raises:
            SystemExit: A stream ended, or was no stream.
        """
        before, until = sum(self.counts), time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for key, _ in self.selector.select(left):
                data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]  # sockets are registered
                if not data or b"\r\n0\r\n\r\n" in data or data.startswith(b"HTTP/1.1 4"):
                    raise SystemExit(f"a stream ended after {self.counts[key.data]} events: {data[-300:]!r}")
                self.counts[key.data] += data.count(_EVENT)
        return sum(self.counts) - before


@contextmanager
def opened(served: Served, num_streams: int, body: dict[str, Any]) -> Iterator[Streams]:
    """So many streams that have all begun."""
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(data)}\r\n\r\n".encode() + data
    streams = Streams(counts=[0] * num_streams)
    with ExitStack() as stack:
        for number in range(num_streams):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            sock.sendall(request)
            sock.setblocking(False)
            streams.selector.register(sock, selectors.EVENT_READ, number)
        deadline = time.monotonic() + 60
        while min(streams.counts) < 3:  # its role, and more than one token
            streams.read(0.1)
            if time.monotonic() > deadline:
                raise SystemExit("not all streams began within a minute")
        yield streams
