"""What a service manager hands over and is told: sockets that outlive the server, states, signs of life."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.server.serving import Process, fetch, hypercorn, open_connection, request, trioserve
from trioserve.errors import SettingsError
from trioserve.server.sockets import bind, handed_over
from trioserve.server.systemd import ServiceManager, take_sockets

WATCHDOG_S = 0.2
ACTIVATED = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "tests.server.apps"])
"""
"""As systemd does it: the socket is file 3 and the process that was meant is named."""


class Manager:
    """A datagram socket that remembers what it was told."""

    def __init__(self, address: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self._sock.settimeout(5.0)
        self.told: list[str] = []
        self.env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}

    def wait_told(self, line: str) -> None:
        """Wait until a message with ``line`` has come."""
        while True:
            self.told += (lines := self._sock.recv(4096).decode("ascii").splitlines())
            if line in lines:
                return


@contextmanager
def managing(address: str) -> Iterator[Manager]:
    manager = Manager(address)
    with manager._sock:
        yield manager


@pytest.mark.parametrize("start", [trioserve, hypercorn])
def test_a_service_manager_is_told_the_whole_life(start: Callable[..., Process], tmp_path: Path) -> None:
    """Also by hypercorn's worker, of which the manager knows only the master."""
    with managing(str(tmp_path / "notify")) as manager, start(**manager.env) as server:
        manager.wait_told("READY=1")
        assert fetch(server.port, "/ready")[0] == 200
        assert "STATUS=ready" in manager.told
        for _ in range(3):
            manager.wait_told("WATCHDOG=1")
        server.send_signal()
        manager.wait_told("STOPPING=1")
        assert server.wait() == 0


def test_a_name_without_a_file_is_an_address_too() -> None:
    with managing(f"@trioserve-{os.getpid()}") as manager, trioserve(**manager.env) as server:
        manager.wait_told("READY=1")
        server.send_signal()
        assert server.wait() == 0


def test_a_server_whose_loop_stands_still_gives_no_sign_of_life(tmp_path: Path) -> None:
    with managing(str(tmp_path / "notify")) as manager, trioserve(**manager.env) as server:
        manager.wait_told("READY=1")
        server.send_signal(signal.SIGSTOP)
        manager._sock.settimeout(WATCHDOG_S)
        with contextlib.suppress(TimeoutError):
            for _ in range(3):  # one may have been on its way
                manager.wait_told("WATCHDOG=1")
            pytest.fail("it lives on")
        server.send_signal(signal.SIGCONT)
        manager.wait_told("WATCHDOG=1")


def test_a_manager_that_is_gone_disturbs_nobody(tmp_path: Path) -> None:
    with trioserve(NOTIFY_SOCKET=str(tmp_path / "gone")) as server:
        server.wait_serving()
        server.send_signal()
        assert server.wait() == 0
        assert "the service manager cannot be told anything: No such file" in server.errors()


def test_what_a_manager_says_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "LISTEN_FDS": "1"}
    for name, value in {**said, "LISTEN_PID": "1", "LISTEN_FDNAMES": "a"}.items():
        monkeypatch.setenv(name, value)
    ServiceManager.from_environment()
    assert take_sockets(secure=False) == [], "they were meant for process 1"
    assert not {"LISTEN_PID", "LISTEN_FDNAMES", *said} & set(os.environ)


# ---- sockets that are handed over ------------------------------------------------------------------------------------


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(128)
        yield sock


def by_number(sock: socket.socket) -> Process:
    command = [sys.executable, "-m", "tests.server.apps"]
    return Process(
        command,
        sock.getsockname()[1],
        pass_fds=(sock.fileno(),),
        TRIOSERVE_FD=str(sock.fileno()),
    )


def by_systemd(sock: socket.socket) -> Process:
    command = [sys.executable, "-c", ACTIVATED, str(sock.fileno())]
    return Process(command, sock.getsockname()[1], pass_fds=(sock.fileno(),))


def by_hypercorn(sock: socket.socket) -> Process:
    command = [sys.executable, "-m", "hypercorn", "tests.server.apps:app", "-b", f"fd://{sock.fileno()}"]
    return Process(command, sock.getsockname()[1], pass_fds=(sock.fileno(),))


@pytest.mark.parametrize("start", [by_number, by_systemd, by_hypercorn])
def test_a_restart_on_one_socket_loses_nobody(start: Callable[[socket.socket], Process]) -> None:
    """The old server goes before the new one is there: who comes meanwhile waits in the socket."""
    answers, failures, is_over = [0], list[str](), threading.Event()

    def ask(port: int) -> None:
        while not is_over.is_set():
            try:
                with open_connection(port) as sock:
                    sock.settimeout(20)
                    sock.sendall(request("GET", "/stream?n=5&dt=0.02", "Connection: close"))
                    whole = b"data: [DONE]" in b"".join(iter(lambda: sock.recv(65536), b""))
            except OSError as exc:
                failures.append(repr(exc))
            else:
                answers[0] += 1
                if not whole:
                    failures.append("cut")

    with listening() as sock:
        clients = [threading.Thread(target=ask, args=(sock.getsockname()[1],)) for _ in range(4)]
        with start(sock) as old:
            old.wait_serving()
            for client in clients:
                client.start()
            time.sleep(0.3)
            old.send_signal()
            assert old.wait() == 0
        before = answers[0]
        with start(sock) as new:
            new.wait_serving()
            while answers[0] < before + 12:
                time.sleep(0.02)
            is_over.set()
            for client in clients:
                client.join()
            new.send_signal()
            assert new.wait() == 0
    assert failures == []


def test_what_takes_no_connections_is_a_sentence(tmp_path: Path) -> None:
    with (
        (tmp_path / "file").open("wb") as file,
        pytest.raises(SettingsError, match=r"^fd \d+ is no open socket"),
    ):
        handed_over(file.fileno())
    with pytest.raises(SettingsError, match=r"^fd 987 is no open socket: Bad file descriptor\.$"):
        handed_over(987)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with pytest.raises(SettingsError, match=r"is no stream socket: hand over one that takes connections\.$"):
        handed_over(datagrams.detach())


def test_a_socket_that_is_handed_over_stays_its_owners() -> None:
    (bound,) = bind("127.0.0.1", 0)
    bound.sock.listen()
    listener = handed_over(os.dup(bound.sock.fileno()))
    assert listener.port == bound.port
    listener.sock.close()
    with socket.create_connection(("127.0.0.1", bound.port or 0)):
        pass
    bound.sock.close()
