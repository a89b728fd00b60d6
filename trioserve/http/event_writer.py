"""What an endpoint makes of deltas, as those see it who carry its events."""

from collections.abc import Sequence as SequenceOf
from typing import Protocol

from trioserve.core.delta import OutputDelta, TokenLogprob

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
