"""Regular expressions of clients, in the manner of Python and JavaScript, as xgrammar takes them.

``\\d``, ``\\w`` and ``\\s`` are ASCII's, and ``.`` is no line break of either language. What the two read
differently, or xgrammar would pass over, is refused.
"""

import re
from typing import Final, final

from trioserve.errors import InvalidGrammar

ANY: Final = r"[\u{0}-\u{10ffff}]"
"""Any character."""
_DOT: Final = r"[^\u{a}\u{d}\u{2028}\u{2029}]"
_CLASSES: Final = {"d": "0-9", "w": "0-9A-Z_a-z", "s": r"\u{9}-\u{d}\u{20}"}
_OTHERS: Final = {
    "D": r"\u{0}-\u{2f}\u{3a}-\u{10ffff}",
    "W": r"\u{0}-\u{2f}\u{3a}-\u{40}\u{5b}-\u{5e}\u{60}\u{7b}-\u{10ffff}",
    "S": r"\u{0}-\u{8}\u{e}-\u{1f}\u{21}-\u{10ffff}",
}
_CONTROLS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_HEX: Final = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|u\{([0-9a-fA-F]{1,6})\}")
_GROUP: Final = re.compile(r"\((?!\?)|\(\?:|\(\?P?<[^\W\d]\w*>")
_QUANTIFIER: Final = re.compile(r"([*+?])|\{(\d{1,9})(,?)(\d{0,9})\}")
_MAX_REPEAT: Final = 10_000
"""Times that a quantifier may ask for."""


def literal(text: str) -> str:
    """The regular expression of a text."""
    return "".join(map(_char, text))


def translated(pattern: str, *, max_depth: int, is_search: bool = False) -> str:
    """The regular expression that matches, from end to end, what ``pattern`` matches.

    Args:
        max_depth: Groups inside each other that it may have.
        is_search: Whether ``pattern`` need only match somewhere in the text, as a schema's does.

    Raises:
        InvalidGrammar: It is broken, or has what xgrammar does not hold to.
    """
    return _Translation(pattern, max_depth, is_search=is_search).run()


def _char(char: str) -> str:
    return char if char.isascii() and char.isalnum() else f"\\u{{{ord(char):x}}}"


