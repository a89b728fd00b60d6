"""The bound on requests that are served at a time."""

from typing import Any, Final

from quart import request
from quart_trio import QuartTrio

from trioserve.errors import QueueFull

_ADMITTED: Final = "trioserve.admitted"


class Concurrency:
    """Counts POST requests from their head to the last byte of their answer, or until their client is gone."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._num_running = 0

    def guard(self, app: QuartTrio) -> None:
        """Let ``app`` answer 429 to what is above the limit."""
        if self._limit is None:
            return
        serve = app.asgi_app

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            try:
                await serve(scope, receive, send)
            finally:
                self._num_running -= _ADMITTED in scope

        app.asgi_app = counted  # type: ignore[method-assign] # what Quart offers for this
        app.before_request(self._admit)

    async def _admit(self) -> None:
        if request.method != "POST":
            return
        if self._limit is not None and self._num_running >= self._limit:
            raise QueueFull(f"{self._num_running} requests are served, the limit is {self._limit}")
        self._num_running += 1
        request.scope[_ADMITTED] = True  # type: ignore[typeddict-unknown-key] # ours
