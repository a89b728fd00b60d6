"""What forms came to, for as long as there is room."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, TypeVar

from trioserve.core.sampling import Grammar

_MAX_REFUSALS: Final = 64

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A form of which there is no grammar."""

    reason: str
    is_lasting: bool = True
    """Whether it would be refused another time too; what took too long or too much might not be."""


Outcome = Grammar | Refusal


class OutcomeCache:
    """The grammars that were asked for last, and a few of the last refusals, by a hash of their form."""

    def __init__(self, max_grammars: int) -> None:
        self._max_grammars = max_grammars
        self._grammars: OrderedDict[bytes, Grammar] = OrderedDict()
        self._refusals: OrderedDict[bytes, Refusal] = OrderedDict()

    def __len__(self) -> int:
        return len(self._grammars) + len(self._refusals)

    def get(self, key: bytes) -> Outcome | None:
        """What the form came to, if that is still known."""
        if key in self._grammars:
            self._grammars.move_to_end(key)
            return self._grammars[key]
        return self._refusals.get(key)

    def put(self, key: bytes, outcome: Outcome) -> None:
        """Remember an outcome, unless it may be another one next time; the one asked for longest ago makes room."""
        if isinstance(outcome, Grammar):
            _put(self._grammars, key, outcome, self._max_grammars)
        elif outcome.is_lasting:
            _put(self._refusals, key, outcome, _MAX_REFUSALS)


def _put(kept: OrderedDict[bytes, T], key: bytes, value: T, max_count: int) -> None:
    kept[key] = value
    while len(kept) > max_count:
        kept.popitem(last=False)
