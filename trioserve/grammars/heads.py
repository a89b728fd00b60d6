"""Free text in which markers begin something: calls of tools, and tags."""

from collections.abc import Sequence
from typing import final

from trioserve.grammars.lark import LarkWriter, either, escaped, sequence


@final
class Heads:
    """What begins something in free text, and how it goes on."""

    def __init__(self, write: LarkWriter) -> None:
        self._write = write
        self._spelled: dict[str, list[str]] = {}
        self._tokens: dict[str, list[str]] = {}

    def add(self, trigger: str, begin: str, following: str) -> None:
        """Where ``trigger`` appears, it is the beginning of ``begin``, and ``following`` comes behind that."""
        write = self._write
        rest = f"{write.marked(begin[len(trigger) :])} {following}".strip()
        self._spelled.setdefault(trigger, []).append(rest)
        if head := self._token_head(trigger, begin):
            self._tokens.setdefault(head, []).append(rest)
        elif (cut := write.before_token(begin))[1] and len(cut[0]) < len(trigger):
            head = f"{write.ending_in(cut[0])} {sequence(cut[1][:1])}"
            self._tokens.setdefault(head, []).append(f"{sequence(cut[1][1:])} {following}".strip())

    def _token_head(self, trigger: str, begin: str) -> str:
        """Free text and ``trigger`` with its special tokens; empty without any, or where it ends inside one."""
        write = self._write
        before, pieces = write.before_token(trigger)
        in_begin = write.before_token(begin)[1]
        if not pieces or in_begin[: len(pieces) - 1] != pieces[:-1]:
            return ""
        last = pieces[-1]
        head = f"{write.ending_in(before)} {sequence(pieces[:-1])}".strip()
        if isinstance(last, int):
            return f"{head} {sequence((last,))}" if in_begin[len(pieces) - 1] == last else ""
        return f"{head} {write.lazy(f'/{escaped(last)}/')}"

    def behind_text(self) -> str:
        """Any text up to the first trigger, and what that begins."""
        lazily = ((self._write.lazily([trigger]), rests) for trigger, rests in self._spelled.items())
        return self._write.rule(
            either(f"{head} {either(rests)}" for head, rests in [*lazily, *self._tokens.items()])
        )

    def at_once(self) -> str:
        """What a trigger begins, where no text may come before it."""
        alternatives = [
            f"{self._write.lazy(f'/{escaped(trigger)}/')} {either(rests)}"
            for trigger, rests in self._spelled.items()
        ]
        return self._write.rule(either(alternatives))


def free_text_with_tokens(write: LarkWriter, triggers: Sequence[str]) -> str:
    """Free text; with special tokens where a trigger is one that text follows, as messages on channels begin."""
    for trigger in triggers:
        pieces = write.markers.pieces(trigger)
        if len(pieces) > 1 and isinstance(pieces[0], int) and isinstance(pieces[1], str):
            return write.rule(f"({write.free_text()} <[{write.markers.others}]>)*")
    return ""
