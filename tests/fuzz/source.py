"""Choices that bytes make: the same bytes make the same ones, and a changed byte changes few of them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")


class Source:
    """Takes choices from the beginning of some bytes; behind their end everything is 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        return self._at >= len(self._data)

    def byte(self) -> int:
        """The next one."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self, most: int) -> int:
        """0 to ``most``, of two bytes."""
        return (self.byte() << 8 | self.byte()) % (most + 1)

    def flag(self) -> bool:
        return bool(self.byte() & 1)

    def pick(self, options: Sequence[T]) -> T:
        """One of at most 256."""
        return options[self.byte() % len(options)]

    def some(self, most: int) -> bytes:
        """At most so many bytes, a byte before them says how many."""
        size = min(self.byte(), most)
        begin, self._at = self._at, self._at + size
        return self._data[begin : self._at]

    def rest(self) -> bytes:
        """All that is left."""
        begin, self._at = self._at, len(self._data)
        return self._data[begin:]

    def text(self, words: Sequence[str], most: int) -> str:
        """At most so many words; half of the bytes are characters of their own."""
        count, parts = min(self.byte(), most), list[str]()
        while len(parts) < count and not self.is_empty:
            byte = self.byte()
            parts.append(words[(byte - 128) % len(words)] if byte >= 128 else chr(byte))
        return "".join(parts)

    def cut(self, whole: bytes) -> list[bytes]:
        """``whole`` in at most nine pieces, some of them empty."""
        ends = sorted(self.number(len(whole)) for _ in range(self.byte() % 9))
        return [whole[begin:end] for begin, end in pairwise([0, *ends, len(whole)])]

    def cut_text(self, whole: str) -> list[str]:
        """As ``cut``."""
        ends = sorted(self.number(len(whole)) for _ in range(self.byte() % 9))
        return [whole[begin:end] for begin, end in pairwise([0, *ends, len(whole)])]