@final
class _Translation:
    def __init__(self, pattern: str, max_depth: int, *, is_search: bool) -> None:
        self._pattern = pattern
        self._max_depth = max_depth
        self._is_search = is_search
        self._at = 0
        self._depth = 0
        self._is_part = False
        """Whether something stands before that can be repeated"""
        self._done: list[str] = []
        """Alternatives that are complete"""
        self._parts: list[str] = []
        self._is_anchored = [False, False]
        """Whether this alternative begins and ends where the text does"""

    def run(self) -> str:
        while self._at < len(self._pattern):
            self._part()
        if self._depth:
            raise self._fault("a ( that is not closed")
        self._end_alternative()
        return "|".join(self._done)

    def _part(self) -> None:
        match self._pattern[self._at]:
            case "(":
                self._open()
            case ")":
                self._close()
            case "|":
                self._alternative()
            case "^" | "$":
                self._anchor()
            case "*" | "+" | "?" | "{":
                self._repeat()
            case "[":
                self._add(self._class())
            case ".":
                self._at += 1
                self._add(_DOT)
            case "\\":
                single, several = self._escape()
                self._add(_char(single) if single else f"[{several}]")
            case char:
                self._at += 1
                self._add(_char(char))

    def _add(self, part: str) -> None:
        self._parts.append(part)
        self._is_part = True

    # ---- structure ---------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        found = _GROUP.match(self._pattern, self._at)
        if found is None:
            raise self._fault("a group of a kind that xgrammar does not support")
        self._depth += 1
        if self._depth > self._max_depth:
            raise self._fault(f"more than {self._max_depth} groups inside each other")
        self._at = found.end()
        self._parts.append("(?:")
        self._is_part = False

    def _close(self) -> None:
        if not self._depth:
            raise self._fault("a ) that closes nothing")
        self._depth -= 1
        self._at += 1
        self._add(")")

    def _alternative(self) -> None:
        self._at += 1
        self._is_part = False
        if self._depth:
            self._parts.append("|")
        else:
            self._end_alternative()

    def _end_alternative(self) -> None:
        """Take note of an alternative, with any text around it where it need not be all."""
        any_text = f"{ANY}*" if self._is_search else ""
        begins, ends = self._is_anchored
        before, behind = "" if begins else any_text, "" if ends else any_text
        self._done.append(f"{before}{''.join(self._parts)}{behind}")
        self._parts = []
        self._is_anchored = [False, False]

    def _anchor(self) -> None:
        is_end = self._pattern[self._at] == "$"
        behind = self._pattern[self._at + 1 : self._at + 2]
        if self._depth or (behind not in ("", "|") if is_end else self._parts):
            raise self._fault("an anchor that does not stand at an end of the whole")
        self._is_anchored[is_end] = True
        self._is_part = False
        self._at += 1

    def _repeat(self) -> None:
        found = _QUANTIFIER.match(self._pattern, self._at)
        if found is None or not self._is_part:
            raise self._fault(f"{self._pattern[self._at]} repeats nothing")
        low, high = int(found[2] or 0), int(found[4] or 0)
        if max(low, high) > _MAX_REPEAT or (found[4] and high < low):
            raise self._fault(f"the repetition {found[0]}, which must be of {_MAX_REPEAT} times at most")
        self._at = found.end()
        if self._pattern.startswith(
            "?", self._at
        ):  # as few as will do: for a whole text it makes no difference
            self._at += 1
        self._parts.append(found[0])
        self._is_part = False

    # ---- characters --------------------------------------------------------------------------------------------------

    def _class(self) -> str:
        is_negated = self._pattern.startswith("[^", self._at)
        self._at += 2 if is_negated else 1
        found: list[str] = []
        while not self._pattern.startswith("]", self._at):
            found.append(self._range())
        self._at += 1
        if not found:
            raise self._fault("a class without characters")
        return f"[{'^' if is_negated else ''}{''.join(found)}]"

    def _range(self) -> str:
        first, several = self._class_char()
        is_range = self._pattern.startswith("-", self._at) and not self._pattern.startswith("-]", self._at)
        if not first or not is_range:
            return _char(first) if first else several
        self._at += 1
        last, _ = self._class_char()
        if last < first:
            raise self._fault("a range whose ends are the wrong way round")
        return f"{_char(first)}-{_char(last)}"

    def _class_char(self) -> tuple[str, str]:
        """As ``_escape``, for what may stand in a class."""
        char = self._pattern[self._at : self._at + 1]
        if not char:
            raise self._fault("a [ that is not closed")
        if char == "\\":
            return self._escape()
        self._at += 1
        return char, ""

    def _escape(self) -> tuple[str, str]:
        """A character; or none, and the ranges of many."""
        name = self._pattern[self._at + 1 : self._at + 2]
        if found := _HEX.match(self._pattern, self._at + 1):
            self._at = found.end()
            return self._coded(int(found[1] or found[2] or found[3] or found[4], 16)), ""
        if several := _CLASSES.get(name) or _OTHERS.get(name):
            self._at += 2
            return "", several
        if name in _CONTROLS and not re.match(r"0\d", self._pattern[self._at + 1 :]):
            self._at += 2
            return _CONTROLS[name], ""
        if not name or name.isalnum():
            raise self._fault(f"the escape \\{name}, which xgrammar does not support")
        self._at += 2
        return name, ""

    def _coded(self, code: int) -> str:
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise self._fault(f"the code {code:x} of no character")
        return chr(code)

    def _fault(self, what: str) -> InvalidGrammar:
        return InvalidGrammar(f"character {self._at + 1} of the regular expression: {what}")
