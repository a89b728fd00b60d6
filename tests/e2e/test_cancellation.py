"""A client that leaves takes its sequence along, however and whenever it leaves."""

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import Server, running_server, wait_until

ENDLESS = {"prompt": "Once", "max_tokens": 8000, "ignore_eos": True}


def open_request(server: Server, **fields: object) -> socket.socket:
    """A raw connection with one completion request sent."""
    body = json.dumps({**ENDLESS, **fields}).encode()
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    sock.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    return sock


def close(sock: socket.socket) -> None:
    sock.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


WAYS = [close, reset, half_close]


def wait_running(server: Server, count: int) -> None:
    wait_until(lambda: server.health()["num_running"] == count, 10, lambda: f"{server.health()}")


@pytest.mark.parametrize("leave", WAYS)
@pytest.mark.parametrize("stream", [False, True])
def test_leaving_in_the_middle_frees_everything(
    server: Server, leave: Callable[[socket.socket], None], stream: bool
) -> None:
    server.wait_idle()
    sock = open_request(server, stream=stream)
    wait_running(server, 1)
    if stream:
        while b"data: " not in sock.recv(65536):
            pass
    leave(sock)
    server.wait_idle()
    sock.close()


@pytest.fixture(scope="module")
def narrow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One sequence at a time, so that a second request has to wait."""
    settings = {
        "max_num_seqs": 1,
        "max_num_batched_tokens": 64,
        "max_num_queued_reqs": 2,
        "sse_keep_alive_s": 0.2,
    }
    with running_server(tmp_path_factory.mktemp("narrow") / "log", settings=settings) as server:
        yield server


@pytest.mark.parametrize("leave", WAYS)
@pytest.mark.parametrize("stream", [False, True])
def test_leaving_the_queue_before_the_first_token(
    narrow_server: Server, leave: Callable[[socket.socket], None], stream: bool
) -> None:
    narrow_server.wait_idle()
    with open_request(narrow_server, stream=True):
        wait_running(narrow_server, 1)
        waiting = open_request(narrow_server, stream=stream)
        wait_until(lambda: narrow_server.health()["num_waiting"] == 1, 5, lambda: "it does not wait")
        leave(waiting)
        wait_until(lambda: narrow_server.health()["num_waiting"] == 0, 5, lambda: "it still waits")
        assert narrow_server.health()["num_running"] == 1
        waiting.close()
    narrow_server.wait_idle()


def test_a_waiting_stream_is_kept_alive_by_comments(narrow_server: Server) -> None:
    narrow_server.wait_idle()
    with open_request(narrow_server, stream=True):
        wait_running(narrow_server, 1)
        with open_request(narrow_server, stream=True) as waiting:
            received = b""
            while received.count(b": keep-alive\n\n") < 2:
                received += waiting.recv(65536)
            assert b'"text"' not in received
    narrow_server.wait_idle()


def test_a_full_queue_is_a_429_that_says_when_to_come_back(narrow_server: Server) -> None:
    narrow_server.wait_idle()
    with contextlib.ExitStack() as held:
        held.enter_context(open_request(narrow_server, stream=True))
        wait_running(narrow_server, 1)
        for _ in range(2):
            held.enter_context(open_request(narrow_server))
        wait_until(lambda: narrow_server.health()["num_waiting"] == 2, 5, lambda: "they do not wait")
        answer = httpx.post(narrow_server.url + "/v1/completions", json=ENDLESS)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert "the limit is 2" in answer.json()["error"]["message"]
    narrow_server.wait_idle()


def test_a_storm_of_leavers_leaves_nothing(server: Server) -> None:
    server.wait_idle()
    sockets = [open_request(server, stream=i % 2 == 0, n=2) for i in range(40)]
    time.sleep(0.3)
    for i, sock in enumerate(sockets):
        WAYS[i % 3](sock)
    for sock in sockets:
        sock.close()
    server.wait_idle(10)


def test_a_request_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with running_server(tmp_path / "log", settings={"request_timeout_s": 0.5}) as server:
        with open_request(server) as sock:
            assert b" 408 " in sock.recv(65536).split(b"\r\n")[0]
        with open_request(server, stream=True) as sock:
            received = b""
            while b"0\r\n\r\n" not in received:
                data = sock.recv(65536)
                if not data:
                    break
                received += data
            assert b'"error"' in received and b"[DONE]" not in received
        server.wait_idle()
