"""Watches how long an answer thinks, by the bytes of its tokens, and says when it has to come to an end."""

from collections.abc import Callable

from trioserve.core.sampling import ThinkingBudget


class ThinkingWatch:
    """Follows an answer from its first token on; all of them count until thinking has ended.

    Thinking begins with the answer, or with what begins it, where nothing but white space stands before. It ends with
    the first of its ends that is complete, however tokens cut it. Tokens that are due because the budget is spent are
    due until they have come, or something else has.
    """

    def __init__(self, budget: ThinkingBudget, piece: Callable[[int], bytes]) -> None:
        """Begin an answer; ``piece`` has the bytes of a token, as they are in text."""
        self._piece = piece
        self._begins = [begin.encode() for begin in budget.begins]
        self._ends = [end.encode() for end in budget.ends]
        self._num_held = max(map(len, self._ends), default=1) - 1
        self._max_tokens = budget.max_tokens
        self._forced_end = budget.forced_end
        self._is_open: bool | None = True if budget.is_open else None
        """Whether it thinks; None while that is not certain."""
        self._held = b""
        """Bytes that something may begin with that is not complete."""
        self._num_tokens = 0
        self._due: tuple[int, ...] = ()
        self._may_end = True
        """Whether the end has not been forced yet, which happens once."""
        self._look_at_budget()

    @property
    def is_over(self) -> bool:
        """Whether it thinks no more, or never has."""
        return self._is_open is False

    @property
    def due(self) -> int | None:
        """The id that has to come next; None: any."""
        return self._due[0] if self._due else None

    def add(self, token_id: int) -> None:
        """The answer has one more token."""
        if self._due:
            self._due = self._due[1:] if token_id == self._due[0] else ()
        if self._is_open is False:
            return
        self._num_tokens += 1
        self._held += self._piece(token_id)
        if self._is_open is None:
            self._look_for_begin()
        if self._is_open:
            self._look_for_end()
        self._look_at_budget()

    def _look_for_begin(self) -> None:
        held = self._held.lstrip()
        for begin in self._begins:
            if held.startswith(begin):
                self._is_open, self._held = True, held[len(begin) :]
                return
        self._held = held
        if not any(begin.startswith(held) for begin in self._begins):
            self._is_open = False

    def _look_for_end(self) -> None:
        if any(end in self._held for end in self._ends):
            self._is_open = False
        else:
            self._held = self._held[max(0, len(self._held) - self._num_held) :]

    def _look_at_budget(self) -> None:
        is_spent = self._max_tokens is not None and self._num_tokens >= self._max_tokens
        if self._is_open and self._may_end and is_spent:
            self._may_end, self._due = False, self._forced_end
