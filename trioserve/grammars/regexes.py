"""Regular expressions of clients, in the manner of Python and JavaScript, as llguidance takes them.

Meanings on which the two languages differ are read narrowly, so that what is written matches in both: ``\\d`` is an
ASCII digit, while ``\\D`` is no digit of any script.
"""

import re
from dataclasses import dataclass
from typing import Final, final

from trioserve.errors import InvalidGrammar
from trioserve.grammars.lark import ANY_TEXT

MAX_CHARS: Final = 1 << 17
MAX_SIZE: Final = 100_000
"""Characters and classes of one whose repetitions are written out."""

_NARROW: Final = {
    "d": "[0-9]", "w": "[0-9A-Za-z_]", "s": "[ \\t\\n\\r\\f\\v]",
    "D": "[^\\d]", "W": "[^\\w\\p{N}]", "S": "[^\\s\\x1c-\\x1f\\x{feff}]",
}  # fmt: skip
_WIDE: Final = {
    "d": "[\\d]", "w": "[\\w\\p{N}]", "s": "[\\s\\x1c-\\x1f\\x{feff}]",
    "D": "[^0-9]", "W": "[^0-9A-Za-z_]", "S": "[^ \\t\\n\\r\\f\\v]",
}  # fmt: skip
_CONTROLS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
_HEX: Final = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|[xu]\{([0-9a-fA-F]{1,6})\}")
_OCTAL: Final = re.compile(r"0[0-7]{0,2}")
_PROPERTY: Final = re.compile(r"[pP](?:\{[\w=]+\}|[A-Z])")
_QUANTIFIER: Final = re.compile(r"([*+?])|\{(\d{1,9})?(,)?(\d{1,9})?\}")
_FLAGS: Final = re.compile(r"\?([aimsu]*)([:)])")
_NAMED: Final = re.compile(r"\?P?<[^\W\d]\w*>")
_REFUSED: Final = {
    "?=": "lookahead", "?!": "lookahead", "?<=": "lookbehind", "?<!": "lookbehind", "?>": "an atomic group",
    "?P=": "a backreference", "?(": "a condition", "?#": "a comment",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Group:
    alternatives: "list[_Sequence]"
    flags: str = ""

    @property
    def has_anchors(self) -> bool:
        return any(
            isinstance(part, _Anchor) or (isinstance(part, _Group) and part.has_anchors)
            for sequence in self.alternatives
            for part in sequence
        )


@dataclass(frozen=True, slots=True)
class _Anchor:
    char: str
    place: int


_Part = str | _Group | _Anchor
_Sequence = list[_Part]


def translated(pattern: str, *, max_depth: int, is_search: bool = False) -> str:
    """The regular expression that matches, from end to end, the texts that ``pattern`` matches.

    Args:
        max_depth: Groups inside each other that it may have.
        is_search: Whether ``pattern`` need only match somewhere in the text, as a schema's does.

    Raises:
        InvalidGrammar: It is broken, too large, or has what no finite automaton has.
    """
    if len(pattern) > MAX_CHARS:
        raise InvalidGrammar(
            f"the regular expression has {len(pattern)} characters, the limit is {MAX_CHARS}"
        )
    whole = _RegexParser(pattern, max_depth).whole()
    return _Emitter(pattern, is_search=is_search).group(whole, is_first=True, is_last=True)


# ---- reading ---------------------------------------------------------------------------------------------------------


@final
class _RegexParser:
    def __init__(self, pattern: str, max_depth: int) -> None:
        self._pattern = pattern
        self._max_depth = max_depth
        self._at = 0
        self._size = 0

    def whole(self) -> _Group:
        flags = ""
        if (found := _FLAGS.match(self._pattern, 1)) and self._pattern[0] == "(" and found[2] == ")":
            flags = _kept(found[1])
            self._at = found.end()
        group = _Group(self._alternatives(depth=0), flags)
        if self._at < len(self._pattern):
            raise self._fault("an unmatched )")
        return group

    def _alternatives(self, *, depth: int) -> list[_Sequence]:
        if depth > self._max_depth:
            raise self._fault(f"more than {self._max_depth} groups inside each other")
        found = [self._sequence(depth=depth)]
        while self._peek() == "|":
            self._at += 1
            found.append(self._sequence(depth=depth))
        return found

    def _sequence(self, *, depth: int) -> _Sequence:
        parts: _Sequence = []
        while (char := self._peek()) and char not in "|)":
            before = self._size
            part = self._part(depth=depth)
            parts.append(self._repeated(part, self._size - before))
        return parts

    def _part(self, *, depth: int) -> _Part:
        char = self._pattern[self._at]
        self._at += 1
        self._size += 1
        match char:
            case "(":
                return self._group(depth=depth + 1)
            case "[":
                return self._class()
            case "\\":
                return self._escape()
            case "^" | "$":
                return _Anchor(char, self._at - 1)
            case ".":
                return "."
            case "*" | "+" | "?":
                raise self._fault(f"nothing before {char} to repeat")
            case _:
                return _literal(char)

    def _repeated(self, part: _Part, size: int) -> _Part:
        found = _QUANTIFIER.match(self._pattern, self._at)
        if found is None or found[0] in ("{}", "{,}"):
            return part
        if isinstance(part, _Anchor) or (isinstance(part, _Group) and part.has_anchors):
            raise self._fault("a repeated anchor")
        self._at = found.end()
        quantifier = found[1] or self._counts(found, size)
        if self._peek() == "?":  # lazy or not, the same texts match as a whole
            self._at += 1
        elif self._peek() == "+":
            raise self._fault("a possessive quantifier")
        if (again := _QUANTIFIER.match(self._pattern, self._at)) and again[0] not in ("{}", "{,}"):
            raise self._fault("two quantifiers in a row")
        text = part if isinstance(part, str) else _Emitter(self._pattern).group(part)
        return text + quantifier

    def _counts(self, found: re.Match[str], size: int) -> str:
        low = int(found[2] or 0)
        high = int(found[4]) if found[4] else None if found[3] else low
        if high is not None and high < low:
            raise self._fault("a repetition whose bounds are the wrong way round")
        self._size += size * max(low, high or 0)
        if self._size > MAX_SIZE:
            raise self._fault(f"more than {MAX_SIZE} characters with repetitions written out")
        return f"{{{low},{'' if high is None else high}}}"

    def _group(self, *, depth: int) -> _Group:
        flags = ""
        if found := _NAMED.match(self._pattern, self._at):
            self._at = found.end()
        elif (found := _FLAGS.match(self._pattern, self._at)) and found[2] == ":":
            flags = _kept(found[1])
            self._at = found.end()
        elif self._peek() == "?":
            for begin, name in _REFUSED.items():
                if self._pattern.startswith(begin, self._at):
                    raise self._fault(name)
            raise self._fault("an unknown kind of group")
        group = _Group(self._alternatives(depth=depth), flags)
        if self._peek() != ")":
            raise self._fault("a group that is not closed")
        self._at += 1
        return group

    def _escape(self) -> _Part:
        char = self._peek()
        if char in ("A", "Z", "z") and char:
            self._at += 1
            return _Anchor("^" if char == "A" else "$", self._at - 2)
        if char in ("b", "B") and char:
            raise self._fault("a word boundary")
        if char.isdigit() and char != "0":
            raise self._fault("a backreference")
        return self._escaped(_NARROW)

    def _escaped(self, classes: dict[str, str]) -> str:
        """What stands behind a backslash, inside brackets or outside."""
        if found := _HEX.match(self._pattern, self._at):
            self._at = found.end()
            return self._char(int(next(filter(None, found.groups())), 16))
        if found := _OCTAL.match(self._pattern, self._at):
            self._at = found.end()
            return self._char(int(found[0], 8))
        if found := _PROPERTY.match(self._pattern, self._at):
            self._at = found.end()
            return f"\\{found[0]}"
        char = self._peek()
        self._at += 1
        if char in classes:
            return classes[char]
        if char in _CONTROLS:
            return _literal(_CONTROLS[char])
        if not char or (char.isascii() and char.isalnum()):
            raise self._fault(f"an escape that is not known, \\{char}")
        return _literal(char)

    def _char(self, code: int) -> str:
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise self._fault("half of a surrogate pair, or a code beyond Unicode")
        return _literal(chr(code))

    def _class(self) -> str:
        is_negated = self._peek() == "^"
        self._at += is_negated
        parts: list[str] = []
        while self._peek() != "]" or not parts:
            first = self._member(is_negated=is_negated)
            following = self._pattern[self._at : self._at + 2]
            if following.startswith("-") and following not in ("-", "-]") and not _is_class(first):
                self._at += 1
                last = self._member(is_negated=is_negated)
                if _is_class(last) or _code(last) < _code(first):
                    raise self._fault("a range whose ends are the wrong way round")
                first += f"-{last}"
            parts.append(first)
        self._at += 1
        return f"[{'^' if is_negated else ''}{''.join(parts)}]"

    def _member(self, *, is_negated: bool) -> str:
        char = self._peek()
        self._at += 1
        if not char:
            raise self._fault("a [ that is not closed")
        if char != "\\":
            return _literal(char)
        if self._peek() == "b":
            self._at += 1
            return _literal("\b")
        return self._escaped(_WIDE if is_negated else _NARROW)

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _fault(self, what: str) -> InvalidGrammar:
        return _fault(self._pattern, self._at, what)


def _kept(flags: str) -> str:
    """Of flags, those that change what matches here: not those of Unicode, and anchors stand at the ends only."""
    return "".join(sorted(set(flags) & set("is")))


def _literal(char: str) -> str:
    """One character, in brackets or outside."""
    if char.isalnum() or char in "_<>" or (char == " " and char.isascii()):
        return char
    return f"\\x{{{ord(char):x}}}"


def _is_class(member: str) -> bool:
    return member.startswith(("[", "\\p", "\\P"))


def _code(member: str) -> int:
    return int(member[3:-1], 16) if member.startswith("\\x") else ord(member)


def _fault(pattern: str, at: int, what: str) -> InvalidGrammar:
    shown = pattern if len(pattern) <= 80 else pattern[:77] + "..."
    return InvalidGrammar(f"the regular expression {shown!r} cannot be used: {what} (at character {at})")


# ---- writing ---------------------------------------------------------------------------------------------------------


@final
class _Emitter:
    """Writes groups; anchors are dropped where they say nothing, at the ends of the whole.

    Where a pattern may match anywhere, the alternatives that reach an end of it without an anchor take any text there.
    """

    def __init__(self, pattern: str, *, is_search: bool = False) -> None:
        self._pattern = pattern
        self._around = ANY_TEXT if is_search else ""

    def group(self, group: _Group, *, is_first: bool = False, is_last: bool = False) -> str:
        inside = "|".join(
            self._sequence(sequence, is_first=is_first, is_last=is_last) for sequence in group.alternatives
        )
        return f"(?{group.flags}:{inside})"

    def _sequence(self, parts: _Sequence, *, is_first: bool, is_last: bool) -> str:
        begin, end = 0, len(parts)
        while is_first and begin < end and _is_anchor(parts[begin], "^"):
            begin += 1
        while is_last and begin < end and _is_anchor(parts[end - 1], "$"):
            end -= 1
        inner = parts[begin:end]
        if not inner and begin == 0 and end == len(parts):
            return self._around if is_first or is_last else ""
        delegates_first = is_first and begin == 0 and _has_anchors(inner[0]) if inner else False
        delegates_last = is_last and end == len(parts) and _has_anchors(inner[-1]) if inner else False
        written = [
            self._part(part, delegates_first and index == 0, delegates_last and index == len(inner) - 1)
            for index, part in enumerate(inner)
        ]
        before = self._around if is_first and begin == 0 and not delegates_first else ""
        after = self._around if is_last and end == len(parts) and not delegates_last else ""
        return before + "".join(written) + after

    def _part(self, part: _Part, is_first: bool, is_last: bool) -> str:
        if isinstance(part, _Anchor):
            raise _fault(self._pattern, part.place, f"{part.char} inside it")
        return part if isinstance(part, str) else self.group(part, is_first=is_first, is_last=is_last)


def _is_anchor(part: _Part, char: str) -> bool:
    return isinstance(part, _Anchor) and part.char == char


def _has_anchors(part: _Part) -> bool:
    return isinstance(part, _Group) and part.has_anchors
