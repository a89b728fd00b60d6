"""Processes of ours that speak frames over a socket pair, as their parent sees them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Collection, Mapping
from typing import Final, Generic, TypeVar

import trio

from trioserve.core.frames import FrameReader

_READ_BYTES: Final = 1 << 16
_LAST_WORDS_S: Final = 1.0
"""Time that a process has to end by itself once its socket is closed."""

T = TypeVar("T")


class SocketClosed(Exception):
    """The process has closed its end, most likely because it is gone."""


class Process:
    """A process ``python -m MODULE FD ...``, where FD is the socket that it speaks on."""

    def __init__(
        self,
        module: str,
        sock: socket.socket,
        *arguments: str,
        env: Mapping[str, str],
        inherited_fds: Collection[int] = (),
        is_quiet: bool = False,
    ) -> None:
        """Start it. ``sock`` may be closed here then.

        Args:
            inherited_fds: Files that it has open by the same numbers.
            is_quiet: Whether what it writes to its standard error is dropped.
        """
        # Not trio.lowlevel.open_process: it forks in a thread of the pool, and a process that asked to die with its
        # parent would be killed when that thread ends. A group of its own keeps a terminal's Ctrl-C away; a session of
        # its own would make its niceness mean nothing to us, where the kernel shares the CPUs out by session.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(sock.fileno()), *arguments],
            pass_fds=[sock.fileno(), *inherited_fds],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if is_quiet else None,
            process_group=0,
        )
        self._pidfd = os.pidfd_open(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait_ended(self) -> None:
        """Wait for the process to end, by whatever cause."""
        await trio.lowlevel.wait_readable(self._pidfd)

    def send_signal(self, signum: signal.Signals) -> None:
        """Send ``signum``; no effect on a process that has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signum)

    async def aclose(self) -> None:
        """Wait for the end of a process whose socket was closed; kill it if it has not ended within a second."""
        with trio.CancelScope(shield=True):
            with trio.move_on_after(_LAST_WORDS_S):
                await self.wait_ended()
            self.send_signal(signal.SIGKILL)
            await self.wait_ended()
        self._process.wait()
        os.close(self._pidfd)

    async def end(self) -> str:
        """How a process that has closed its socket came to its end, in words."""
        with trio.move_on_after(_LAST_WORDS_S):
            await self.wait_ended()
        code = self._process.poll()
        if code is None:
            return "closed its socket"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


class FrameStream(Generic[T]):
    """A stream socket that sends encoded frames and receives messages of type ``T``."""

    def __init__(self, stream: trio.SocketStream, message_type: type[T] | object) -> None:
        self._stream = stream
        self._reader: FrameReader[T] = FrameReader(message_type)
        self._received: deque[T] = deque()

    async def send_bytes(self, frame: bytes) -> None:
        """Send an encoded frame.

        Raises:
            SocketClosed: Nobody reads any more.
        """
        try:
            await self._stream.send_all(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise SocketClosed from exc

    async def receive(self) -> T:
        """Wait for the next message.

        Raises:
            SocketClosed: There will be none.
            WireError: It sent something that is no message.
        """
        while not self._received:
            try:
                data = await self._stream.receive_some(_READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                raise SocketClosed
            self._received += self._reader.feed(data)
        return self._received.popleft()

    async def aclose(self) -> None:
        """Close it at once."""
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)


class Child(FrameStream[T]):
    """A process ``python -m MODULE FD`` and the stream socket to it; it sends messages of type ``T``."""

    def __init__(
        self,
        module: str,
        message_type: type[T] | object,
        *,
        env: Mapping[str, str],
        first_frame: bytes = b"",
        inherited_fds: Collection[int] = (),
        is_quiet: bool = False,
    ) -> None:
        """Start it. ``first_frame``: what it finds in its socket, at most some KB; the rest as for ``Process``."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            ours.sendall(first_frame)
            self.process = Process(module, theirs, env=env, inherited_fds=inherited_fds, is_quiet=is_quiet)
        super().__init__(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), message_type)

    async def aclose(self) -> None:
        """Close the socket, which ends the process; kill it if it has not ended within a second."""
        await super().aclose()
        await self.process.aclose()
