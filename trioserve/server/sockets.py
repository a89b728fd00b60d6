"""Listening sockets: bound early, so that a port in use is told at once; listening once the app has started."""

import contextlib
import errno
import ipaddress
import os
import resource
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from hypercorn.config import Config, Sockets
from hypercorn.utils import repr_socket_addr

from trioserve.errors import SettingsError

_REASONS: Final = {
    errno.EADDRINUSE: "is in use: stop what listens there or choose another {flag}",
    errno.EACCES: "needs privileges: choose a {flag} from 1024 on",
    errno.EADDRNOTAVAIL: "is not an address of this machine: choose another --host",
}


_MAX_FILES: Final = 1 << 16
"""More than connections that one process can serve."""
_OWN_FILES: Final = 128
"""That are no connections: ranks and other processes, the database, listeners."""


def raise_file_limit() -> int:
    """Have as many files as the system lets this process have; returns how many of them may be connections.

    The rest is for what the server does itself: a rank that cannot be started anew for want of files would end it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    limit = _MAX_FILES if soft == resource.RLIM_INFINITY else soft
    return max(limit - _OWN_FILES, limit // 2)


@dataclass(frozen=True, slots=True)
class Listener:
    """One bound socket."""

    sock: socket.socket
    secure: bool = False
    """Whether its connections speak TLS."""
    is_shared: bool = False
    """Whether another process owns the socket and keeps its queue for a successor: it is never shut down here."""
    is_group: bool = False
    """Whether the other processes of this server accept from it too: it is shut when all of them drain."""
    path: Path | None = None
    """The file of a Unix socket that goes with it."""
    inode: int = 0
    """Of that file, by which it is told from one that took its place."""

    @property
    def url(self) -> str:
        scheme = "https" if self.secure else "http"
        return f"{scheme}://{repr_socket_addr(self.sock.family, self.sock.getsockname())}"

    @property
    def host(self) -> str | None:
        """The address it is bound to; None for a socket of another kind."""
        return self.sock.getsockname()[0] if self.sock.family in (socket.AF_INET, socket.AF_INET6) else None

    @property
    def port(self) -> int | None:
        return None if self.host is None else self.sock.getsockname()[1]

    @property
    def is_open(self) -> bool:
        return self.sock.fileno() >= 0

    def listen(self, backlog: int, *, send_timeout_s: float) -> None:
        """Let connections in; they inherit the kernel's own deadline for peers that acknowledge nothing."""
        self.sock.setblocking(False)
        self.sock.set_inheritable(False)  # the ranks must not hold the port
        if self.sock.family != socket.AF_UNIX and send_timeout_s:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(send_timeout_s * 1000))
        self.sock.listen(backlog)

    def close(self, *, shut: bool = True) -> None:
        """Take no more connections, and wake who waits for one; ``shut`` refuses them whoever else holds the socket."""
        if self.sock.fileno() < 0:
            return
        if shut:
            self.unlink()  # while none can have taken its place: that takes a socket that refuses
        trio.lowlevel.notify_closing(self.sock)
        if shut and not self.is_shared:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def unlink(self) -> None:
        """Remove the file of a Unix socket, unless it is gone or another server's by now."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                if self.path.stat().st_ino == self.inode:
                    self.path.unlink()


def bind(host: str, port: int, *, secure: bool = False, flag: str = "--port") -> list[Listener]:
    """Bind every address of ``host``; with port 0 all get the same free one. ``::`` takes IPv4 too.

    Args:
        flag: Which setting an error should name.

    Raises:
        SettingsError: The address is in use, not ours or unknown; one sentence with what to change.
    """
    host = host.strip("[]")
    try:
        infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise SettingsError(f"{host!r} is no known host: correct --host.") from exc
    bound: list[Listener] = []
    fault: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(infos):
        number = bound[0].sock.getsockname()[1] if bound else port
        try:
            bound.append(Listener(_bound(family, (address[0], number, *address[2:])), secure=secure))
        except OSError as exc:
            fault = exc
            if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # localhost where there is no IPv6
                break
    if fault is not None and (not bound or fault.errno == errno.EADDRINUSE):
        for listener in bound:
            listener.sock.close()
        reason = _REASONS.get(fault.errno or 0, f"cannot be bound: {os.strerror(fault.errno or 0)}")
        reason = reason.replace("{flag}", flag)
        raise SettingsError(f"{_written(host)}:{port} {reason}.") from fault
    return bound


def bind_unix(path: Path, *, secure: bool = False) -> list[Listener]:
    """Bind a Unix socket; a file that a server left behind there without listening any more gives way.

    Raises:
        SettingsError: Another server listens there, something else lies there, or it cannot be bound.
    """
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        raise SettingsError(f"uds = '{path}' is there and no socket: choose another path.")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_listened_on(path):
            raise SettingsError(f"uds = '{path}' is in use: stop what listens there or choose another path.")
        path.unlink(missing_ok=True)
        sock.bind(str(path))
    except SettingsError:
        sock.close()
        raise
    except OSError as exc:  # a path that is too long has no errno
        sock.close()
        raise SettingsError(f"uds = '{path}' cannot be bound: {exc.strerror or exc}.") from exc
    return [Listener(sock, secure=secure, path=path, inode=path.stat().st_ino)]


def handed_over(fd: int, *, secure: bool = False) -> Listener:
    """The stream socket that whoever started this process left open as ``fd``; he keeps it for a successor.

    Raises:
        SettingsError: There is none.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        raise SettingsError(f"fd {fd} is no open socket: {exc.strerror}.") from exc
    if sock.type != socket.SOCK_STREAM:
        sock.close()
        raise SettingsError(f"fd {fd} is no stream socket: hand over one that takes connections.")
    return Listener(sock, secure=secure, is_shared=True)


def _is_listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def from_hypercorn(sockets: Sockets, config: Config) -> list[Listener]:
    """The sockets that hypercorn has bound; ``fd://`` ones belong to whoever handed them over.

    When our settings asked for TLS and not hypercorn's, it has bound all as if there were none.
    """
    secure, plain = sockets.secure_sockets, sockets.insecure_sockets
    if config.ssl_enabled and not secure:
        secure, plain = plain, []
    return [
        *_listeners(secure, config.bind, secure=True),
        *_listeners(plain, config.insecure_bind if config.ssl_enabled else config.bind, secure=False),
    ]


def _listeners(sockets: Sequence[socket.socket], binds: Sequence[str], *, secure: bool) -> list[Listener]:
    return [
        Listener(sock, secure=secure, is_shared=bind.startswith("fd://"))
        for sock, bind in zip(sockets, binds, strict=False)  # without TLS none is secure
    ]


def _bound(family: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _written(host: str) -> str:
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).version == 6:
            return f"[{host}]"
    return host
