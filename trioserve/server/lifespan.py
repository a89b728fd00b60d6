"""The app's lifespan. Unlike under hypercorn, an app that fails in it is not served without one."""

from typing import Any, Final

import trio

from trioserve.server.exchange import ASGIApp, Message

SHUTDOWN_S: Final = 10.0
"""Time the app has to wind down once every connection is closed."""


class LifespanFailed(Exception):
    """The app said ``failed``, or returned from its lifespan before it was told to shut down."""


class Lifespan:
    """The app's lifespan call; ``run`` is its task."""

    def __init__(self, app: ASGIApp, state: dict[str, Any]) -> None:
        self._app = app
        self._state = state
        self._asked_start = False
        self._asked_end = False
        self._started = trio.Event()
        self._ending = trio.Event()
        self._ended = trio.Event()

    async def run(self) -> None:
        """Call the app with a lifespan scope.

        Raises:
            LifespanFailed: The app said so, or returned too early.
        """
        scope = {"type": "lifespan", "asgi": {"spec_version": "2.0", "version": "3.0"}, "state": self._state}
        try:
            await self._app(scope, self._receive, self._send)
        finally:
            self._ended.set()
        if not self._ending.is_set():
            raise LifespanFailed("the app returned from its lifespan while it was served")

    async def wait_started(self) -> None:
        """Wait until start-up is complete."""
        await self._started.wait()

    async def shut_down(self) -> None:
        """Tell the app to wind down, and wait for it, at most ``SHUTDOWN_S``."""
        self._ending.set()
        with trio.move_on_after(SHUTDOWN_S):
            await self._ended.wait()

    async def _receive(self) -> Message:
        await trio.lowlevel.checkpoint()
        if not self._asked_start:
            self._asked_start = True
            return {"type": "lifespan.startup"}
        await self._ending.wait()
        if self._asked_end:
            await trio.sleep_forever()
        self._asked_end = True
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        match message["type"]:
            case "lifespan.startup.complete":
                self._started.set()
            case "lifespan.startup.failed" | "lifespan.shutdown.failed":
                raise LifespanFailed(message.get("message", "") or message["type"])
