"""Grammars as llguidance enforces them: compiled, followed, turned into masks.

A grammar's lexer is shared by all answers that follow it, so that what one has found out serves the others. It has a
budget of states; should one answer use it up, those that run beside it fail as well, the next one starts afresh.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from trioserve.errors import InvalidGrammar, ModelError
from trioserve.grammars.backend import FORBIDDEN, Compiled, Masks, Matcher

LIMITS: Final = LLParserLimits(
    step_lexer_fuel=100_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    verbose_errors=False,
)
"""A step costs at most some 10 ms, whatever the grammar: 7 for 100,000 units of lexing, 2.5 for 50,000 items of
parsing. A lexer's states take 1 or 2 kB each."""
_REFUSED: Final = "doesn't satisfy the grammar"
_BESIDE_THE_POINT: Final = "\n<non-verbose/>"


@lru_cache(maxsize=1)
def load_tokenizer(folder: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> LLTokenizer:
    """The tokenizer in ``folder`` as llguidance sees it. Blocks; loaded once for all that need it.

    It has ``vocab_size`` ids, or more where the tokenizer itself has.

    Raises:
        ModelError: There is none, or it is of a kind that is not supported.
    """
    text, eos = _tokenizer_json(folder), list(eos_token_ids) or None
    try:
        with suppress(ValueError):  # it has more ids than the model, or it is of no use at all
            return LLTokenizer(text, n_vocab=vocab_size, eos_token=eos)
        return LLTokenizer(text, eos_token=eos)
    except ValueError as exc:
        raise ModelError(f"grammars cannot be enforced with the tokenizer of {folder}: {exc}") from exc


def _tokenizer_json(folder: Path) -> str:
    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            return file.read_text(encoding="utf-8")
        from transformers import AutoTokenizer  # takes seconds and much memory; other folders do without

        slow = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return str(slow.backend_tokenizer.to_str())
    except (OSError, ValueError, ImportError, LookupError, TypeError, AttributeError) as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise ModelError(f"{folder} has no tokenizer that grammars could be enforced with: {reason}") from exc


class GuidanceMatcher:
    """One answer's way through a grammar."""

    def __init__(self, matcher: LLMatcher, eos_token_ids: frozenset[int]) -> None:
        self.inner = matcher
        self._eos_token_ids = eos_token_ids

    def take(self, token_id: int) -> bool:
        """See ``Matcher``."""
        if self.inner.is_stopped():
            return token_id in self._eos_token_ids and not self.inner.is_error()
        return self.inner.consume_token(token_id)

    def accept(self, token_ids: Sequence[int]) -> bool:
        """See ``Matcher``."""
        num_taken = self.inner.try_consume_tokens(token_ids)  # type: ignore[arg-type] # any sequence will do
        return num_taken == len(token_ids) or (
            self.is_over and self._eos_token_ids.issuperset(token_ids[num_taken:])
        )

    def forced(self) -> list[int]:
        """The tokens that must come next, where there is no choice, tokenized as the model's tokenizer would."""
        return self.inner.compute_ff_tokens()

    @property
    def is_over(self) -> bool:
        """Whether only the end of the answer is left."""
        return self.inner.is_stopped() and not self.inner.is_error()

    @property
    def failure(self) -> str:
        """Why the matcher is of no use any more; empty while it is."""
        return _reason(self.inner) if self.inner.is_error() else ""


class GuidanceGrammar:
    """A grammar that is ready."""

    def __init__(self, text: str, tokenizer: LLTokenizer) -> None:
        self._text = text
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset(tokenizer.eos_tokens)
        self._first = self._parse()

    def matcher(self) -> Matcher:
        """Begin an answer."""
        matcher = self._first.deep_copy()
        matcher.compute_bitmask()
        if matcher.is_error():  # an answer has used the lexer up that all share
            self._first = self._parse()
            matcher = self._first.deep_copy()
        return GuidanceMatcher(matcher, self._eos_token_ids)

    def _parse(self) -> LLMatcher:
        """At the beginning of an answer, with the first mask made: the lexer does half its work for that.

        Raises:
            InvalidGrammar: The grammar is broken, or too complex.
        """
        matcher = LLMatcher(self._tokenizer, self._text, log_level=0, limits=LIMITS)
        matcher.compute_bitmask()
        if matcher.is_error():
            raise InvalidGrammar(_reason(matcher))
        return matcher


class GuidanceEngine:
    """llguidance, for one tokenizer."""

    name = "guidance"

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self.tokenizer = tokenizer
        self._num_words = -(-tokenizer.vocab_size // 32)
        self._target = np.empty((0, self._num_words), np.int32)
        self._address = 0
        """Of ``_target``, the masks that were filled last: numpy takes longer to say it than a mask takes."""

    def compile(self, text: str) -> Compiled:
        """Make a grammar ready; may take long, and without the interpreter's lock.

        Raises:
            InvalidGrammar: It is broken, or too complex.
        """
        return GuidanceGrammar(text, self.tokenizer)

    def fill_masks(self, matchers: Sequence[tuple[Matcher, int]], masks: Masks) -> None:
        """Write what each matcher allows next into its row of ``masks``, given by number.

        One after the other in this thread: a mask takes a microsecond where the lexer has been before, and waking
        another thread takes ten.
        """
        if self._num_words > masks.shape[1]:
            self._fill_wide(matchers, masks)
            return
        if masks is not self._target:
            assert masks.flags.c_contiguous and masks.shape[1] == self._num_words, (
                "masks of another tokenizer"
            )
            self._target, self._address = masks, masks.ctypes.data
        row_bytes = 4 * self._num_words
        for matcher, row in matchers:
            assert isinstance(matcher, GuidanceMatcher) and row < len(masks)
            matcher.inner.unsafe_compute_mask_ptr(self._address + row * row_bytes, row_bytes)

    def _fill_wide(self, matchers: Sequence[tuple[Matcher, int]], masks: Masks) -> None:
        """For a tokenizer with more ids than the model: those are left out."""
        wide = np.zeros((len(masks), self._num_words), np.int32)
        self.fill_masks(matchers, wide)
        rows = [row for _, row in matchers]
        masks[rows] = wide[rows, : masks.shape[1]]


def _reason(matcher: LLMatcher) -> str:
    """What the library says, unless it quotes the answer."""
    text = matcher.get_error().removesuffix(_BESIDE_THE_POINT)
    return FORBIDDEN if _REFUSED in text else text
