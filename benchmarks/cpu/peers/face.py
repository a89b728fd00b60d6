"""What every engine is asked to do, and how that is timed."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass
class Timeline:
    """When which sequence got a token, of one run with a batch of equally long answers."""

    num_seqs: int
    num_tokens: int
    """Of every answer."""
    began: float = field(default_factory=time.perf_counter)
    _counts: list[int] = field(init=False)
    _steps: list[tuple[float, int]] = field(init=False, default_factory=list)
    _all_begun: float | None = field(init=False, default=None)
    _first_ended: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._counts = [0] * self.num_seqs

    def tick(self, indices: Iterable[int]) -> None:
        """Sequences got a token each, now; one that is named twice got two."""
        now, num_new = time.perf_counter(), 0
        for index in indices:
            self._counts[index] += 1
            num_new += 1
        self._steps.append((now, num_new))
        if self._all_begun is None and min(self._counts) > 0:
            self._all_begun = now
        if self._first_ended is None and max(self._counts) >= self.num_tokens:
            self._first_ended = now

    def check(self) -> None:
        """Raise ValueError unless every sequence got all its tokens."""
        if set(self._counts) != {self.num_tokens}:
            raise ValueError(
                f"{self.num_tokens} tokens were asked for, answers have {sorted(set(self._counts))}"
            )

    def prefill_s(self) -> float:
        """From the call to the moment when every sequence had its first token."""
        assert self._all_begun is not None
        return self._all_begun - self.began

    def decode_rate(self) -> float:
        """Tokens a second of all sequences together, while each of them decoded: from the last first token to the
        first end."""
        begin, end = self._all_begun, self._first_ended
        assert begin is not None and end is not None
        return sum(count for when, count in self._steps if begin < when <= end) / (end - begin)


class Driver(Protocol):
    """An engine with its model loaded."""

    def generate(self, prompts: list[list[int]], timeline: Timeline) -> list[list[int]]:
        """Answer all ``prompts`` at a time with ``timeline.num_tokens`` greedy tokens each, never fewer.

        Every token is told to the timeline when it is known. Prompts are token ids, all of one length.
        """


class OpenDriver(Protocol):
    """The function that each module of ``drivers`` has under the name ``open_driver``."""

    def __call__(self, path: str, variant: str, num_threads: int) -> Driver:
        """Load the checkpoint at ``path``; ``variant`` says in what numbers it computes."""
