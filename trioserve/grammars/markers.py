"""Which texts of a family are tokens of their own: a grammar must ask for the token, since text never spells it."""

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol, final

Pieces = tuple[str | int, ...]
"""A text cut at its special tokens, which are given by id; no piece is empty."""


class SpecialTokens(Protocol):
    """What is asked of a tokenizer; ``llguidance.LLTokenizer`` answers it."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_tokens(self) -> Sequence[int]: ...
    def tokenize_str(self, text: str, *, parse_special: bool = False) -> list[int]: ...
    def decode_str(self, tokens: list[int]) -> str: ...
    def is_special_token(self, token: int) -> bool: ...


@final
class MarkerTokens:
    """Finds the special tokens of one tokenizer in texts."""

    def __init__(self, tokenizer: SpecialTokens) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, Pieces] = {}

    def pieces(self, text: str) -> Pieces:
        """Cut ``text`` at special tokens."""
        if text not in self._known:
            self._known[text] = tuple(self._cut(text))
        return self._known[text]

    def _cut(self, text: str) -> list[str | int]:
        found: list[str | int] = []
        at = 0
        for token in self._tokenizer.tokenize_str(text, parse_special=True):
            if not self._tokenizer.is_special_token(token):
                continue
            name = self._tokenizer.decode_str([token])
            begin = text.find(name, at)
            if not name or begin < 0:
                continue
            found += [text[at:begin], token] if begin > at else [token]
            at = begin + len(name)
        return [*found, text[at:]] if at < len(text) else found

    @cached_property
    def others(self) -> str:
        """All special tokens but those that end an answer, as the ranges of a Lark token set."""
        ends = set(self._tokenizer.eos_tokens)
        ranges: list[list[int]] = []
        for token in range(self._tokenizer.vocab_size):
            if token in ends or not self._tokenizer.is_special_token(token):
                continue
            if ranges and ranges[-1][1] == token - 1:
                ranges[-1][1] = token
            else:
                ranges.append([token, token])
        return ",".join(f"{first}-{last}" for first, last in ranges)
