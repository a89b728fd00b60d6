"""Which sequences may be planned: those whose grammar the ranks have ready. Sync, no I/O."""

from dataclasses import dataclass, field
from typing import Final

from trioserve.core.sampling import Grammar
from trioserve.core.sequence import Sequence
from trioserve.core.step import GrammarReady, GrammarRequest

_MAX_UNANSWERED: Final = 2
"""Requests that the ranks have not answered: one that is worked on, and the next."""


@dataclass(slots=True)
class _Entry:
    grammar: Grammar
    users: dict[int, Sequence] = field(default_factory=dict)
    """Sequences that have it and have not ended, by seq_id, in the order of arrival."""
    is_ready: bool = False


class GrammarGate:
    """Holds sequences back until their grammars are ready, and decides which the ranks keep.

    Ranks keep ``capacity`` grammars: those of sequences that have not ended, and of the others those that were needed
    last. Where the former alone are too many, new ones wait until sequences end.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: dict[bytes, _Entry] = {}  # by key; the values of the others are here too
        self._wanted: dict[
            bytes, _Entry
        ] = {}  # the ranks know nothing of them yet; the longest waiting first
        self._unanswered: dict[bytes, float] = {}  # when they were requested, in this order
        self._idle: dict[bytes, _Entry] = {}  # ready and nobody's; the longest unused first

    def enter(self, seq: Sequence) -> bool:
        """Take note of a sequence, until it leaves; whether it may be planned at once."""
        grammar = seq.params.grammar
        if grammar is None:
            return True
        entry = self._entries.get(grammar.key)
        if entry is None:
            entry = self._entries[grammar.key] = self._wanted[grammar.key] = _Entry(grammar)
        entry.users[seq.seq_id] = seq
        self._idle.pop(grammar.key, None)
        return entry.is_ready

    def leave(self, seq: Sequence) -> None:
        """Forget a sequence, which has ended; no effect where it is not known."""
        grammar = seq.params.grammar
        entry = None if grammar is None else self._entries.get(grammar.key)
        if grammar is None or entry is None or entry.users.pop(seq.seq_id, None) is None or entry.users:
            return
        if entry.is_ready:
            self._idle[grammar.key] = entry
        elif self._wanted.pop(grammar.key, None) is not None:
            del self._entries[grammar.key]

    def next_request(self, now: float) -> GrammarRequest | None:
        """What to tell the ranks now, at ``now`` by the clock of ``overdue``; None where there is nothing to tell."""
        if not self._wanted or len(self._unanswered) >= _MAX_UNANSWERED:
            return None
        forgotten = []
        if len(self._entries) - len(self._wanted) >= self._capacity:
            if not self._idle:
                return None
            key = next(iter(self._idle))
            del self._idle[key], self._entries[key]
            forgotten = [key]
        key = next(iter(self._wanted))
        entry = self._wanted.pop(key)
        self._unanswered[key] = now
        return GrammarRequest(entry.grammar, forgotten)

    def answered(self, answer: GrammarReady) -> list[Sequence]:
        """Take in what the ranks said; returns the sequences that it means the go-ahead for, or the end."""
        self._unanswered.pop(answer.key, None)
        entry = self._entries.get(answer.key)
        if entry is None or entry.is_ready or answer.key in self._wanted:
            return []  # it came too late
        users = list(entry.users.values())
        if answer.error:
            del self._entries[answer.key]
            return users
        entry.is_ready = True
        if not users:
            self._idle[answer.key] = entry
        return users

    def overdue(self, before: float) -> list[Sequence]:
        """Give up what was requested earlier than ``before``; returns the sequences that wait for it."""
        late = [key for key, requested_at in self._unanswered.items() if requested_at < before]
        users: list[Sequence] = []
        for key in late:
            del self._unanswered[key]
            users += self._entries.pop(key).users.values()
        return users
