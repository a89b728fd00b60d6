"""Random answers of a grammar, and what it says of a given one."""

import json
import random
from functools import cache
from pathlib import Path

import llguidance

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
    writer = GuidanceWriter(
        of or tokenizer(), disable_any_whitespace=disable_any_whitespace, max_depth=64
    )
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
        special: Whether markers in ``text`` are tokens where there are such.
    """
    of = of or tokenizer()
    tokens = of.tokenize_str(text, parse_special=special)
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


def walk(grammar: str, seed: int, *, of: llguidance.LLTokenizer | None = None) -> str | None:
    """A random answer; None where it did not end by itself."""
    of = of or tokenizer()
    draw = random.Random(seed)
    answer = matcher(grammar, of=of)
    tokens: list[int] = []
    while len(tokens) < _MAX_TOKENS and not answer.is_stopped():
        allowed = _allowed(answer.compute_bitmask(), of)
        if answer.is_accepting() and (not allowed or draw.random() < 0.3):
            return of.decode_bytes(tokens).decode()
        if not allowed:
            raise Stuck(f"{of.decode_str(tokens)!r} {answer.get_error()}\n{grammar}")
        token = _drawn(allowed, draw, of, hurries=len(tokens) > _HURRY_AFTER)
        assert answer.consume_token(token), answer.get_error()
        tokens.append(token)
    assert not answer.is_error(), answer.get_error()
    return of.decode_bytes(tokens).decode() if answer.is_stopped() else None


def _allowed(mask: bytes, of: llguidance.LLTokenizer) -> list[int]:
    bits = int.from_bytes(mask, "little")
    found = []
    while bits:
        low = bits & -bits
        found.append(low.bit_length() - 1)
        bits ^= low
    ends = set(of.eos_tokens)
    return [token for token in found if token not in ends]


def _drawn(allowed: list[int], draw: random.Random, of: llguidance.LLTokenizer, *, hurries: bool) -> int:
    candidates = [draw.choice(allowed) for _ in range(4)]
    special = [token for token in allowed if of.is_special_token(token)]
    closing = [token for token in allowed if of.decode_str([token])[:1] in tuple("\"')]}<,")] if hurries else []
    for likely in (special, closing):
        if likely and draw.random() < (0.7 if hurries else 0.2):
            return draw.choice(likely)
    return min(candidates, key=lambda token: len(of.decode_str([token]))) if hurries else candidates[0]
