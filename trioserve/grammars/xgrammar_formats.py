"""Structural tags, part by part: the notation in which xgrammar is told what an answer looks like."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, final

import xgrammar

from trioserve.errors import InvalidGrammar, SettingsError
from trioserve.grammars.xgrammar_schema import Schema

Format = dict[str, Any]

TIGHT: Final = (", ", ": ")
"""One space behind commas and colons and none elsewhere, as templates write JSON."""
_MAX_SPACE: Final = 64
"""Characters of white space between two parts of a JSON text: lines and their indentation, yet no endless run."""
NO_TEXT: Final = b"\x01\xff"
"""What special tokens stand for in a vocabulary. No class of characters takes it, as it is no UTF-8; free text, which
does not care, goes without the first of them."""
_RULES: Final = {
    "basic_escape": r'[\"\\/bfnrt] | "u" [0-9A-CE-Fa-ce-f] [0-9A-Fa-f]{3} | "u" [Dd] [0-7] [0-9A-Fa-f]{2}',
    "basic_integer": '"-"? ("0" | [1-9] [0-9]{0,17})',
    "basic_number": r'"-"? ("0" | [1-9] [0-9]{0,17}) ("." [0-9]{1,17})? ([eE] [+\-]? [0-9]{1,2})?',
}
"""Rules of xgrammar's own that are too wide: half of a surrogate pair as an escape, and numbers without an end or of
any size, are JSON, and many readers refuse them or read something else."""
_COUNTED: Final = (r"[^\"\\\r\n]", r"[^\u0000-\u001f\"\\]")
"""A character of a string whose characters are counted: xgrammar takes controls for such, which no JSON has."""
_RULE: Final = re.compile(rf"^({'|'.join(_RULES)}) ::= .*$", re.MULTILINE)
_SHORT_ESCAPE: Final = re.compile(r"\\\\|\\x([0-9a-f]{2})")
_PLACE: Final = re.compile(r"^(?:\[[\d:]+\] )?(?:\S+\.cc:\d+: )?(?:Check failed: .*? is false: )?")


def constant(text: str) -> Format:
    """This text."""
    return {"type": "const_string", "value": text}


def regex(pattern: str) -> Format:
    """What a regular expression of xgrammar's kind matches from end to end."""
    return {"type": "regex", "pattern": pattern} if pattern else constant("")


def grammar(text: str) -> Format:
    """What a grammar in xgrammar's EBNF derives."""
    return {"type": "grammar", "grammar": text}


def text_without(texts: Iterable[str]) -> Format:
    """Any text, special tokens apart, in which none of ``texts`` is."""
    return {"type": "any_text", "excludes": [chr(NO_TEXT[0]), *dict.fromkeys(texts)]}


def sequence(*parts: Format) -> Format:
    """One part after the other."""
    return parts[0] if len(parts) == 1 else {"type": "sequence", "elements": list(parts) or [constant("")]}


def either(options: Iterable[Format]) -> Format:
    """One of ``options``, of which there is at least one."""
    found = list(options)
    return found[0] if len(found) == 1 else {"type": "or", "elements": found}


def optional(part: Format) -> Format:
    """``part`` or nothing."""
    return {"type": "optional", "content": part}


def repeated(part: Format, most: int | None = None) -> Format:
    """``part`` any number of times, or ``most`` times at most."""
    return {"type": "repeat", "min": 0, "max": -1 if most is None else most, "content": part}


def json_text(schema: Schema, separators: tuple[str, str] | None) -> Format:
    """The JSON of a narrowed schema's values.

    Args:
        separators: All that stands between its parts; None: white space as the model likes.
    Raises:
        InvalidGrammar: No value fits the schema.
        UnicodeEncodeError: It contains half of a surrogate pair.
    """
    try:
        made = xgrammar.Grammar.from_json_schema(
            json.dumps(schema, ensure_ascii=False),
            any_whitespace=separators is None,
            separators=separators,
            max_whitespace_cnt=_MAX_SPACE if separators is None else None,
        )
    except RuntimeError as exc:
        raise InvalidGrammar(f"the schema: {reason(exc)}") from None
    return grammar(json_rules(made))


def json_rules(made: xgrammar.Grammar) -> str:
    """xgrammar's grammar of a schema, without what is no JSON or no JSON for many readers."""
    text = printed(made).replace(*_COUNTED)
    return _RULE.sub(lambda found: f"{found[1]} ::= {_RULES[found[1]]}", text)


def printed(made: xgrammar.Grammar) -> str:
    """A grammar as EBNF that reads back the same: ``\\x`` takes all digits that follow, which printing forgets."""
    return _SHORT_ESCAPE.sub(lambda found: f"\\u00{found[1]}" if found[1] else found[0], str(made))


def check_library() -> None:
    """Make sure that the library writes grammars in the way that is known here.

    Raises:
        SettingsError: It does not.
    """
    text = str(xgrammar.Grammar.from_json_schema('{"type": "string", "maxLength": 1}'))
    if {found[1] for found in _RULE.finditer(text)} != set(_RULES) or _COUNTED[0] not in text:
        raise SettingsError("this version of xgrammar is not supported: install xgrammar 0.2.8")


def reason(exc: Exception) -> str:
    """What xgrammar complains of, in one line and without its own places."""
    lines = [line for line in str(exc).splitlines() if line.strip()]
    return _PLACE.sub("", lines[0]).strip() if lines else type(exc).__name__


@final
class Markers:
    """Cuts texts at special tokens: a grammar must ask for the token, since text never spells it."""

    def __init__(self, special_tokens: Mapping[str, int], ends: Sequence[int]) -> None:
        """
        Args:
            special_tokens: Ids by text.
            ends: Those that end an answer, which a grammar does not ask for: they come by themselves.
        """
        self._ids = special_tokens
        self._ends = frozenset(ends)
        names = sorted(special_tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def pieces(self, text: str) -> list[str | int]:
        """``text`` in its order, special tokens by id; no piece is empty."""
        found: list[str | int] = []
        at = 0
        for special in self._pattern.finditer(text):
            found += [text[at : special.start()], self._ids[special[0]]]
            at = special.end()
        return [piece for piece in [*found, text[at:]] if piece != "" and piece not in self._ends]

    def marked(self, text: str) -> Format:
        """``text``, in which what is a special token is that token."""
        pieces = self.pieces(text)
        return sequence(
            *(
                constant(piece) if isinstance(piece, str) else {"type": "token", "token": piece}
                for piece in pieces
            )
        )

    def check_triggers(self, triggers: Sequence[str]) -> None:
        """Refuse triggers that share their special token with what is none.

        Raises:
            InvalidGrammar: There is one.
        """
        for trigger in triggers:
            first, *others = self.pieces(trigger) or [""]
            if isinstance(first, int) and any(isinstance(piece, str) for piece in others):
                raise InvalidGrammar(
                    f"{trigger[:80]!r} in free text, a special token and text, is not supported by xgrammar; the "
                    "backend guidance may do"
                )
