"""The whole way from text to meaning: thinking first, then content and calls."""

from collections.abc import Iterable
from typing import final

from msgspec import Struct

from trioserve.core.sequence import FinishReason
from trioserve.parsers.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolArgumentsDelta,
    ToolCallEnd,
    ToolCallStart,
)
from trioserve.parsers.machine import TextParser
from trioserve.parsers.reasoning import ReasoningParser


@final
class Parser:
    """Parses one answer; calls are looked for behind the thinking only."""

    __slots__ = ("_num_ended", "_num_started", "_reasoning", "_tools")

    def __init__(self, reasoning: ReasoningParser | None = None, tools: TextParser | None = None) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self._num_started = 0
        self._num_ended = 0

    @property
    def is_thinking(self) -> bool:
        """Whether text that comes now is thinking, as far as is known."""
        return self._reasoning is not None and self._reasoning.is_thinking

    @property
    def is_verbatim(self) -> bool:
        """Whether text that comes now is content as it stands: the thinking is over, and no calls are looked for."""
        return self._tools is None and (self._reasoning is None or self._reasoning.is_over)

    @property
    def calls_tools(self) -> bool:
        """Whether there are calls and all of them are whole: what ``finish_reason: tool_calls`` says."""
        return 0 < self._num_started == self._num_ended

    def feed(self, text: str) -> list[Event]:
        """Return what ``text`` adds to what is known; some of it may be held back."""
        if self._reasoning is not None and not self._reasoning.is_over:
            return self._count(self._behind(self._reasoning.feed(text)))
        if self._tools is not None:
            return self._count(self._tools.feed(text))
        return [ContentDelta(text)] if text else []

    def flush(self, finish: FinishReason) -> list[Event]:
        """Return what was held back: the text ended for the reason ``finish``."""
        events: list[Event] = []
        if self._reasoning is not None:
            events = self._behind(self._reasoning.flush(finish))
        if self._tools is not None:
            events += self._tools.flush(finish)
        return self._count(events)

    def _behind(self, events: list[Event]) -> list[Event]:
        """Calls in the content that ``events`` tell."""
        tools = self._tools
        if tools is None:
            return events
        found: list[Event] = []
        for event in events:
            found += tools.feed(event.text) if isinstance(event, ContentDelta) else (event,)
        return found

    def _count(self, events: list[Event]) -> list[Event]:
        for event in events:
            if isinstance(event, ToolCallStart):
                self._num_started += 1
            elif isinstance(event, ToolCallEnd):
                self._num_ended += 1
        return events


class Call(Struct):
    """A tool call of a whole answer."""

    name: str
    call_id: str | None
    """The id that the model wrote, if the format has one."""
    arguments: str = ""
    """JSON text; the beginning of it where ``is_whole`` is not true."""
    is_whole: bool = False


class Meaning(Struct):
    """A whole answer."""

    reasoning: str
    content: str
    calls: list[Call]


def gather(events: Iterable[Event]) -> Meaning:
    """The sum of the events of one answer."""
    reasoning, content, calls = list[str](), list[str](), list[Call]()
    arguments: list[list[str]] = []
    for event in events:
        match event:
            case ReasoningDelta(text):
                reasoning.append(text)
            case ContentDelta(text):
                content.append(text)
            case ToolCallStart(_, name, call_id):
                calls.append(Call(name, call_id))
                arguments.append([])
            case ToolArgumentsDelta(index, text):
                arguments[index].append(text)
            case ToolCallEnd(index):
                calls[index].is_whole = True
    for call, parts in zip(calls, arguments, strict=True):
        call.arguments = "".join(parts)
    return Meaning("".join(reasoning), "".join(content), calls)
