"""Watches how long an answer thinks, by the bytes of its tokens, and says when it has to come to an end."""

from collections.abc import Callable

from trioserve.core.sampling import ThinkingBudget
from trioserve.core.thinking import ThinkingCounter


class ThinkingWatch:
    """Follows an answer from its first token on; all of them count until thinking has ended.

    Tokens that are due because the budget is spent are due until they have come, or something else has.
    """

    def __init__(self, budget: ThinkingBudget, piece: Callable[[int], bytes]) -> None:
        """Begin an answer; ``piece`` has the bytes of a token, as they are in text."""
        self._piece = piece
        self._counter = ThinkingCounter(budget)
        self._max_tokens = budget.max_tokens
        self._forced_end = budget.forced_end
        self._due: tuple[int, ...] = ()
        self._may_end = True
        """Whether the end has not been forced yet, which happens once."""
        self._look_at_budget()

    @property
    def is_over(self) -> bool:
        """Whether it thinks no more, or never has."""
        return self._counter.is_over

    @property
    def due(self) -> int | None:
        """The id that has to come next; None: any."""
        return self._due[0] if self._due else None

    def add(self, token_id: int) -> None:
        """The answer has one more token."""
        if self._due:
            self._due = self._due[1:] if token_id == self._due[0] else ()
        self._counter.feed(self._piece(token_id))
        self._look_at_budget()

    def _look_at_budget(self) -> None:
        counter, most = self._counter, self._max_tokens
        if counter.is_thinking and self._may_end and most is not None and counter.num_tokens >= most:
            self._may_end, self._due = False, self._forced_end
