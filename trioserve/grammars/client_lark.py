"""Lark grammars of clients: what is safe in them is passed on, the rest refused."""

import json
import re
from typing import Final, final

from trioserve.errors import InvalidGrammar
from trioserve.grammars.lark import check_rules
from trioserve.grammars.schema import check_depth, prepared

_TOKEN: Final = re.compile(
    r"""
      (?P<space>[ \t\r]+|(?:\#|//)[^\n]*)
    | (?P<newline>\n)
    | (?P<string>"(?:\\.|[^"\\\n])*")
    | (?P<regex>/(?:\\.|[^/\\])+/[imslux]*)
    | (?P<special><[^<>\s]+>)
    | (?P<reference>@[\w\-]*)
    | (?P<directive>%\w+)
    | (?P<name>[!?]?_?[A-Za-z][\w\-]*)
    | (?P<number>[+\-]?[0-9][\w.]*)
    | (?P<mark>->|\.\.|::|[:,.(){}\[\]~|&=?*+_!\-])
    """,
    re.VERBOSE,
)
_DIRECTIVES: Final = ("%import", "%ignore", "%declare", "%override")
_REFUSED_OPTIONS: Final = ("max_tokens", "stop", "stop_capture", "temperature")
"""Of rules; they take back tokens, or count them, which an answer that streams does not."""
_DECODER: Final = json.JSONDecoder()


def checked(text: str, *, max_depth: int) -> str:
    """The grammar, with the schemas inside it prepared, fit to stand alone and inside another.

    Raises:
        InvalidGrammar: It is broken, has no rule ``start``, or names tokens, other grammars or options.
    """
    return _Checker(text, max_depth).run()


@final
class _Checker:
    def __init__(self, text: str, max_depth: int) -> None:
        self._text = text
        self._max_depth = max_depth
        self._at = 0
        self._out: list[str] = []
        self._braces = 0
        self._brackets = 0
        self._is_line_start = True
        self._rule = ""
        self._named: dict[str, list[str]] = {}

    def run(self) -> str:
        while self._at < len(self._text):
            self._step()
        if self._braces:
            raise self._fault("a { is not closed")
        if "start" not in self._named:
            raise InvalidGrammar("the grammar has no rule start (or root, with ::=)")
        check_rules(self._named)
        return "".join(self._out)

    def _step(self) -> None:
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            raise self._fault("not understood")
        token, kind = found[0], found.lastgroup
        match kind:
            case "special":
                raise self._fault(f"{token} names a token of the model, which a client's grammar may not")
            case "reference":
                raise self._fault(f"{token} refers to another grammar, and there is none")
            case "directive":
                self._directive(token)
                return
            case "name":
                self._name(token.lstrip("!?"))
            case "mark":
                self._mark(token)
        self._out.append(token)
        self._at = found.end()
        if kind != "space":
            self._is_line_start = kind == "newline"

    def _name(self, name: str) -> None:
        if self._is_line_start and re.compile(r"[ \t]*[:\[{.]").match(self._text, self._at + len(name)):
            self._rule = name
            self._named.setdefault(name, [])
        elif self._brackets and name in _REFUSED_OPTIONS:
            raise self._fault(f"the option {name} of rules is not supported")
        elif self._rule:
            self._named[self._rule].append(name)

    def _mark(self, mark: str) -> None:
        self._braces += {"{": 1, "}": -1}.get(mark, 0)
        self._brackets += {"[": 1, "]": -1}.get(mark, 0)
        if self._braces < 0:
            raise self._fault("a } that closes nothing")

    def _directive(self, name: str) -> None:
        self._is_line_start = False
        end = self._at + len(name)
        if name in ("%json", "%llguidance"):
            value, end = self._json(end)
            if name == "%json":
                schema = prepared(value, max_depth=self._max_depth)
                self._out.append("%json " + json.dumps(schema.written(schema.root, {}), ensure_ascii=False))
            elif value:
                raise self._fault("%llguidance with options is not supported")
        elif name == "%regex":
            value, end = self._json(end)
            self._out.append("%regex " + json.dumps(value, ensure_ascii=False))
        elif name in _DIRECTIVES:
            self._out.append(name)
        else:
            raise self._fault(f"{name} is not supported")
        self._at = end

    def _json(self, at: int) -> tuple[object, int]:
        at += len(self._text[at:]) - len(self._text[at:].lstrip())
        try:
            value, end = _DECODER.raw_decode(self._text, at)
        except RecursionError:
            raise self._fault("a schema with too many levels") from None
        except ValueError as fault:
            raise self._fault(f"no valid JSON: {fault}") from None
        check_depth(value, self._max_depth)
        return value, end

    def _fault(self, what: str) -> InvalidGrammar:
        line = self._text.count("\n", 0, self._at) + 1
        return InvalidGrammar(f"line {line} of the grammar: {what}")
