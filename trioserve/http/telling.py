"""One choice of a chat answer: from the model's text to what the client is told of it, whole or in pieces."""

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, final

from msgspec import UNSET, Struct

from trioserve.core.sequence import FinishReason
from trioserve.http.reading import Reading
from trioserve.parsers.custom_input import InputReader
from trioserve.parsers.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolArgumentsDelta,
    ToolCallEnd,
    ToolCallStart,
)
from trioserve.protocol.chat import (
    CalledCustom,
    CalledCustomDelta,
    CalledFunction,
    CalledFunctionDelta,
    ChatDelta,
    ChatToolCall,
    ChatToolCallDelta,
)

_TOOL_CALLS: Final = "tool_calls"


class Piece(Struct, frozen=True):
    """More of one part of an answer."""

    kind: str
    """"reasoning", "content", "function" or "custom"."""
    text: str
    index: int = 0
    """Of the call."""
    name: str = ""
    """Of what is called; with ``call_id`` in the first piece of a call only."""
    call_id: str = ""

    def continues(self, other: "Piece") -> bool:
        """Whether it goes on right where ``other`` ends."""
        return not self.call_id and (self.kind, self.index) == (other.kind, other.index)

    @property
    def delta(self) -> ChatDelta:
        """As a chunk tells it."""
        if self.kind == "reasoning":
            return ChatDelta(reasoning_content=self.text, reasoning=self.text)
        if self.kind == "content":
            return ChatDelta(content=self.text)
        name = self.name or UNSET
        is_custom = self.kind == "custom"
        call = ChatToolCallDelta(
            index=self.index,
            id=self.call_id or UNSET,
            type=self.kind if self.call_id else UNSET,
            function=UNSET if is_custom else CalledFunctionDelta(name=name, arguments=self.text),
            custom=CalledCustomDelta(name=name, input=self.text) if is_custom else UNSET,
        )
        return ChatDelta(tool_calls=[call])


@dataclass(slots=True)
class CallIds:
    """The ids of one choice's calls: the same whenever its text is told."""

    _ids: list[str] = field(default_factory=list)

    def of(self, call: ToolCallStart) -> str:
        """The call's id: the one that the model gave it, if it did."""
        while len(self._ids) <= call.index:
            self._ids.append(f"call_{uuid.uuid4().hex}")
        return call.call_id or self._ids[call.index]


@final
class Teller:
    """Tells one choice. The sum of the pieces does not depend on how the text is cut."""

    def __init__(self, reading: Reading, call_ids: CallIds) -> None:
        self._reading = reading
        self._call_ids = call_ids
        self._parser = reading.parser()
        self._inputs: dict[int, InputReader] = {}
        """Of calls of custom tools, by index."""
        tools = () if reading.offer is None else reading.offer.tools
        self._custom = {tool.name for tool in tools if tool.is_custom}
        self._thought: list[str] = []
        """Held back until the thinking is over, where it is not streamed."""

    @property
    def is_verbatim(self) -> bool:
        """Whether all text from now on is content as it is."""
        return self._parser.is_verbatim and not self._thought

    def tell(self, text: str, finish: FinishReason | None = None) -> list[Piece]:
        """What ``text`` adds to what the client knows; with ``finish`` it is the last."""
        if finish is None and self.is_verbatim:
            return [Piece("content", text)] if text else []
        events = self._parser.feed(text)
        if finish is not None:
            events += self._parser.flush(finish)
        pieces: list[Piece] = []
        for piece in self._pieces(events, is_last=finish is not None):
            if pieces and piece.continues(last := pieces[-1]):
                pieces[-1] = Piece(last.kind, last.text + piece.text, last.index, last.name, last.call_id)
            else:
                pieces.append(piece)
        return pieces

    def finish_reason(self, natural: str | None) -> str | None:
        """The finish reason to tell, given what ended the text.

        A call that the request names is what its client waits for anyway: as OpenAI has it, that ends with "stop".
        """
        offer = self._reading.offer
        is_named = offer is not None and offer.is_named
        return _TOOL_CALLS if natural == "stop" and self._parser.calls_tools and not is_named else natural

    def _pieces(self, events: list[Event], *, is_last: bool) -> Iterator[Piece]:
        reading = self._reading
        for event in events:
            if isinstance(event, ReasoningDelta) and reading.reasoning is not None:
                if reading.tells_reasoning and reading.streams_reasoning:
                    yield Piece("reasoning", event.text)
                elif reading.tells_reasoning:
                    self._thought.append(event.text)
                continue
            yield from self._held()
            yield from self._piece(event)
        if is_last:
            yield from self._held()

    def _held(self) -> Iterator[Piece]:
        if self._thought:
            yield Piece("reasoning", "".join(self._thought))
            self._thought = []

    def _piece(self, event: Event) -> Iterator[Piece]:
        match event:
            case ContentDelta(text) | ReasoningDelta(text):
                yield Piece("content", text)
            case ToolCallStart(index, name):
                kind = "function"
                if name in self._custom:
                    kind, self._inputs[index] = "custom", InputReader()
                yield Piece(kind, "", index, name, self._call_ids.of(event))
            case ToolArgumentsDelta(index, text):
                reader = self._inputs.get(index)
                if reader is None:
                    yield Piece("function", text, index)
                elif written := reader.feed(text):
                    yield Piece("custom", written, index)
            case ToolCallEnd():
                pass


@dataclass(frozen=True, slots=True)
class Told:
    """A whole choice: the sum of its pieces."""

    content: str
    reasoning: str
    calls: list[ChatToolCall]


def gather(pieces: Iterable[Piece]) -> Told:
    """The sum of ``pieces``."""
    texts: dict[str, list[str]] = {"content": [], "reasoning": []}
    calls: dict[int, tuple[Piece, list[str]]] = {}
    for piece in pieces:
        if piece.kind in texts:
            texts[piece.kind].append(piece.text)
        else:
            calls.setdefault(piece.index, (piece, []))[1].append(piece.text)
    return Told(
        "".join(texts["content"]),
        "".join(texts["reasoning"]),
        [_call(first, "".join(parts)) for first, parts in calls.values()],
    )


def _call(first: Piece, text: str) -> ChatToolCall:
    if first.kind == "custom":
        return ChatToolCall(id=first.call_id, type="custom", custom=CalledCustom(first.name, text))
    return ChatToolCall(id=first.call_id, type="function", function=CalledFunction(first.name, text))
