"""What stands between clients and replicas: nginx, HAProxy, each with the configuration of deploy/, or nothing."""

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.rolling.replicas import ROOT, ReplicaError, free_port, tail
from tests.deploy import proxies

FRONTS = ("nginx", "haproxy", "handover")
"""The last: no proxy, one socket that is handed from server to server."""

_DEPLOY = ROOT / "deploy"
_SERVERS = re.compile(r"^( *server )(?:\w+ )?127\.0\.0\.1:\d+(.*)$", re.MULTILINE)
_LISTENS_WITHIN_S, _ASK_EVERY_S = 10.0, 0.05
_DOOR = "127.0.0.1:8000"


def is_available(front: str) -> bool:
    return front == "handover" or proxies.program(front) is not None


@contextmanager
def running(front: str, folder: Path, ports: Sequence[int]) -> Iterator[int]:
    """A proxy before the servers at ``ports``, for as long as the block is open; gives the port that clients ask."""
    port = free_port()
    make = _nginx if front == "nginx" else _haproxy
    with (folder / f"{front}.log").open("wb") as log:
        process = subprocess.Popen(
            make(folder, port, ports), env=proxies.environment(), stdout=log, stderr=log, cwd=folder
        )
        try:
            _wait_listening(process, port, folder / f"{front}.log")
            yield port
        finally:
            process.terminate()
            process.wait()


def _wait_listening(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    for _ in range(int(_LISTENS_WITHIN_S / _ASK_EVERY_S)):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(_ASK_EVERY_S)
    raise ReplicaError(f"the proxy does not listen:\n{tail(log_path)}")


def _nginx(folder: Path, port: int, ports: Sequence[int]) -> list[str]:
    site, config = folder / "site.conf", folder / "nginx.conf"
    text = (_DEPLOY / "nginx" / "trioserve.conf").read_text("utf-8")
    site.write_text(_with_servers(text, port, [f"127.0.0.1:{server}" for server in ports]), "utf-8")
    config.write_text(proxies.nginx_config(folder, site), "utf-8")
    return [proxies.program("nginx") or "nginx", "-p", str(folder), "-c", str(config)]


def _haproxy(folder: Path, port: int, ports: Sequence[int]) -> list[str]:
    config = folder / "haproxy.cfg"
    text = (_DEPLOY / "haproxy" / "haproxy.cfg").read_text("utf-8")
    servers = [f"replica{i} 127.0.0.1:{server}" for i, server in enumerate(ports)]
    config.write_text(_with_servers(text, port, servers), "utf-8")
    return [proxies.program("haproxy") or "haproxy", "-db", "-f", str(config)]


def _with_servers(text: str, port: int, servers: Sequence[str]) -> str:
    """``text`` with these servers in the place of its own, and its door at ``port``."""
    lines = list(_SERVERS.finditer(text))
    assert lines, "the configuration names no server"
    begin, end = lines[0], lines[-1]
    ours = "\n".join(f"{begin[1]}{server}{begin[2]}" for server in servers)
    return (text[: begin.start()] + ours + text[end.end() :]).replace(_DOOR, f"127.0.0.1:{port}")
