"""The usual event's way: written to its client's socket in the moment in which the engine tells of the step.

A stream's task sleeps meanwhile. It wakes for what is not usual: a first or last delta, what waits for others, a client
that does not keep up, silence, the deadline.
"""

import math
from typing import Any, Self

import trio
from quart import Request

from trioserve.core.extensions import OUTLET, Outlet
from trioserve.engine.mailbox import Deltas
from trioserve.http.event_writer import EventWriter


class Shortcut:
    """Writes the events of one stream past its task."""

    def __init__(self, writer: EventWriter, outlet: Outlet | None) -> None:
        self.told_at = -math.inf
        """On trio's clock, when something was written last."""
        self._writer = writer
        self._outlet = outlet

    @classmethod
    def of(cls, request: Request, writer: EventWriter) -> Self:
        """That of ``request``; where its connection lends no outlet it takes nothing."""
        extensions: Any = request.scope.get("extensions") or {}
        return cls(writer, extensions.get(OUTLET))

    def take(self, deltas: Deltas) -> bool:
        """Write the events that tell ``deltas``, if all of them are usual and the client keeps up."""
        outlet = self._outlet
        if outlet is None or not outlet.is_clear:
            return False
        for _, delta in deltas:
            if delta.finish_reason is not None or delta.prompt_logprobs:
                return False
        if data := b"".join([self._writer.feed(index, delta) for index, delta in deltas]):
            outlet.write_nowait(data)
            self.told_at = trio.current_time()
        return True
