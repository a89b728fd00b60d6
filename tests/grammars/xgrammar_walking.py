"""Random answers of xgrammar's grammars, and what they say of a given one."""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import tokenizers
from numpy.typing import NDArray

from trioserve.builtin import MODEL_DIR
from trioserve.core.forms import AnswerForm, Body, ThinkingForm
from trioserve.grammars.backend import Matcher
from trioserve.grammars.xgrammar import Xgrammar

VOCAB_SIZE: Final = 4096
END: Final = 2
_HURRY_AFTER: Final = 40
"""Tokens after which a walk goes for the end."""
_MAX_TOKENS: Final = 1200
_CLOSING: Final = "]})\"'<,"


@cache
def backend(folder: Path = MODEL_DIR, *, tight: bool = False) -> Xgrammar:
    return Xgrammar(
        tokenizer_path=folder,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=(END,),
        disable_any_whitespace=tight,
        max_depth=64,
    )


@cache
def tokenizer(folder: Path = MODEL_DIR) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@cache
def _texts(folder: Path) -> list[str]:
    """What each token spells, well enough to choose by."""
    return [tokenizer(folder).decode([token], skip_special_tokens=False) for token in range(VOCAB_SIZE)]


def written(
    body: Body, *, thinking: ThinkingForm | None = None, folder: Path = MODEL_DIR, tight: bool = False
) -> str:
    """The grammar of a form."""
    return backend(folder, tight=tight).write(AnswerForm(body=body, thinking=thinking))


def accepts(grammar: str, text: str, *, folder: Path = MODEL_DIR) -> bool:
    """Whether the grammar lets a model write ``text`` and end there."""
    matcher = backend(folder).compile(grammar).matcher()
    return matcher.accept([*tokenizer(folder).encode(text).ids, END])


def allowed(matcher: Matcher, *, folder: Path = MODEL_DIR) -> list[int]:
    """The tokens that may come next."""
    masks = np.zeros((1, VOCAB_SIZE // 32), np.int32)
    backend(folder).fill_masks([(matcher, 0)], masks)
    found: NDArray[Any] = np.nonzero(np.unpackbits(masks.view(np.uint8), bitorder="little"))[0]
    return [int(token) for token in found]


def walk(
    grammar: str,
    seed: int,
    *,
    folder: Path = MODEL_DIR,
    hints: Sequence[str] = (),
    skip_special: bool = False,
) -> str | None:
    """A random answer; None where it did not end by itself.

    Args:
        hints: Texts that bring a walk nearer to its end.
    """
    walker = _Walker(random.Random(seed), folder, hints)
    matcher = backend(folder).compile(grammar).matcher()
    token_ids: list[int] = []
    while len(token_ids) < _MAX_TOKENS:
        choices = allowed(matcher, folder=folder)
        assert choices, f"nothing may follow {tokenizer(folder).decode(token_ids)!r}"
        token = walker.drawn(choices, hurries=len(token_ids) > _HURRY_AFTER)
        assert matcher.accept([token]), matcher.failure
        if token == END:
            return tokenizer(folder).decode(token_ids, skip_special_tokens=skip_special)
        token_ids.append(token)
    return None


@final
class _Walker:
    def __init__(self, draw: random.Random, folder: Path, hints: Sequence[str]) -> None:
        self._draw = draw
        self._texts = _texts(folder)
        self._hints = [tokenizer(folder).encode(hint).ids for hint in hints]
        self._planned: list[int] = []

    def drawn(self, choices: list[int], *, hurries: bool) -> int:
        """A token; the end if it may come, sooner or later."""
        draw, texts = self._draw, self._texts
        if self._planned and self._planned[0] in choices:
            return self._planned.pop(0)
        self._planned = []
        if END in choices and (len(choices) == 1 or draw.random() < 0.3):
            return END
        if self._hints and draw.random() < (0.5 if hurries else 0.1):
            self._planned = list(draw.choice(self._hints))
            if self._planned[0] in choices:
                return self._planned.pop(0)
        if not hurries:
            return draw.choice(choices)
        closing = [token for token in choices if texts[token][:1] and texts[token][0] in _CLOSING]
        if closing and draw.random() < 0.7:
            some = [draw.choice(closing) for _ in range(6)]
            return min(some, key=lambda token: (_CLOSING.find(texts[token][0]), len(texts[token])))
        return min((draw.choice(choices) for _ in range(4)), key=lambda token: len(texts[token]))
