"""Where the server stands between its start and its end, for everyone who asks: probes, doors, the serve loop.

    STARTING -> READY <-> RECOVERING        the works load, run, are restarted
    any of these -> LAME_DUCK -> CLOSING -> STOPPED
    anything -> FAILED

LAME_DUCK and CLOSING are the two parts of draining: in the first the server still serves everyone while /ready says
503, so that balancers turn away; in the second new requests are refused and the running ones finish.
"""

from enum import Enum
from typing import Final

import trio

from trioserve.errors import Draining, NotReady


class ServerState(Enum):
    """The states of operations: /health names them so."""

    STARTING = "starting"
    READY = "ready"
    RECOVERING = "recovering"
    LAME_DUCK = "lame_duck"
    CLOSING = "closing"
    STOPPED = "stopped"
    FAILED = "failed"


_DRAINING: Final = frozenset({ServerState.LAME_DUCK, ServerState.CLOSING, ServerState.STOPPED})


class Lifecycle:
    """The one place that knows the server's state; moved by verbs.

    The works' own state is kept beside the server's, so that a restart of the works while the server drains ends where
    it should.
    """

    def __init__(self) -> None:
        self._works = ServerState.STARTING
        self._drain: ServerState | None = None
        self._failed = False
        self._changed = trio.Event()
        self.loaded_share: float | None = None
        """Of the weights, in [0, 1], while the works load; None before anything is known of it."""
        self.failure: str | None = None
        """Why the server failed, one sentence for the operator."""
        self.exit_code = 0
        """What the process should end with: 0 clean, 70 engine failed, 75 requests were aborted, 78 bad settings."""

    @property
    def state(self) -> ServerState:
        if self._failed:
            return ServerState.FAILED
        return self._drain or self._works

    @property
    def works(self) -> ServerState:
        """Where the works stand: STARTING, READY or RECOVERING, whatever else becomes of the server."""
        return self._works

    @property
    def is_live(self) -> bool:
        """Whether /live says 200."""
        return self.state is not ServerState.FAILED

    @property
    def is_ready(self) -> bool:
        """Whether /ready says 200."""
        return self.state is ServerState.READY

    @property
    def is_draining(self) -> bool:
        """Whether answers carry ``Connection: close``."""
        return self._drain in _DRAINING

    def check(self) -> None:
        """Let a new request in, or not. RECOVERING lets it wait in the bounded queue.

        Raises:
            NotReady: The model is loading or the engine has failed.
            Draining: Running requests are being finished; no new ones.
        """
        if self._failed:
            raise NotReady("the engine has failed", retry_after_s=5.0)
        if self._drain in (ServerState.CLOSING, ServerState.STOPPED):
            raise Draining("the server is shutting down")
        if self._works is ServerState.STARTING:
            raise NotReady("the model is still loading", retry_after_s=2.0)

    def works_ready(self) -> None:
        """The ranks take plans."""
        self._works, self.loaded_share = ServerState.READY, 1.0
        self._notify()

    def works_lost(self) -> None:
        """The ranks are gone and will be started anew."""
        self._works, self.loaded_share = ServerState.RECOVERING, None
        self._notify()

    def begin_drain(self) -> None:
        """Turn /ready to 503 and go on serving; no effect when already draining."""
        if self._drain is None:
            self._drain = ServerState.LAME_DUCK
            self._notify()

    def begin_closing(self) -> None:
        """Refuse new requests; no effect when already stopped."""
        if self._drain is not ServerState.STOPPED:
            self._drain = ServerState.CLOSING
            self._notify()

    def stop(self) -> None:
        """Everything has ended."""
        self._drain = ServerState.STOPPED
        self._notify()

    def fail(self, reason: str, *, exit_code: int) -> None:
        """Give up for good; the first reason counts."""
        if not self._failed:
            self._failed, self.failure, self.exit_code = True, reason, exit_code
            self._notify()

    async def wait_changed(self) -> ServerState:
        """Wait for the next change of state, and return the state after it."""
        await self._changed.wait()
        return self.state

    async def wait_failed(self) -> None:
        """Wait until the server has failed; for ever if it never does."""
        while not self._failed:
            await self.wait_changed()

    async def wait_draining(self) -> None:
        """Wait until a drain has begun."""
        while self._drain is None:
            await self.wait_changed()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
