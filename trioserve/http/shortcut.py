"""The usual event's way: written to its client's socket in the moment in which the engine tells of the step.

A stream's task sleeps meanwhile. It wakes for what is not usual: a first or last delta, what waits for others, a client
that does not keep up, silence, the deadline.
"""

import math
from collections.abc import Sequence as SequenceOf
from typing import Protocol, Self

import trio
from quart import Request

from trioserve.core.delta import OutputDelta, TokenLogprob
from trioserve.core.outlet import OUTLET, Outlet
from trioserve.engine.mailbox import Deltas

PromptPart = SequenceOf[TokenLogprob | None]
"""The logprobs of a prompt's tokens; None for the first token, which follows nothing."""


class EventWriter(Protocol):
    """Turns deltas into the events of one endpoint."""

    async def read_prompt(self, index: int, logprobs: PromptPart) -> None:
        """Take in what was asked to be known of the prompt of sequence ``index``, before its first delta.

        There may be a million numbers: others run in between.
        """

    def opening(self) -> bytes:
        """Events that go out before any token is there."""

    def feed(self, index: int, delta: OutputDelta) -> bytes:
        """The events that tell ``delta`` of choice ``index``; empty when there is nothing to tell."""

    def closing(self) -> bytes:
        """Events after the last delta."""


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
        extensions = request.scope.get("extensions") or {}
        return cls(writer, extensions.get(OUTLET))  # type: ignore[call-overload]  # ours

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
