"""Grammars in the manner of GBNF, ``root ::= ...``, as Lark.

Rules that describe characters without recursion become terminals, and runs of such parts in other rules, too, so that
the parser sees words and not single characters.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, final

from trioserve.errors import InvalidGrammar
from trioserve.grammars.lark import either, quoted

ROOT: Final = "root"
_MAX_REPEAT: Final = 100_000
_RULE: Final = re.compile(r"^[ \t]*[A-Za-z_][\w.\-]*[ \t]*::=", re.MULTILINE)
_SKIPPED: Final = re.compile(r"(?:\s+|#[^\n]*)*")
_NAME: Final = re.compile(r"[A-Za-z_][\w.\-]*")
_DEFINED: Final = re.compile(r"[A-Za-z_][\w.\-]*\s*::=")
_LITERAL: Final = re.compile(r'"((?:[^"\\\n]|\\.)*)"|\'((?:[^\'\\\n]|\\.)*)\'')
_CLASS: Final = re.compile(r"\[(\^?)((?:[^\]\\]|\\.)*)\]", re.DOTALL)
_CHAR: Final = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))|([^\\])", re.DOTALL
)
_QUANTIFIER: Final = re.compile(r"([*+?])|\{\s*(\d{1,9})?\s*(,)?\s*(\d{1,9})?\s*\}")
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "v": "\v", "f": "\f", "0": "\0", "b": "\b", "a": "\a"}


@dataclass(frozen=True, slots=True)
class _Text:
    """An expression of Lark that matches characters."""

    expression: str


@dataclass(frozen=True, slots=True)
class _Reference:
    name: str


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: "tuple[_Node, ...]"


@dataclass(frozen=True, slots=True)
class _Either:
    options: "tuple[_Node, ...]"


@dataclass(frozen=True, slots=True)
class _Repeat:
    part: "_Node"
    low: int
    high: int | None


_Node = _Text | _Reference | _Sequence | _Either | _Repeat


def is_ebnf(text: str) -> bool:
    """Whether a grammar is of this kind."""
    return _RULE.search(text) is not None


def to_lark(text: str, *, max_depth: int) -> str:
    """The same grammar in Lark.

    Args:
        max_depth: Groups inside each other that it may have.

    Raises:
        InvalidGrammar: It is broken, or refers to what it does not have.
    """
    rules = _EbnfParser(text, max_depth).rules()
    if ROOT not in rules:
        raise InvalidGrammar(f"the grammar has no rule {ROOT}")
    return _Emitter(rules).text()


# ---- reading ---------------------------------------------------------------------------------------------------------


@final
class _EbnfParser:
    def __init__(self, text: str, max_depth: int) -> None:
        self._text = text
        self._max_depth = max_depth
        self._at = 0

    def rules(self) -> dict[str, _Node]:
        found: dict[str, _Node] = {}
        self._skip()
        while self._at < len(self._text):
            if not _DEFINED.match(self._text, self._at):
                raise self._fault("a rule, name ::= ..., was expected")
            name = self._take(_NAME)[0]
            if name in found:
                raise self._fault(f"there are two rules {name}")
            self._skip()
            self._at += len("::=")
            found[name] = self._either(depth=0)
            if self._text[self._at : self._at + 1] == ")":
                raise self._fault("a ) that closes nothing")
        for name, node in found.items():
            for reference in references(node):
                if reference not in found:
                    raise InvalidGrammar(
                        f"rule {name} of the grammar refers to {reference}, and there is none"
                    )
        return found

    def _either(self, *, depth: int) -> _Node:
        if depth > self._max_depth:
            raise self._fault(f"more than {self._max_depth} groups inside each other")
        options = [self._sequence(depth=depth)]
        while self._text.startswith("|", self._at):
            self._at += 1
            options.append(self._sequence(depth=depth))
        return options[0] if len(options) == 1 else _Either(tuple(options))

    def _sequence(self, *, depth: int) -> _Node:
        parts: list[_Node] = []
        self._skip()
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            if _DEFINED.match(self._text, self._at):
                break
            parts.append(self._repeated(self._part(depth=depth)))
            self._skip()
        return parts[0] if len(parts) == 1 else _Sequence(tuple(parts))

    def _part(self, *, depth: int) -> _Node:
        match self._text[self._at]:
            case "(":
                return self._group(depth=depth + 1)
            case "[":
                return _Text(f"/{self._class()}/")
            case '"' | "'":
                found = self._take(_LITERAL)
                chars = self._chars(found[1] if found[1] is not None else found[2])
                return _Text(quoted("".join(chars)))
            case ".":
                self._at += 1
                return _Text("/(?s:.)/")
            case _:
                return _Reference(self._take(_NAME)[0])

    def _group(self, *, depth: int) -> _Node:
        self._at += 1
        if self._text.startswith(("=", "!", "?"), self._at):
            raise self._fault("lookahead is not supported")
        group = self._either(depth=depth)
        if not self._text.startswith(")", self._at):
            raise self._fault("a ( that is not closed")
        self._at += 1
        return group

    def _repeated(self, part: _Node) -> _Node:
        while True:
            at = _SKIPPED.match(self._text, self._at)
            found = _QUANTIFIER.match(self._text, at.end() if at else self._at)
            if found is None:
                return part
            self._at = found.end()
            part = _Repeat(part, *self._counts(found))

    def _counts(self, found: re.Match[str]) -> tuple[int, int | None]:
        if found[1]:
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[1]]
        low = int(found[2] or 0)
        high = int(found[4]) if found[4] else None if found[3] else low
        if max(low, high or 0) > _MAX_REPEAT or (high is not None and high < low):
            raise self._fault(f"a repetition {found[0]}, which must be of {_MAX_REPEAT} times at most")
        return low, high

    def _class(self) -> str:
        found = self._take(_CLASS)
        chars = deque(self._chars(found[2], keeps_dashes=True))
        if not chars:
            return r"[\x00-\x{10ffff}]" if found[1] else r"[a&&b]"
        parts = []
        while chars:
            first = chars.popleft()
            if len(chars) > 1 and chars[0] is _DASH:
                chars.popleft()
                last = chars.popleft()
                if last < first:
                    raise self._fault(f"a range {first}-{last} whose ends are the wrong way round")
                parts.append(f"{_in_class(first)}-{_in_class(last)}")
            else:
                parts.append(_in_class(first))
        return f"[{found[1]}{''.join(parts)}]"

    def _chars(self, text: str, *, keeps_dashes: bool = False) -> Iterator[str]:
        """The characters that a literal or class spells; a dash that was not escaped is ``_DASH`` itself."""
        for found in _CHAR.finditer(text):
            if digits := found[1] or found[2] or found[3]:
                code = int(digits, 16)
                if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                    raise self._fault(f"{found[0]} is no character")
                yield chr(code)
            elif found[4]:
                yield _ESCAPES.get(found[4], found[4])
            else:
                yield _DASH if keeps_dashes and found[5] == "-" else found[5]

    def _skip(self) -> None:
        if found := _SKIPPED.match(self._text, self._at):
            self._at = found.end()

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise self._fault(f"{self._text[self._at : self._at + 20]!r} is not understood")
        self._at = found.end()
        return found

    def _fault(self, what: str) -> InvalidGrammar:
        line = self._text.count("\n", 0, self._at) + 1
        return InvalidGrammar(f"line {line} of the grammar: {what}")


class _Dash(str):
    __slots__ = ()


_DASH: Final = _Dash("-")


def _in_class(char: str) -> str:
    return char if char.isalnum() else f"\\x{{{ord(char):x}}}"


def references(node: _Node) -> Iterator[str]:
    """The rules that ``node`` names."""
    pending = [node]
    while pending:
        match pending.pop():
            case _Reference(name):
                yield name
            case _Sequence(parts) | _Either(parts):
                pending.extend(parts)
            case _Repeat(part, _, _):
                pending.append(part)


# ---- writing ---------------------------------------------------------------------------------------------------------


@final
class _Emitter:
    """Writes rules as Lark; each group gets a name, so that none stands inside another."""

    def __init__(self, rules: dict[str, _Node]) -> None:
        self._rules = {name: _without_tail_calls(name, node) for name, node in rules.items()}
        self._numbers = {name: number for number, name in enumerate(rules)}
        self._terminals = _regular(self._rules)
        self._lines: list[str] = []

    def text(self) -> str:
        for name, node in self._rules.items():
            expression = self._terminal(node) if name in self._terminals else self._rule(node)
            self._lines.append(f"{self._named(name)}: {expression}")
        return "\n".join([f"start: {self._named(ROOT)}", *self._lines, ""])

    def _named(self, name: str) -> str:
        return f"{'T' if name in self._terminals else 'r'}{self._numbers[name]}"

    def _hoisted(self, kind: str, expression: str) -> str:
        name = f"{kind}{len(self._numbers) + len(self._lines)}"
        self._lines.append(f"{name}: {expression}")
        return name

    def _is_regular(self, node: _Node) -> bool:
        return all(name in self._terminals for name in references(node))

    def _terminal(self, node: _Node) -> str:
        return self._written(node, self._terminal, "T")

    def _rule(self, node: _Node) -> str:
        if not isinstance(node, _Reference) and self._is_regular(node):
            return node.expression if isinstance(node, _Text) else self._hoisted("T", self._terminal(node))
        if isinstance(node, _Sequence):
            return " ".join(map(self._rule, self._runs(node.parts)))
        return self._written(node, self._rule, "r")

    def _runs(self, parts: tuple[_Node, ...]) -> Iterator[_Node]:
        """The parts of a sequence, with those that are regular and stand side by side in one."""
        run: list[_Node] = []
        for part in parts:
            if self._is_regular(part):
                run.append(part)
                continue
            if run:
                yield run[0] if len(run) == 1 else _Sequence(tuple(run))
                run = []
            yield part
        if run:
            yield run[0] if len(run) == 1 else _Sequence(tuple(run))

    def _written(self, node: _Node, write: Callable[[_Node], str], kind: str) -> str:
        match node:
            case _Text(expression):
                return expression
            case _Reference(name):
                return self._named(name)
            case _Sequence(parts):
                return " ".join(map(write, parts)) or '""'
            case _Either(options):
                written = either(map(write, options))
                return self._hoisted(kind, written[1:-1] if written.startswith("(") else written)
            case _Repeat(part, low, high):
                inner = self._hoisted(kind, write(part))
                return f"{inner}{{{low},{'' if high is None else high}}}"


def _regular(rules: dict[str, _Node]) -> set[str]:
    """The rules that no recursion is in, nor below."""
    missing = {name: set(references(node)) for name, node in rules.items()}
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, used in missing.items():
        for reference in used:
            users[reference].append(name)
    ready = deque(name for name, used in missing.items() if not used)
    found: set[str] = set()
    while ready:
        done = ready.popleft()
        found.add(done)
        for user in users[done]:
            missing[user].discard(done)
            if not missing[user]:
                ready.append(user)
    return found


def _without_tail_calls(name: str, node: _Node) -> _Node:
    """A rule that names itself at the end of alternatives only, as ``ws ::= ([ \\t] ws)?`` does, as a repetition."""
    options = _options(node)
    last = _Reference(name)
    repeated = [option[:-1] for option in options if option and option[-1] == last]
    others = [option for option in options if not option or option[-1] != last]
    if (
        not repeated
        or not others
        or any(name in references(_Sequence(part)) for part in [*repeated, *others])
    ):
        return node
    return _Sequence((_Repeat(_joined(repeated), 0, None), _joined(others)))


def _joined(options: list[tuple[_Node, ...]]) -> _Node:
    return _Either(tuple(map(_Sequence, options))) if len(options) > 1 else _Sequence(options[0])


def _options(node: _Node) -> list[tuple[_Node, ...]]:
    match node:
        case _Either(options):
            return [option for one in options for option in _options(one)]
        case _Repeat(part, 0, 1):
            return [*_options(part), ()]
        case _Sequence(parts):
            return [parts]
        case _:
            return [(node,)]
