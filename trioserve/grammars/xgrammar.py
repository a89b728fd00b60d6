"""The backend ``xgrammar``, an optional extra: its library needs transformers and torch, and more memory than ours."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import tokenizers
import xgrammar
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trioserve.core.forms import AnswerForm
from trioserve.errors import InvalidGrammar, SettingsError
from trioserve.grammars.backend import Compiled, Masks, Matcher
from trioserve.grammars.xgrammar_formats import NO_TEXT, check_library, reason
from trioserve.grammars.xgrammar_write import XgrammarWriter


class Ending(NamedTuple):
    """What masks have in common."""

    mask: Masks
    """[1, num_words], what ends an answer"""
    last_word: np.int32
    """The bits of the last word that are ids of the vocabulary; xgrammar writes whole words"""
    token_ids: frozenset[int]
    """What ends an answer"""


@final
class XgrammarMatcher:
    """An answer's way through a grammar; see ``Matcher``."""

    def __init__(self, compiled: xgrammar.CompiledGrammar, ending: Ending) -> None:
        self.library = xgrammar.GrammarMatcher(compiled)
        """What the masks come from"""
        self._ending = ending
        self._failure = ""

    def accept(self, token_ids: Sequence[int]) -> bool:
        """See ``Matcher``."""
        return all(map(self.take, token_ids))

    def take(self, token_id: int) -> bool:
        """See ``Matcher``."""
        if self._failure:
            return False
        if self.library.is_terminated():
            return token_id in self._ending.token_ids
        try:
            return bool(self.library.accept_token(token_id))
        except RuntimeError as exc:
            self._failure = reason(exc)
            return False

    def forced(self) -> list[int]:
        """Nothing, always: xgrammar knows the text that must come; which tokens spell it depends on what follows.

        The model's tokenizer may join the end of that text with characters that come later, and no way to ask which
        tokens could do so is cheaper than the masks of the steps that this would save.
        """
        return []

    @property
    def is_over(self) -> bool:
        """See ``Matcher``."""
        if self.failure or not self.library.is_completed():
            return False
        if self.library.is_terminated():
            return True
        mask = np.zeros_like(self._ending.mask)
        self.fill_mask(mask, 0)
        return np.array_equal(mask, self._ending.mask)

    def fill_mask(self, masks: Masks, row: int) -> None:
        """Write what is allowed next; where nothing is, as after the end and a failure, what ends an answer."""
        if self.has_more:
            try:
                self.library.fill_next_token_bitmask(masks, row)
                masks[row, -1] &= self._ending.last_word
            except RuntimeError as exc:
                self._failure = reason(exc)
        if not self.has_more:
            masks[row] = self._ending.mask[0]

    @property
    def has_more(self) -> bool:
        """Whether tokens may come."""
        return not self._failure and not self.library.is_terminated()

    @property
    def failure(self) -> str:
        """See ``Matcher``."""
        return self._failure


@final
class XgrammarCompiled:
    """A grammar that is ready; see ``Compiled``."""

    def __init__(self, compiled: xgrammar.CompiledGrammar, ending: Ending) -> None:
        self._compiled = compiled
        self._ending = ending

    def matcher(self) -> XgrammarMatcher:
        """See ``Compiled``."""
        return XgrammarMatcher(self._compiled, self._ending)


