"""What the engine leaves for one request, until the request's task takes it."""

from collections.abc import Callable
from typing import Protocol

import trio

from trioserve.core.delta import OutputDelta, merge
from trioserve.errors import TrioserveError

Deltas = list[tuple[int, OutputDelta]]
"""At most one a choice, with the choice's index."""
Take = Callable[[Deltas], bool]
"""Takes deltas where the engine leaves them; or says no, and then the one who waits for them is woken."""


class Receiver(Protocol):
    """Where the engine leaves deltas; it never waits there."""

    def put_nowait(self, index: int, delta: OutputDelta) -> None:
        """Leave a delta of choice ``index``; deltas of a choice stay in order."""

    def hand_over(self) -> None:
        """All that a step had for this request was put. Raises nothing: the engine has others to think of."""


class Mailbox:
    """Deltas of a request's sequences, by the index of the choice. The engine never waits for its reader.

    A reader that is slow finds the deltas of one choice merged into one, so what is held stays bounded by the text
    itself, and the engine may drop it all when the request ends.

    To wake a task costs more than most of what it then does. So whoever waits may leave a function here that takes
    what comes, in the engine's own moment: a step of many requests then wakes nobody.
    """

    def __init__(self, num_choices: int, *, is_admitted: bool = True) -> None:
        self._held: dict[int, list[OutputDelta]] = {}
        self._unfinished = num_choices
        self._filled = trio.Event()
        self._take: Take | None = None
        self._failure: Exception | None = None
        self._admitted = trio.Event()
        if is_admitted:
            self._admitted.set()

    @property
    def is_done(self) -> bool:
        """Whether every choice has finished and its last delta was received."""
        return self._unfinished == 0 and not self._held

    def put_nowait(self, index: int, delta: OutputDelta) -> None:
        """Leave a delta of choice ``index``; deltas of a choice stay in order."""
        self._held.setdefault(index, []).append(delta)
        if delta.finish_reason is not None:
            self._unfinished -= 1

    def hand_over(self) -> None:
        """Let the one who waits have what was put."""
        if self._take is not None and self._failure is None:
            try:
                if self._take(_merged(self._held)):
                    self._held = {}
                    return
            except Exception as exc:  # noqa: BLE001  # what a request's own code does must not end the engine
                self._failure = exc
        self._filled.set()

    def admit(self) -> None:
        """The engine has let the request in."""
        self._admitted.set()

    def fail(self, failure: TrioserveError) -> None:
        """The request was refused, or the rest will not come: whoever waits or comes gets ``failure``.

        No effect once every choice has finished.
        """
        if self._unfinished == 0:
            return
        self._failure = failure
        self._admitted.set()
        self._filled.set()

    async def wait_admitted(self) -> None:
        """Wait until the engine has let the request in; not at all where it runs in this process.

        Raises:
            TrioserveError: It did not.
        """
        if not self._admitted.is_set():
            await self._admitted.wait()
        if self._failure is not None:
            raise self._failure

    async def receive(self, take: Take | None = None) -> Deltas:
        """Wait for something, then take all there is, the longest waiting choice first.

        Args:
            take: Asked first while this waits, each time with all there is; what it takes does not end the wait.

        Raises:
            TrioserveError: The request was refused, or nothing more will come of it.
            Exception: Whatever ``take`` raised.
        """
        if not self._filled.is_set():
            self._take = take
        try:
            await self._filled.wait()
        finally:
            self._take = None
        if self._failure is not None:
            raise self._failure
        held, self._held = self._held, {}
        self._filled = trio.Event()
        return _merged(held)


def _merged(held: dict[int, list[OutputDelta]]) -> Deltas:
    return [(index, merge(deltas)) for index, deltas in held.items()]
