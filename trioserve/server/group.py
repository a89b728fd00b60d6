"""``trioserve serve --workers N``: a parent that serves nothing, and N forks of it that serve one address.

The parent binds the address, starts the workers, starts those anew that die, passes notices on, and ends with the worst
of their exit codes. It runs no event loop and no thread, so that a fork of it is as good as a new process, and sooner
there; settings and keys cross by the fork alone.

All workers accept from one queue. A signal to the process group means the same as one to the parent: workers take
notices from their parent only, and drain when it dies.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NoReturn

import trio

from trioserve.engine.restarts import Restarts
from trioserve.errors import SettingsError
from trioserve.server.config import ServerConfig, check_hypercorn
from trioserve.server.lifespan import SHUTDOWN_S
from trioserve.server.run import bind_address
from trioserve.server.serve import (
    ABORT_S,
    EXIT_ABORTED,
    EXIT_FAILED,
    EXIT_SETTINGS,
    ServedApp,
    serve,
)
from trioserve.server.signals import FORCED, Notices, exit_now
from trioserve.server.sockets import Listener
from trioserve.server.stacks import write_stacks
from trioserve.server.systemd import ServiceManager
from trioserve.settings import Settings

logger = logging.getLogger("trioserve.server")

MakeApp = Callable[[int], ServedApp]
"""The app of a worker, by its number from 0; called in the worker's own process."""

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_END_S: Final = ABORT_S + SHUTDOWN_S + 5.0
"""Time a worker has to end once it has aborted its requests."""


def run_group(make_app: MakeApp, settings: Settings) -> int:
    """Serve with ``settings.workers`` processes until they have drained or failed; main thread only.

    Returns:
        The worst of the workers' exit codes (``run.run``): 0, then 75, 128 + n for one killed by signal n while it
        drained, 70, and 78. 70 also when workers died more than ``max_restarts`` times within ten minutes.

    Raises:
        SettingsError: The address cannot be bound, TLS files cannot be used, or the installed hypercorn does not fit.
    """
    check_hypercorn()
    config = ServerConfig.build(settings)
    config.create_ssl_context()  # each worker makes its own; what is wrong is told once
    listeners = [replace(listener, is_group=True) for listener in bind_address(settings, config)]
    try:
        return _Group(make_app, settings, listeners).run()
    finally:
        for listener in listeners:
            listener.unlink()
            listener.sock.close()


@dataclass(frozen=True, slots=True)
class _Child:
    worker: int
    pid: int
    pidfd: int
    control: socket.socket
    """A byte on it is a notice."""

    def close(self) -> None:
        os.close(self.pidfd)
        self.control.close()


