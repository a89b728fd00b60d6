"""What the engine leaves for one request, until the request's task takes it."""

import trio

from trioserve.core.delta import OutputDelta, merge


class Mailbox:
    """Deltas of a request's sequences, by the index of the choice. The engine never waits for its reader.

    A reader that is slow finds the deltas of one choice merged into one, so what is held stays bounded by the text
    itself, and the engine may drop it all when the request ends.
    """

    def __init__(self, num_choices: int) -> None:
        self._held: dict[int, list[OutputDelta]] = {}
        self._unfinished = num_choices
        self._filled = trio.Event()

    @property
    def is_done(self) -> bool:
        """Whether every choice has finished and its last delta was received."""
        return self._unfinished == 0 and not self._held

    def put_nowait(self, index: int, delta: OutputDelta) -> None:
        """Leave a delta of choice ``index``; deltas of a choice stay in order."""
        self._held.setdefault(index, []).append(delta)
        if delta.finish_reason is not None:
            self._unfinished -= 1
        self._filled.set()

    async def receive(self) -> list[tuple[int, OutputDelta]]:
        """Wait for something, then take all there is: at most one delta a choice, the longest waiting choice first."""
        await self._filled.wait()
        held, self._held = self._held, {}
        self._filled = trio.Event()
        return [(index, merge(deltas)) for index, deltas in held.items()]
