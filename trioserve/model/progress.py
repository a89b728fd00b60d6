"""How far the loading of a model has come."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (loaded_bytes, total_bytes)."""


def unseen(loaded_bytes: int, total_bytes: int) -> None:
    """For those who do not want to know."""
