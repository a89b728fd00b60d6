"""An answer's text is parsed alike however it is cut, and no broken call is called whole."""

import json

from tests.fuzz.source import Source
from tests.parsers.feeding import TOOLS, events_of
from tests.parsers.test_hostile import PIECES, PROMPTS, REASONING_DIALECTS, TOOL_DIALECTS, marks
from trioserve.core.sequence import FinishReason
from trioserve.parsers.custom_input import InputReader
from trioserve.parsers.dialects import open_parser
from trioserve.parsers.parser import gather

_REASONING = (None, *REASONING_DIALECTS)
_TOOLS = (None, *TOOL_DIALECTS)
_THINKING = sorted(
    {mark for dialect in REASONING_DIALECTS for mark in (*dialect.form.begins, *dialect.form.ends)}
)
SEEDS = tuple(
    bytes([reasoning, tools, 0, tools % 2, 0, 60, *range(128 + tools, 250, 3)])
    for reasoning in range(0, len(_REASONING), 3)
    for tools in range(len(_TOOLS))
)


def check(data: bytes) -> None:
    """Parse a text as any two families together, whole and cut."""
    source = Source(data)
    reasoning, tools = source.pick(_REASONING), source.pick(_TOOLS)
    prompt = source.pick(PROMPTS)
    finish = FinishReason.LENGTH if source.flag() else FinishReason.STOP
    places = Source(source.some(20))
    words = (*PIECES, *_THINKING, *(() if tools is None else marks(tools)))
    text = source.text(words[:128], 200)

    def parsed(pieces: list[str]) -> object:
        return events_of(open_parser(reasoning, tools, offered=TOOLS, prompt=prompt), pieces, finish)

    expected = parsed([text])
    assert parsed(places.cut_text(text)) == expected
    assert parsed(list(text)) == expected
    found = gather(expected)  # type: ignore[arg-type]
    for call in found.calls:
        if call.is_whole:
            assert isinstance(json.loads(call.arguments), dict)
        json.dumps([found.content, call.name, call.arguments]).encode()
    _check_input(places, text)


def _check_input(places: Source, text: str) -> None:
    """The input of a custom tool is read from JSON alike however it is cut."""
    whole = InputReader().feed(text)
    reader = InputReader()
    assert "".join(map(reader.feed, places.cut_text(text))) == whole
    whole.encode()
