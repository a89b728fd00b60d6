"""The input of a custom tool's call: a text that the model writes as the one argument of a function."""

import json
import re
from typing import Final, final

from trioserve.core.sequence import FinishReason
from trioserve.parsers.events import Event, ToolArgumentsDelta, ToolCallEnd, ToolCallStart

INPUT: Final = "input"
"""The name of the argument."""
_OPENING: Final = ("{", f'"{INPUT}"', ":", '"')
"""What comes before the text, with white space between."""
_UNIT: Final = re.compile(r'[^"\\]+|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|\\u[0-9a-fA-F]{4}|\\[^u]')
_HALF: Final = re.compile(r"\\u[dD][89abAB]..(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z", re.DOTALL)
"""Half a character at the end; its other half may be on the way."""
_CLOSING: Final = '"}'


@final
class InputReader:
    """From the JSON text of a call's arguments to the input; arguments of another form are the input as they are.

    Feed it valid JSON, or the beginning of it; the sum of what comes out does not depend on how the text is cut.
    """

    __slots__ = ("_held", "_is_before", "_is_over", "_is_raw")

    def __init__(self) -> None:
        self._held = ""
        self._is_before = True
        self._is_raw = False
        self._is_over = False

    def feed(self, text: str) -> str:
        """What ``text`` adds to the input."""
        if self._is_raw:
            return text
        if self._is_over:
            return ""
        self._held += text
        if self._is_before and not self._is_opened():
            return ""
        if self._is_raw:
            return self._held
        return self._characters()

    def _is_opened(self) -> bool:
        """Whether it is known what the arguments are."""
        rest = self._held
        for part in _OPENING:
            rest = rest.lstrip()
            if not rest.startswith(part):
                self._is_raw = not part.startswith(rest)
                return self._is_raw
            rest = rest[len(part) :]
        self._held, self._is_before = rest, False
        return True

    def _characters(self) -> str:
        """The text of all that is held, but for an escape that is not whole."""
        end = 0
        while (unit := _UNIT.match(self._held, end)) is not None:
            if _HALF.match(self._held, end):
                break
            end = unit.end()
        written, self._held = self._held[:end], self._held[end:]
        self._is_over = self._held.startswith('"')
        text: str = json.loads(f'"{written}"', strict=False)
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@final
class GivenCall:
    """A TextParser for a text that is the input of one custom tool's call from its beginning to its end."""

    __slots__ = ("_is_started", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_started = False

    def feed(self, text: str) -> list[Event]:
        """More of the input."""
        if not text:
            return []
        return [*self._start(), ToolArgumentsDelta(0, json.dumps(text, ensure_ascii=False)[1:-1])]

    def flush(self, finish: FinishReason) -> list[Event]:
        """No more; cut short, the call is not whole."""
        if finish is not FinishReason.STOP:
            return []
        return [*self._start(), ToolArgumentsDelta(0, _CLOSING), ToolCallEnd(0)]

    def _start(self) -> list[Event]:
        if self._is_started:
            return []
        self._is_started = True
        return [ToolCallStart(0, self._name), ToolArgumentsDelta(0, f'{{"{INPUT}": "')]
