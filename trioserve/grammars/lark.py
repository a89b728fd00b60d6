"""Grammar text in llguidance's Lark, put together of safe pieces.

An *expression* is the right side of a rule: a sequence of literals, names and groups. Whatever comes from a client gets
into one through the functions below only, which quote it.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, final

from trioserve.errors import InvalidGrammar
from trioserve.grammars.markers import MarkerTokens, Pieces

ANY_TEXT: Final = "(?s:.*)"
"""A regular expression of text that holds no special token."""
MAX_RULES_DEEP: Final = 400
"""Rules that name each other in a row; each takes a piece of the compiler's stack."""
MAX_CHARS: Final = 1 << 24
"""Of a whole grammar; writing stops there, whatever a client's limit on its own text is."""
_SPECIAL: Final = re.compile(r"[\\^$.|?*+()\[\]{}/&~#<>=!:,'\"` -]")


_EMPTY: Final = '""'
_MEMBERS_OF_A_RULE: Final = 16
_NAME: Final = re.compile(r"\b[rT][0-9]+\b")


def quoted(text: str) -> str:
    """A literal."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def escaped(text: str) -> str:
    """A regular expression of exactly ``text``, which may stand between slashes."""
    return "".join(map(_escaped_char, text))


def _escaped_char(char: str) -> str:
    if char < " " or char in "\x7f\x85\u2028\u2029":
        return f"\\x{{{ord(char):x}}}"
    return f"\\{char}" if _SPECIAL.match(char) and char not in "<>=!:,'\"` " else char


def regex(pattern: str) -> str:
    """The expression of a regular expression that ``escaped`` or ``regexes.translated`` made."""
    return f"/{pattern}/" if pattern else '""'


def without(text: str) -> str:
    """What a terminal must be combined with (``A & without(x)``) so that ``text`` does not occur in it."""
    return f"~/{ANY_TEXT}{escaped(text)}{ANY_TEXT}/"


def either(alternatives: Iterable[str]) -> str:
    """A group of alternatives, each once."""
    distinct = list(dict.fromkeys(alternatives))
    return distinct[0] if len(distinct) == 1 else f"({' | '.join(one or _EMPTY for one in distinct)})"


def optional(expression: str) -> str:
    return f"({expression})?"


@final
class LarkWriter:
    """A grammar under way: rules are added, what is said twice becomes one rule."""

    def __init__(self, markers: MarkerTokens) -> None:
        self.markers = markers
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._num_names = 0
        self._num_chars = 0

    # ---- rules -------------------------------------------------------------------------------------------------------

    def rule(self, expression: str) -> str:
        """Name an expression."""
        return self._named("r", ":", expression)

    def terminal(self, expression: str) -> str:
        """Name an expression without rules and special tokens: one regular expression, matched as far as it goes."""
        return self._named("T", ":", expression)

    def lazy(self, expression: str) -> str:
        """As ``terminal``, but matched as soon as possible, whatever else might go on."""
        return self._named("r", "[lazy]:", expression)

    def reserve(self) -> str:
        """A name for a rule that will be defined later, for rules that contain themselves."""
        return self._name("r")

    def define(self, name: str, expression: str) -> None:
        """Say what a reserved name stands for."""
        self._add(name, f": {expression or _EMPTY}")

    def text(self, start: str) -> str:
        """The whole grammar, which begins with ``start``.

        Raises:
            InvalidGrammar: Its rules name each other in too long a row.
        """
        if len(self._rules) > MAX_RULES_DEEP:
            check_rules(
                {"start": _NAME.findall(start)}
                | {name: _NAME.findall(definition) for name, definition in self._rules.items()}
            )
        lines = [name + definition for name, definition in self._rules.items()]
        return "\n".join(["%llguidance {}", f"start: {start or _EMPTY}", *lines, ""])

    def _named(self, kind: str, colon: str, expression: str) -> str:
        definition = f"{colon} {expression or _EMPTY}"
        known = f"{kind}{definition}"
        if known not in self._names:
            self._names[known] = self._name(kind)
            self._add(self._names[known], definition)
        return self._names[known]

    def _name(self, kind: str) -> str:
        self._num_names += 1
        return f"{kind}{self._num_names}"

    def _add(self, name: str, definition: str) -> None:
        self._num_chars += len(definition)
        if self._num_chars > MAX_CHARS:
            raise InvalidGrammar(
                f"the grammar of this request takes more than {MAX_CHARS} characters: give a smaller schema"
            )
        self._rules[name] = definition

    # ---- texts -------------------------------------------------------------------------------------------------------

    def marked(self, text: str) -> str:
        """Exactly ``text``, whose markers are tokens where the tokenizer has them."""
        return sequence(self.markers.pieces(text))

    def free_text(self) -> str:
        """Any text without special tokens, as far as it goes."""
        return self.terminal(f"/{ANY_TEXT}/")

    def until(self, ends: Sequence[str]) -> str:
        """Any text up to the first of ``ends``, and that: as a token, or spelled out, which reads the same."""
        return either(
            [self.lazily(ends)]
            + [
                f"{self.ending_in(before)} {sequence(pieces)}"
                for before, pieces in map(self.before_token, ends)
                if pieces
            ]
        )

    def lazily(self, ends: Iterable[str]) -> str:
        """Any text up to the first of ``ends`` that is spelled out, and that."""
        return self.lazy(f"/{ANY_TEXT}(?:{'|'.join(map(escaped, ends))})/")

    def before_token(self, marker: str) -> tuple[str, Pieces]:
        """The text before the first special token in ``marker``, and the rest from there on, which may be nothing."""
        pieces = self.markers.pieces(marker)
        if pieces and isinstance(pieces[0], str):
            return pieces[0], pieces[1:]
        return "", pieces

    def ending_in(self, text: str) -> str:
        """Any text that ends in ``text``; only a special token can follow it."""
        return self.terminal(f"/{ANY_TEXT}{escaped(text)}/")

    # ---- other grammars ----------------------------------------------------------------------------------------------

    def json(self, schema: dict[str, Any]) -> str:
        """A JSON value of a prepared schema."""
        return self.rule("%json " + json.dumps(schema, ensure_ascii=False))

    def nested(self, grammar: str) -> str:
        """What a whole Lark grammar describes, which ``client_lark.checked`` has seen."""
        return self.rule(f"%lark {{\n{grammar}\n}}")


def check_rules(named: Mapping[str, Sequence[str]]) -> None:
    """Refuse rules that name each other in too long a row, walked as the compiler does, from ``start`` on.

    Args:
        named: For each rule the names in its definition.
    """
    seen = {"start"}
    stack = [iter(named.get("start", ()))]
    while stack:
        name = next(stack[-1], None)
        if name is None:
            stack.pop()
        elif name not in seen:
            seen.add(name)
            stack.append(iter(named.get(name, ())))
            if len(stack) > MAX_RULES_DEEP:
                raise InvalidGrammar(
                    f"more than {MAX_RULES_DEEP} rules of the grammar name each other in a row"
                )


def sequence(pieces: Pieces) -> str:
    """These pieces, one after the other."""
    return " ".join(f"<[{piece}]>" if isinstance(piece, int) else quoted(piece) for piece in pieces)


def listing(members: Sequence[tuple[str, bool]], separator: str, write: LarkWriter) -> str:
    """Members in their order, each with whether it must come, with a separator between those that do.

    Linear in the members: behind the first that is there, each brings its separator along.
    """
    starts: list[str] = [_EMPTY]
    behind: list[str] = []
    for expression, is_required in reversed(members):
        starting = " ".join([expression, *behind])
        if is_required:
            starts.clear()
        starts.append(starting)
        following = f"{quoted(separator)} {expression}"
        behind.insert(0, following if is_required else optional(following))
        if len(behind) > _MEMBERS_OF_A_RULE:
            behind = [write.rule(" ".join(behind))]
    return either(reversed(starts))
