"""The service manager that started us, if one did: sockets it hands over, and what it is told.

What it says stands in variables of the environment, which are read once and removed: they mean this process, not those
that it starts. Source: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
"""

import logging
import os
import socket
from typing import Final

import trio

from trioserve.engine.lifecycle import Lifecycle, ServerState
from trioserve.server.sockets import Listener, handed_over

logger = logging.getLogger("trioserve.server")

_FIRST_FD: Final = 3
_DRAINING: Final = frozenset({ServerState.LAME_DUCK, ServerState.CLOSING, ServerState.STOPPED})


def take_sockets(*, secure: bool) -> list[Listener]:
    """The sockets that were handed to this process, in their order; none where nobody handed any over.

    Raises:
        SettingsError: One of them takes no connections.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return [handed_over(_FIRST_FD + i, secure=secure) for i in range(int(count))]


class ServiceManager:
    """Whom to tell how the server stands; tells nobody where there is no such one."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        """
        Args:
            address: Path of a datagram socket, or @ and a name without a file.
            watchdog_s: Time without a sign of life after which it ends the server; None: it never does.
        """
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_s = watchdog_s

    @classmethod
    def from_environment(cls) -> "ServiceManager":
        """The one that started this process, or the process that started it.

        A watchdog is meant for whoever it names; hypercorn's master does not run the server, its worker does.
        """
        address = os.environ.pop("NOTIFY_SOCKET", "")
        watched, time_us = os.environ.pop("WATCHDOG_PID", ""), os.environ.pop("WATCHDOG_USEC", "")
        is_watched = time_us.isdecimal() and watched in ("", str(os.getpid()), str(os.getppid()))
        return cls(address, int(time_us) / 1e6 if is_watched and int(time_us) else None)

    async def keep_told(self, lifecycle: Lifecycle) -> None:
        """Tell every change of ``lifecycle``, and signs of life as long as the server lives and this loop runs."""
        if not self._address:
            return
        async with trio.open_nursery() as nursery:
            if self._watchdog_s is not None:
                nursery.start_soon(self._ping, lifecycle, self._watchdog_s / 2)
            state = lifecycle.state
            while True:
                self._tell(_words(state))
                state = await lifecycle.wait_changed()

    async def _ping(self, lifecycle: Lifecycle, interval_s: float) -> None:
        while True:
            if lifecycle.is_live:
                self._tell("WATCHDOG=1")
            await trio.sleep(interval_s)

    def _tell(self, words: str) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(words.encode("ascii"), self._address)
        except OSError as exc:
            logger.warning("the service manager cannot be told anything: %s", exc.strerror or exc)


def _words(state: ServerState) -> str:
    lines = [f"STATUS={state.value.replace('_', ' ')}"]
    if state is ServerState.READY:
        lines.append("READY=1")
    elif state in _DRAINING:
        lines.append("STOPPING=1")
    return "\n".join(lines)
