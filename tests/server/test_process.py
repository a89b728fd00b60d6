"""The server as a process: the literal commands, signals, exit codes."""

import contextlib
import resource
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.serving import Process, fetch, hypercorn, open_connection, request, trioserve


@pytest.mark.parametrize(
    "options",
    [(), ("-w", "0"), ("-k", "trio"), ("-k", "trio", "-w", "0")],
    ids=lambda options: " ".join(options) or "default",
)
def test_hypercorn_serves_under_trio_and_drains(options: tuple[str, ...]) -> None:
    """SIGTERM to the process that the shell started lets a running stream finish."""
    with hypercorn(*options) as server:
        server.wait_serving()
        with open_connection(server.port) as stream:
            stream.sendall(request("GET", "/stream?n=30&dt=0.02"))
            assert b"200" in stream.recv(65536)
            server.send_signal()
            body = b"".join(iter(lambda: stream.recv(65536), b""))
            assert b"data: [DONE]" in body
        assert server.wait() == 0


def test_a_signal_to_the_process_group_counts_once() -> None:
    """hypercorn's worker and its master both get it, as from systemd, docker and Ctrl-C."""
    with hypercorn() as server:
        server.wait_serving()
        with open_connection(server.port) as stream:
            stream.sendall(request("GET", "/stream?n=30&dt=0.02"))
            assert b"200" in stream.recv(65536)
            server.send_group_signal(signal.SIGINT)
            assert b"data: [DONE]" in b"".join(iter(lambda: stream.recv(65536), b""))
        assert server.wait() == 0


def test_a_second_signal_to_hypercorns_master_aborts() -> None:
    with hypercorn(TRIOSERVE_DRAIN_DELAY_S="60") as server:
        server.wait_serving()
        with open_connection(server.port) as stream:
            stream.sendall(request("GET", "/stream?n=3000"))
            assert b"200" in stream.recv(65536)
            server.send_signal()
            _wait_for(lambda: fetch(server.port, "/ready") == (503, b"lame_duck"))
            server.send_signal()
            assert b'"error"' in b"".join(iter(lambda: stream.recv(65536), b""))
        server.wait()
        assert "exit code 75" in server.errors()


def test_another_app_that_imports_ours_is_served_as_hypercorn_does() -> None:
    with hypercorn("-w", "0", app="tests.server.other_app:app") as server:
        server.wait_serving("/")
        assert fetch(server.port, "/") == (200, b"other")
        server.send_signal()
        server.wait()


def test_a_killed_master_leaves_no_server_behind() -> None:
    with hypercorn() as server:
        server.wait_serving()
        server.send_signal(signal.SIGKILL)
        _wait_for(lambda: fetch(server.port, "/ready")[0] == 0)


@pytest.mark.parametrize(
    ("options", "environ", "sentence"),
    [
        (("-w", "0"), {"TRIOSERVE_PORT": "here"}, "trioserve: Bad settings: port"),
        (("-w", "0", "-k", "trio"), {"TINY_FAULT": "settings"}, "trioserve: The model is not there"),
        (("-w", "0"), {"TRIOSERVE_WORKERS": "2"}, "trioserve: workers = 2 needs `trioserve serve`"),
        (("-w", "0", "--certfile", "no.pem", "--keyfile", "no.pem"), {}, "trioserve: The TLS certificate"),
    ],
)
def test_bad_settings_end_with_one_sentence_and_78(
    options: tuple[str, ...], environ: dict[str, str], sentence: str
) -> None:
    with hypercorn(*options, **environ) as server:
        assert server.wait(15) == 78
        errors = server.errors()
        assert errors.startswith(sentence)
        assert errors.count("\n") == 1


def test_several_workers_are_refused_in_one_sentence() -> None:
    with hypercorn("-w", "2") as server:
        server.wait(15)
        assert "--workers 2 would load the model 2 times" in server.errors()


def test_the_second_signal_aborts_and_the_exit_code_says_so() -> None:
    with trioserve() as server:
        server.wait_serving()
        with open_connection(server.port) as stream:
            stream.sendall(request("GET", "/stream?n=3000"))
            assert b"200" in stream.recv(65536)
            server.send_signal(signal.SIGINT)
            _wait_for(lambda: fetch(server.port, "/ready")[0] == 0)
            server.send_signal(signal.SIGTERM)
            assert b'"error"' in b"".join(iter(lambda: stream.recv(65536), b""))
        assert server.wait() == 75


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_third_signal_ends_the_process_at_once(signum: signal.Signals) -> None:
    with trioserve(TRIOSERVE_DRAIN_DELAY_S="60") as server:
        server.wait_serving()
        with open_connection(server.port) as stubborn:
            stubborn.sendall(request("GET", "/stubborn"))
            server.send_signal(signum)
            _wait_for(lambda: fetch(server.port, "/ready") == (503, b"lame_duck"))
            server.send_signal(signum)
            _wait_for(lambda: fetch(server.port, "/ready")[0] == 0)
            server.send_signal(signum)
            assert server.wait(1) == 128 + signum


def test_a_signal_while_the_app_starts_ends_it_cleanly() -> None:
    with trioserve(TINY_START_S="60") as server:
        _wait_for(lambda: _catches_sigterm(server))
        server.send_signal()
        assert server.wait() == 0


def test_more_connections_than_files_wait_and_are_served_when_others_have_gone() -> None:
    with trioserve() as server:
        server.wait_serving()
        num_files = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (num_files + 10, num_files + 10))
        with contextlib.ExitStack() as opened:
            early = [opened.enter_context(open_connection(server.port)) for _ in range(40)]
            late = early[-1]
            late.sendall(request("GET", "/hello", "Connection: close"))
            late.settimeout(0.5)
            with pytest.raises(TimeoutError):
                late.recv(1)
            late.settimeout(5)
            for sock in early[:-1]:
                sock.close()
            assert b"".join(iter(lambda: late.recv(65536), b"")).endswith(b"hello")
        server.send_signal()
        assert server.wait() == 0
        assert "a connection waits: EMFILE" in server.errors()


def test_sigquit_writes_the_stacks_and_serves_on() -> None:
    with trioserve() as server:
        server.wait_serving()
        with open_connection(server.port) as sleeper:
            sleeper.sendall(request("GET", "/sleep?s=60"))
            time.sleep(0.1)
            server.send_signal(signal.SIGQUIT)
            assert fetch(server.port, "/hello") == (200, b"hello")
        server.send_signal()
        assert server.wait() == 0
        errors = server.errors()
        assert "in TinyApp._get_sleep" in errors
        assert "most recent call first" in errors


def test_a_port_in_use_is_one_sentence_and_no_traceback() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with trioserve(TRIOSERVE_PORT=str(taken.getsockname()[1])) as server:
            assert server.wait(15) == 78
            errors = server.errors()
            assert "is in use" in errors
            assert "Traceback" not in errors


def _wait_for(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def _catches_sigterm(server: Process) -> bool:
    status = Path(f"/proc/{server.pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught & 1 << (signal.SIGTERM - 1))
