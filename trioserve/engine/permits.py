"""Bounds on the requests that are served at a time, and on how many come in a minute: of all together, of each key."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from msgspec import Struct

from trioserve.errors import QueueFull, RateLimited

_MINUTE_S: Final = 60.0
_SWEEP_AT: Final = 1024
"""Keys whose rates are kept before those are dropped that have nothing left to wait for."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """None: no bound."""

    at_a_time: int | None = None
    """Of all keys together."""
    at_a_time_per_key: int | None = None
    per_minute: int | None = None
    """Of each key; as many may come at once after a minute without any."""


class Rate(Struct, frozen=True, array_like=True):
    """What is left of a key's requests of a minute."""

    limit: int
    remaining: int
    reset_s: float
    """Until all of them may come again."""


class Permits:
    """One count for all processes of a server. A key is the digest of one, or "" where nobody needs one."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float]) -> None:
        """
        Args:
            clock: Seconds from some moment on.
        """
        self._bounds = bounds
        self._clock = clock
        self._taken: Counter[str] = Counter()
        self._full_at: dict[str, float] = {}  # by key, when all requests of a minute may come again
        self.num_taken = 0

    def take(self, key: str) -> Rate | None:
        """Take one, which ``give_back`` must follow; tells what is left of the key's minute where that is bounded.

        Raises:
            QueueFull: None is left.
            RateLimited: The key's requests of a minute are used up.
        """
        most, most_of_key = self._bounds.at_a_time, self._bounds.at_a_time_per_key
        if most is not None and self.num_taken >= most:
            raise QueueFull(f"{self.num_taken} requests are served, the limit is {most}")
        if most_of_key is not None and self._taken[key] >= most_of_key:
            raise QueueFull(f"{self._taken[key]} requests of this key are served, the limit is {most_of_key}")
        rate = None if self._bounds.per_minute is None else self._count(key, self._bounds.per_minute)
        self._taken[key] += 1
        self.num_taken += 1
        return rate

    def give_back(self, key: str) -> None:
        """Leave it to others."""
        self.num_taken -= 1
        self._taken[key] -= 1
        if not self._taken[key]:
            del self._taken[key]

    def _count(self, key: str, limit: int) -> Rate:
        """Each request moves the moment at which all may come again by its share of a minute (GCRA)."""
        now, share_s = self._clock(), _MINUTE_S / limit
        full_at = max(now, self._full_at.get(key, now)) + share_s
        ahead_s = full_at - now
        if ahead_s > _MINUTE_S * (1 + 1e-9):
            raise RateLimited(
                f"{limit} requests of this key came within a minute, which is its limit",
                retry_after_s=ahead_s - _MINUTE_S,
            )
        if len(self._full_at) >= _SWEEP_AT:
            self._full_at = {other: at for other, at in self._full_at.items() if at > now}
        self._full_at[key] = full_at
        return Rate(limit, math.floor((_MINUTE_S - ahead_s) / share_s + 1e-6), ahead_s)
