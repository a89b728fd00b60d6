"""How long the parts of a start took, and how far it has come."""

import time
from collections.abc import Callable
from typing import Final

from trioserve.core.step import LoadProgress

_PROGRESS_EVERY_S: Final = 0.1


class Phases:
    """Seconds of what comes one after the other."""

    def __init__(self, started: float) -> None:
        """``started``: by ``time.monotonic()``."""
        self.seconds: dict[str, float] = {}
        self._last = started

    def end(self, name: str) -> None:
        """What ran since the last one ended was ``name``."""
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now

    def total_s(self, name: str) -> float:
        """From the start to the end of ``name``."""
        names = list(self.seconds)
        return sum(self.seconds[each] for each in names[: names.index(name) + 1])


class Throttle:
    """Passes on progress no more often than is pleasant to watch."""

    def __init__(self, report: Callable[[LoadProgress], None]) -> None:
        self._report = report
        self._next_s = 0.0

    def __call__(self, loaded_bytes: int, total_bytes: int) -> None:
        """So much of the weights is loaded."""
        self._pass_on(LoadProgress(loaded_bytes, total_bytes), is_last=loaded_bytes == total_bytes)

    def graphs(self, num_bytes: int, num_graphs: int, total_graphs: int) -> None:
        """So many graphs are captured, for weights of ``num_bytes`` that are loaded."""
        progress = LoadProgress(num_bytes, num_bytes, num_graphs, total_graphs)
        self._pass_on(progress, is_last=num_graphs == total_graphs)

    def _pass_on(self, progress: LoadProgress, *, is_last: bool) -> None:
        now = time.monotonic()
        if now >= self._next_s or is_last:
            self._next_s = now + _PROGRESS_EVERY_S
            self._report(progress)
