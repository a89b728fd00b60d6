"""Counts the tokens that an answer spends on thinking; the ranks do, to end it in time, and the front, to tell."""

from trioserve.core.sampling import ThinkingBudget


class ThinkingCounter:
    """Goes by the bytes of each token, shown or not; what it comes to does not depend on where they are cut.

    Thinking begins with the answer, or with what begins it, where nothing but white space stands before; it ends with
    the first of its ends that is complete. It counts from the first token of the answer.
    """

    def __init__(self, thinking: ThinkingBudget) -> None:
        self._begins = [begin.encode() for begin in thinking.begins]
        self._ends = [end.encode() for end in thinking.ends]
        self._num_held = max(map(len, self._ends), default=1) - 1
        self._is_open: bool | None = True if thinking.is_open else None
        """Whether it thinks; None while that is not certain."""
        self._held = b""
        """Bytes that something may begin with that is not complete."""
        self._num_tokens = 0

    @property
    def is_thinking(self) -> bool:
        """Whether it is certain that it thinks now."""
        return self._is_open is True

    @property
    def is_over(self) -> bool:
        """Whether it thinks no more, or never has."""
        return self._is_open is False

    @property
    def num_tokens(self) -> int:
        """Tokens of thinking, up to the one that completes its end; 0 while it is not certain that there is any."""
        return 0 if self._is_open is None else self._num_tokens

    def feed(self, piece: bytes) -> None:
        """Take in the bytes of the next token."""
        if self._is_open is False:
            return
        self._num_tokens += 1
        self._held += piece
        if self._is_open is None:
            self._look_for_begin()
        if self._is_open:
            self._look_for_end()

    def _look_for_begin(self) -> None:
        held = self._held.lstrip()
        for begin in self._begins:
            if held.startswith(begin):
                self._is_open, self._held = True, held[len(begin) :]
                return
        self._held = held
        if not any(begin.startswith(held) for begin in self._begins):
            self._is_open, self._num_tokens = False, 0

    def _look_for_end(self) -> None:
        if any(end in self._held for end in self._ends):
            self._is_open = False
        else:
            self._held = self._held[max(0, len(self._held) - self._num_held) :]