@final
class Xgrammar:
    """xgrammar for one tokenizer; see ``Backend``."""

    name = "xgrammar"

    def __init__(
        self,
        *,
        tokenizer_path: Path,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        disable_any_whitespace: bool,
        max_depth: int,
    ) -> None:
        """
        Args:
            tokenizer_path: The folder of the tokenizer.
            vocab_size: Bits in a mask: the ids that the model has logits of.
            eos_token_ids: What ends an answer; at least one is below ``vocab_size``.
            disable_any_whitespace: As the setting ``guided_decoding_disable_any_whitespace``.
            max_depth: Levels of a schema, and groups of a regular expression or grammar.
        Raises:
            SettingsError: xgrammar cannot use the tokenizer, or is of a version that writes grammars in another way.
        """
        check_library()
        tokenizer = _load(tokenizer_path)
        ends = [token_id for token_id in eos_token_ids if 0 <= token_id < vocab_size]
        if not ends:
            raise SettingsError(
                f"{tokenizer_path} names no token that ends an answer, and xgrammar needs one"
            )
        vocabulary = _vocabulary(tokenizer, vocab_size, ends)
        self._compiler = xgrammar.GrammarCompiler(vocabulary, max_threads=1, cache_enabled=False)
        # One thread: to wake another takes longer than the masks of a whole batch.
        self._batch = xgrammar.BatchGrammarMatcher(max_threads=1)
        self._ending = _ending(vocab_size, ends)
        special_tokens = {
            token.content: token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special and token_id < vocab_size
        }
        self._writer = XgrammarWriter(
            special_tokens, ends, disable_any_whitespace=disable_any_whitespace, max_depth=max_depth
        )

    def write(self, form: AnswerForm) -> str:
        """See ``Backend``; the text is a structural tag, as JSON."""
        return self._writer.write(form)

    def compile(self, text: str) -> Compiled:
        """See ``Backend``; other threads run meanwhile."""
        try:
            return XgrammarCompiled(self._compiler.compile_structural_tag(text), self._ending)
        except RuntimeError as exc:
            raise InvalidGrammar(reason(exc)) from None

    def fill_masks(self, matchers: Sequence[tuple[Matcher, int]], masks: Masks) -> None:
        """See ``Backend``."""
        pairs = [(matcher, row) for matcher, row in matchers if isinstance(matcher, XgrammarMatcher)]
        assert len(pairs) == len(matchers), "a matcher of another backend"
        if len(pairs) > 1 and all(matcher.has_more for matcher, _ in pairs):
            try:
                rows = [row for _, row in pairs]
                self._batch.batch_fill_next_token_bitmask(
                    [matcher.library for matcher, _ in pairs], masks, rows
                )
                masks[rows, -1] &= self._ending.last_word
            except RuntimeError:
                pass  # one of them failed, and one by one it is found out which
            else:
                return
        for matcher, row in pairs:
            matcher.fill_mask(masks, row)


def _ending(vocab_size: int, ends: Sequence[int]) -> Ending:
    bits = np.zeros((1, -(-vocab_size // 32) * 32), np.uint8)
    bits[0, list(ends)] = 1
    ids = np.zeros_like(bits)
    ids[0, :vocab_size] = 1
    mask, valid = (np.packbits(some, axis=1, bitorder="little").view(np.int32) for some in (bits, ids))
    return Ending(mask, valid[0, -1], frozenset(ends))


def _load(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a folder; one without a tokenizer.json is converted."""
    try:
        if (path / "tokenizer.json").is_file():
            return tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        slow = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        return slow.backend_tokenizer
    except Exception as exc:  # the libraries raise nothing narrower
        what = " ".join(f"{type(exc).__name__}: {exc}".split())
        raise SettingsError(f"xgrammar cannot use the tokenizer of {path}: {what}") from exc


def _vocabulary(
    tokenizer: tokenizers.Tokenizer, vocab_size: int, ends: Sequence[int]
) -> xgrammar.TokenizerInfo:
    """The bytes of each token, in which special tokens are no text and other added ones are what they say."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]
    read = xgrammar.TokenizerInfo.from_huggingface(fast, vocab_size=vocab_size, stop_token_ids=list(ends))
    tokens = read.decoded_vocab
    for token_id, token in tokenizer.get_added_tokens_decoder().items():
        if token_id < vocab_size:
            tokens[token_id] = NO_TEXT if token.special else token.content.encode()
    return xgrammar.TokenizerInfo(
        tokens,
        xgrammar.VocabType.RAW,
        vocab_size=vocab_size,
        stop_token_ids=list(ends),
        add_prefix_space=read.add_prefix_space,
    )
