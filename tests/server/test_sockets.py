"""Binding and listening."""

import resource
import socket
from pathlib import Path

import pytest
import trio

from tests.server.serving import Client, serving
from trioserve.errors import SettingsError
from trioserve.server.sockets import Listener, bind, bind_unix, raise_file_limit


def test_a_port_in_use_is_told_in_one_sentence() -> None:
    (taken,) = bind("127.0.0.1", 0)
    taken.sock.listen()
    port = taken.sock.getsockname()[1]
    with pytest.raises(SettingsError, match=rf"^127\.0\.0\.1:{port} is in use: .*--port\.$"):
        bind("127.0.0.1", port)
    taken.sock.close()


@pytest.mark.parametrize(
    ("host", "sentence"),
    [("192.0.2.1", "not an address of this machine"), ("no.such.host.invalid", "no known host")],
)
def test_a_host_that_is_not_ours_is_told_in_one_sentence(host: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        bind(host, 8000)


def test_port_0_takes_a_free_port_and_the_same_for_every_address() -> None:
    listeners = bind("localhost", 0)
    assert len({listener.sock.getsockname()[1] for listener in listeners}) == 1
    assert listeners[0].sock.getsockname()[1] > 0
    for listener in listeners:
        listener.sock.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6_is_written_in_brackets() -> None:
    try:
        (listener,) = bind("[::1]", 0)
    except SettingsError:
        pytest.skip("no IPv6 loopback")
    assert listener.url == f"http://[::1]:{listener.sock.getsockname()[1]}"
    listener.sock.close()


async def test_a_unix_socket_is_listened_on_and_gone_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listeners = bind_unix(path)
    assert listeners[0].url == f"http://unix:{path}"
    async with serving(listeners=listeners) as server:
        with pytest.raises(SettingsError, match=r"is in use: stop what listens there"):
            bind_unix(path)
        async with Client(await trio.open_unix_socket(str(path))) as client:
            assert (await client.fetch("/hello")).status == 200
        assert await server.drain() == 0
    assert not path.exists()


def test_a_socket_that_nobody_listens_on_any_more_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    (listener,) = bind_unix(path)
    listener.sock.close()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("file", "is there and no socket: choose another path"),
        ("x" * 200, "cannot be bound: AF_UNIX path too long"),
        ("no/folder/socket", "cannot be bound: No such file or directory"),
    ],
)
def test_a_unix_socket_that_cannot_be_bound_is_a_sentence(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    with pytest.raises(SettingsError, match=sentence):
        bind_unix(tmp_path / name)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"


async def test_connections_inherit_the_kernels_deadline() -> None:
    (listener,) = bind("127.0.0.1", 0)
    async with serving(listeners=[listener], send_timeout_s=7):
        assert listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000


async def test_a_socket_that_was_handed_over_keeps_its_queue_for_the_successor() -> None:
    (owner,) = bind("127.0.0.1", 0)
    first = Listener(owner.sock.dup(), is_shared=True)
    async with serving(listeners=[first]) as server:
        assert await server.drain() == 0
    with socket.create_connection(owner.sock.getsockname()) as waiting:
        waiting.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
        async with serving(listeners=[Listener(owner.sock, is_shared=True)]) as server:
            async with await server.connect() as client:  # by then the one that waited has been served
                await client.fetch("/hello")
            assert waiting.recv(100).startswith(b"HTTP/1.1 200")


def test_as_many_files_as_the_system_gives_are_taken_and_some_are_kept() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        num_connections = raise_file_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert hard == before[1] and soft == min(hard, 65536)
        assert num_connections == soft - 128
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