class _Group:
    def __init__(self, make_app: MakeApp, settings: Settings, listeners: list[Listener]) -> None:
        self._make_app = make_app
        self._settings = settings
        self._listeners = listeners
        self._manager = ServiceManager.from_environment()
        self._children: dict[int, _Child] = {}  # by worker
        self._start_at = dict.fromkeys(range(settings.workers), 0.0)
        self._restarts = Restarts(settings.max_restarts)
        self._num_notices = 0
        self._kill_at = float("inf")
        self._exit_codes: list[int] = []
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()

    def run(self) -> int:
        """Until no worker is left."""
        self._take_signals()
        while self._children or self._start_at:
            self._start_due()
            for key, _ in self._selector.select(self._patience_s()):
                if isinstance(key.data, _Child):
                    self._on_end(key.data)
                else:
                    self._on_signals()
            if time.monotonic() >= self._kill_at:
                self._kill("did not end in time")
        code = max(self._exit_codes, key=_weight, default=0)
        logger.info("all workers have ended, exit code %d", code)
        return code

    def _take_signals(self) -> None:
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for signum in _SIGNALS:
            signal.signal(signum, lambda *_: None)

    def _patience_s(self) -> float | None:
        until = min([*self._start_at.values(), self._kill_at])
        return None if until == float("inf") else max(0.0, until - time.monotonic())

    # --- starting and ending ---

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in [worker for worker, at in self._start_at.items() if at <= now]:
            del self._start_at[worker]
            self._start(worker)

    def _start(self, worker: int) -> None:
        ours, theirs = socket.socketpair()
        before = signal.pthread_sigmask(
            signal.SIG_BLOCK, _SIGNALS
        )  # the fork has handlers of the parent at first
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._be_worker(worker, theirs, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        child = _Child(worker, pid, os.pidfd_open(pid), ours)
        self._children[worker] = child
        self._selector.register(child.pidfd, selectors.EVENT_READ, child)

    def _be_worker(self, worker: int, parent: socket.socket, mask: set[int | signal.Signals]) -> NoReturn:
        """The life of the fork; its exit code is the server's."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            self._forget_parents_affairs()
            notices = Notices()
            notices.obey(parent)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            app, config = self._make_app(worker), ServerConfig.build(self._settings)
            manager = self._manager if worker == 0 else None  # it has the engine
            code = trio.run(
                partial(
                    serve,
                    app,
                    self._settings,
                    self._listeners,
                    config=config,
                    notices=notices,
                    manager=manager,
                )
            )
        except SettingsError as exc:
            sys.stderr.write(f"trioserve: {exc}\n")
            code = EXIT_SETTINGS
        except BaseException:
            logger.exception("worker %d failed", worker)
        exit_now(code)

    def _forget_parents_affairs(self) -> None:
        """Else a sibling's end of the parent would stay open here when the parent dies."""
        self._selector.close()
        self._wake.close()
        self._waker.close()
        for child in self._children.values():
            child.close()

    def _on_end(self, child: _Child) -> None:
        self._selector.unregister(child.pidfd)
        _, status = os.waitpid(child.pid, 0)
        child.close()
        del self._children[child.worker]
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if self._num_notices:
            self._exit_codes.append(128 - code if code < 0 else code)
        elif code in (EXIT_FAILED, EXIT_SETTINGS):
            logger.error("worker %d %s: all end", child.worker, how)
            self._end_all(code)
        else:
            self._replace(child.worker, how)

    def _replace(self, worker: int, how: str) -> None:
        now = time.monotonic()
        delay_s = self._restarts.delay_s(now)
        if delay_s is None:
            logger.critical(
                "worker %d %s; %d failures within 10 minutes: all end", worker, how, self._restarts.num_recent
            )
            self._end_all(EXIT_FAILED)
        else:
            logger.error("worker %d %s and is started anew in %.2f s", worker, how, delay_s)
            self._start_at[worker] = now + delay_s

    def _end_all(self, code: int) -> None:
        self._exit_codes.append(code)
        self._notify(signal.SIGTERM)

    # --- notices ---

    def _on_signals(self) -> None:
        for number in self._wake.recv(64):
            signum = signal.Signals(number)
            if signum is signal.SIGQUIT:
                write_stacks()
                self._signal(signum)
            elif signum in _SIGNALS:
                self._notify(signum)

    def _notify(self, signum: signal.Signals) -> None:
        """Tell every worker: the first notice drains, the second aborts, the third ends all at once."""
        self._num_notices += 1
        self._start_at.clear()
        if self._num_notices >= FORCED:
            self._signal(signal.SIGKILL)
            exit_now(128 + signum)
        settings = self._settings
        drain_s = settings.drain_delay_s + settings.drain_timeout_s if self._num_notices == 1 else 0.0
        self._kill_at = time.monotonic() + drain_s + _END_S
        for child in self._children.values():
            with contextlib.suppress(OSError):  # it has ended
                child.control.send(bytes([signum]))

    def _kill(self, why: str) -> None:
        self._kill_at = float("inf")
        for worker in self._children:
            logger.error("worker %d %s and is killed", worker, why)
        self._signal(signal.SIGKILL)

    def _signal(self, signum: signal.Signals) -> None:
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, signum)


def _weight(code: int) -> int:
    """How bad an exit code is."""
    mild_to_bad = (0, EXIT_ABORTED, None, EXIT_FAILED, EXIT_SETTINGS)
    return mild_to_bad.index(code if code in mild_to_bad else None)
