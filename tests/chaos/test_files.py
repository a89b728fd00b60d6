"""Connections up to the last file that the system gives: the server's own affairs go on."""

import os
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx

from tests.chaos.clients import COMPLETIONS
from tests.e2e.harness import TRIOSERVE, free_port, running_server, wait_until

_LIMIT, _NUM_CONNECTIONS = 300, 400
_LIMITED = (
    f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({_LIMIT}, {_LIMIT})); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def test_connections_leave_files_for_new_ranks_and_are_served_in_turn(tmp_path: Path) -> None:
    """A rank that could not be started anew for want of files ended the server."""
    port = free_port()
    command = (sys.executable, "-c", _LIMITED, *TRIOSERVE)
    settings = {"port": port, "host": "127.0.0.1", "metrics_port": 0}
    with (
        ExitStack() as opened,
        running_server(
            tmp_path / "log", command=command, address=(), settings=settings, wait_ready=False
        ) as server,
    ):
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: "serving builtin" in server.log, 60, lambda: server.log)
        client = opened.enter_context(httpx.Client(base_url=url, timeout=60))
        assert client.get("/ready").status_code == 200
        crowd = [
            opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            for _ in range(_NUM_CONNECTIONS)
        ]
        wait_until(lambda: "a connection waits" in server.log, 20, lambda: "all are taken")
        os.kill(server.rank_pids()[0], signal.SIGKILL)
        body = {"prompt": "Hi", "max_tokens": 2}
        wait_until(lambda: client.post(COMPLETIONS, json=body).status_code == 200, 30, lambda: server.log)
        for sock in crowd[:-1]:
            sock.close()
        crowd[-1].sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert crowd[-1].recv(4096).startswith(b"HTTP/1.1 200")
    assert "Traceback" not in server.log
