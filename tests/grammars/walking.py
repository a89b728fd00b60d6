"""Random answers of a grammar, and what it says of a given one."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llguidance
import numpy as np
from numpy.typing import NDArray

from trioserve.builtin import MODEL_DIR
from trioserve.core.forms import AnswerForm, Body, ThinkingForm
from trioserve.grammars.guidance_write import GuidanceWriter

_HURRY_AFTER = 40
"""Tokens after which a walk goes for the end."""
_MAX_TOKENS = 1500
_LIMITS = llguidance.LLParserLimits(verbose_errors=False)


@cache
def tokenizer() -> llguidance.LLTokenizer:
    """The built-in model's, for which ``<think>`` and the like are tokens of their own."""
    return llguidance.LLTokenizer(_tokenizer_json(), slices=[])


@cache
def plain_tokenizer() -> llguidance.LLTokenizer:
    """The same without these tokens: every marker is text."""
    document = json.loads(_tokenizer_json())
    names = {token["content"] for token in document["added_tokens"] if token["id"] > 2}
    document["added_tokens"] = [token for token in document["added_tokens"] if token["id"] <= 2]
    vocabulary = document["model"]["vocab"]
    for name in names:
        vocabulary["\u0120\u0120\u0120" + name.strip("</>")] = vocabulary.pop(name)
    return llguidance.LLTokenizer(json.dumps(document), slices=[])


def _tokenizer_json() -> str:
    return Path(MODEL_DIR / "tokenizer.json").read_text()


def written(
    body: Body,
    *,
    thinking: ThinkingForm | None = None,
    of: llguidance.LLTokenizer | None = None,
    disable_any_whitespace: bool = False,
) -> str:
    """The grammar of a form."""
    writer = GuidanceWriter(of or tokenizer(), disable_any_whitespace=disable_any_whitespace, max_depth=64)
    return writer.write(AnswerForm(body=body, thinking=thinking))


def matcher(grammar: str, *, of: llguidance.LLTokenizer | None = None) -> llguidance.LLMatcher:
    found = llguidance.LLMatcher(of or tokenizer(), grammar, log_level=0, limits=_LIMITS)
    assert not found.is_error(), f"{found.get_error()}\n{grammar}"
    return found


def accepts(
    grammar: str, text: str, *, of: llguidance.LLTokenizer | None = None, special: bool = True
) -> bool:
    """Whether the grammar lets a model write ``text`` and end there.

    Args:
        special: Whether markers in ``text`` are tokens where there are such; otherwise it is spelled out.
    """
    of = of or tokenizer()
    parts = [text] if special else text
    tokens = [token for part in parts for token in of.tokenize_str(part, parse_special=special)]
    walk = matcher(grammar, of=of)
    return walk.try_consume_tokens(tokens) == len(tokens) and walk.is_accepting()


def refused_at(grammar: str, text: str, *, of: llguidance.LLTokenizer | None = None) -> str | None:
    """What is left of ``text`` where the grammar stops it; None where it does not."""
    of = of or tokenizer()
    tokens = of.tokenize_str(text, parse_special=True)
    taken = matcher(grammar, of=of).try_consume_tokens(tokens)
    return None if taken == len(tokens) else of.decode_str(tokens[taken:])


class Stuck(AssertionError):
    """No token is allowed, and the answer may not end."""


def walk(
    grammar: str, seed: int, *, of: llguidance.LLTokenizer | None = None, endings: Sequence[str] = ()
) -> str | None:
    """A random answer; None where it did not end by itself.

    Args:
        endings: Texts to try when it takes long, such as what ends a verbatim string.
    """
    of = of or tokenizer()
    vocabulary = _Vocabulary.of(of)
    draw = random.Random(seed)
    answer = matcher(grammar, of=of)
    tokens: list[int] = []
    while len(tokens) < _MAX_TOKENS and not answer.is_stopped():
        allowed = vocabulary.allowed(answer.compute_bitmask())
        if answer.is_accepting() and (not allowed.size or draw.random() < 0.3):
            break
        if not allowed.size:
            raise Stuck(f"{of.decode_str(tokens)!r} {answer.get_error()}\n{grammar}")
        hurries = len(tokens) > _HURRY_AFTER
        following = [vocabulary.drawn(allowed, draw, hurries=hurries)]
        for ending in endings if hurries else ():
            whole = of.tokenize_str(ending, parse_special=True)
            if draw.random() < 0.3 and answer.validate_tokens(whole) == len(whole):
                following = whole
        assert answer.consume_tokens(following), answer.get_error()
        tokens += following
    assert not answer.is_error(), answer.get_error()
    return of.decode_bytes(tokens).decode() if answer.is_accepting() or answer.is_stopped() else None


@dataclass(frozen=True)
class _Vocabulary:
    ends: frozenset[int]
    sizes: NDArray[np.int64]
    closing: NDArray[np.bool_]
    special: NDArray[np.bool_]

    @classmethod
    @cache
    def of(cls, of: llguidance.LLTokenizer) -> "_Vocabulary":
        texts = [of.decode_bytes([token]) for token in range(of.vocab_size)]
        return cls(
            frozenset(of.eos_tokens),
            np.array([len(text) for text in texts]),
            np.array([text[:1] in (b'"', b"'", b")", b"]", b"}", b">", b"<", b",") for text in texts]),
            np.array([of.is_special_token(token) for token in range(of.vocab_size)]),
        )

    def allowed(self, mask: bytes) -> NDArray[np.int64]:
        found = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))
        return found[~np.isin(found, list(self.ends))]

    def drawn(self, allowed: NDArray[np.int64], draw: random.Random, *, hurries: bool) -> int:
        for likely in (self.special, self.closing) if hurries else (self.special,):
            chosen = allowed[likely[allowed]]
            if chosen.size and draw.random() < (0.7 if hurries else 0.2):
                return int(draw.choice(chosen))
        few = [int(draw.choice(allowed)) for _ in range(4)]
        return min(few, key=lambda token: int(self.sizes[token])) if hurries else few[0]
