"""Answers that call tools, in the format of a model's family."""

import json
from typing import Any, Final, final

from trioserve.core.forms import CallFormat, CallsForm, JsonArguments, JsonForm
from trioserve.errors import InvalidGrammar
from trioserve.grammars.arguments import arguments, prepared_object
from trioserve.grammars.heads import Heads, free_text_with_tokens
from trioserve.grammars.lark import LarkWriter, either, quoted
from trioserve.grammars.schema import parsed, prepared, spaced

_HERE: Final = "\x00arguments\x00"
"""Stands for the arguments while a call's text is read as JSON."""


@final
class CallsWriter:
    """Writes the expression of one CallsForm."""

    def __init__(
        self, write: LarkWriter, form: CallsForm, *, disable_any_whitespace: bool, max_depth: int
    ) -> None:
        self._write = write
        self._form = form
        self._format = form.format
        self._disable_any_whitespace = disable_any_whitespace
        self._max_depth = max_depth

    def expression(self) -> str:
        """The answer.

        Raises:
            InvalidGrammar: A tool's schema cannot be used.
        """
        if not self._format.calls:
            raise InvalidGrammar("no tool may be called")
        if self._form.is_required:
            return self._section()
        if self._form.otherwise is not None:
            return self._or_json(self._form.otherwise)
        return self._in_free_text()

    # ---- calls alone -------------------------------------------------------------------------------------------------

    def _section(self) -> str:
        first = either(
            self._write.rule(
                f"{self._write.marked(self._format.begin + call.begin)} {self._behind_begin(call)}"
            )
            for call in self._format.calls
        )
        return f"{first} {self._more()} {self._write.marked(self._format.end)}"

    def _more(self) -> str:
        """The calls behind the first."""
        most = self._format.max_calls
        if most == 1:
            return ""
        call = either(
            self._write.rule(
                f"{self._write.marked(self._format.separator + call.begin)} {self._behind_begin(call)}"
            )
            for call in self._format.calls
        )
        return f"({call}){'*' if most is None else f'{{0,{most - 1}}}'}"

    def _behind_begin(self, call: CallFormat) -> str:
        written = arguments(self._write, call.arguments, max_depth=self._max_depth)
        return f"{written} {self._write.marked(call.end)}".strip()

    # ---- calls in free text ------------------------------------------------------------------------------------------

    def _in_free_text(self) -> str:
        """Text in which triggers begin calls; what nothing marks is one at the beginning only, as parsers read it."""
        triggers = self._format.triggers
        if not triggers:
            return self._write.free_text()
        is_bare = any(trigger.startswith("{") for trigger in triggers)
        heads = self._heads(is_section=bool(self._format.begin) or is_bare)
        if is_bare:
            return f"({heads.at_once()})? {self._write.free_text()}"
        tokens = free_text_with_tokens(self._write, triggers)
        call = f"{tokens} {heads.behind_text()}".strip()
        tail = f"{tokens} {self._write.free_text()}".strip()
        if self._format.max_calls is None:
            return f"({call})* {tail}"
        return either([tail, call])

    def _heads(self, *, is_section: bool) -> Heads:
        """A trigger begins a section of calls; without marks around it, or one call allowed, a section is a call."""
        behind = self._write.marked(self._format.end)
        if is_section or self._format.max_calls is not None:
            behind = f"{self._more()} {behind}".strip()
        heads = Heads(self._write)
        for call in self._format.calls:
            begin = self._format.begin + call.begin
            following = self._write.rule(f"{self._behind_begin(call)} {behind}".strip())
            for trigger in self._format.triggers:
                if begin.startswith(trigger):
                    heads.add(trigger, begin, following)
        return heads

    # ---- calls or JSON -----------------------------------------------------------------------------------------------

    def _or_json(self, otherwise: JsonForm) -> str:
        options = spaced(
            otherwise.whitespace,
            disable_any_whitespace=self._disable_any_whitespace,
            max_depth=self._max_depth,
        )
        schema = prepared(parsed(otherwise.schema, max_depth=self._max_depth), max_depth=self._max_depth)
        answer = self._write.json(schema.written(schema.root, options))
        calls = self._calls_as_json(options) if not self._format.begin else None
        return either([self._section() if calls is None else calls, answer])

    def _calls_as_json(self, options: dict[str, Any]) -> str | None:
        """Calls that are JSON themselves, written as schemas, so that they and the answer may begin alike."""
        found = []
        for call in self._format.calls:
            around = _object_around(call)
            if around is None or not isinstance(call.arguments, JsonArguments):
                return None
            document = prepared_object(call.arguments.schema, self._max_depth)
            found.append(self._write.json(document.written(_filled(around, document.root), options)))
        separator = quoted(self._format.separator)
        most = self._format.max_calls
        more = (
            ""
            if most == 1
            else f"({separator} {either(found)}){'*' if most is None else f'{{0,{most - 1}}}'}"
        )
        return self._write.rule(f"{either(found)} {more}".strip())


def _object_around(call: CallFormat) -> dict[str, Any] | None:
    """The JSON object that a call is, with a mark for its arguments; None where it is none."""
    try:
        value = json.loads(f"{call.begin}{json.dumps(_HERE)}{call.end}")
    except ValueError:
        return None
    return value if isinstance(value, dict) and _HERE in value.values() else None


def _filled(around: dict[str, Any], arguments_schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a call."""
    return {
        "type": "object",
        "properties": {
            name: arguments_schema if value == _HERE else {"const": value} for name, value in around.items()
        },
        "required": list(around),
        "additionalProperties": False,
    }
