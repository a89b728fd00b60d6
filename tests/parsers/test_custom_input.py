"""The input of custom tools: out of the JSON that the model writes, however that is cut."""

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.parsers.feeding import cut
from trioserve.core.sequence import FinishReason
from trioserve.parsers.custom_input import GivenCall, InputReader
from trioserve.parsers.parser import Parser, gather


def read(text: str, places: Iterable[int]) -> str:
    reader = InputReader()
    return "".join([reader.feed(part) for part in cut(text, places)])


PLACES = st.lists(st.integers(0, 60), max_size=8)


@given(st.text(), PLACES, st.booleans(), st.sampled_from(["", " ", "\n  "]))
def test_the_text_comes_out_as_it_was_meant(text: str, places: list[int], is_ascii: bool, space: str) -> None:
    written = json.dumps(text, ensure_ascii=is_ascii)
    assert read(f'{space}{{{space}"input"{space}:{space}{written}{space}}}', places) == text


@given(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=3), PLACES)
def test_arguments_of_another_form_are_the_input_as_they_are(
    arguments: dict[str, int | str], places: list[int]
) -> None:
    text = json.dumps(arguments)
    if not text.startswith('{"input": "'):
        assert read(text, places) == text


@given(st.text(max_size=8), PLACES)
def test_a_cut_text_gives_the_beginning_of_what_the_whole_one_gives(text: str, places: list[int]) -> None:
    arguments = json.dumps({"input": text})
    for end in range(len(arguments)):
        assert text.startswith(read(arguments[:end], places))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"a\ud83d", "a\ufffd"),
        (r"\ud83d\ude00", "\U0001f600"),
        (r"\ud83dx", "\ufffdx"),
        (r"\\ud83d", r"\ud83d"),
        (r"\ude00", "\ufffd"),
        (r"\ud83d\n", "\ufffd\n"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_halves_of_characters_are_never_told(written: str, meant: str, size: int) -> None:
    assert read(f'{{"input": "{written}"}}', range(0, 40, size)) == meant


@given(st.text(), PLACES)
def test_a_whole_text_can_be_the_input(text: str, places: list[int]) -> None:
    parser = Parser(None, GivenCall("draw"))
    events = [event for part in cut(text, places) for event in parser.feed(part)]
    answer = gather(events + parser.flush(FinishReason.STOP))
    assert parser.calls_tools
    (call,) = answer.calls
    assert (call.name, json.loads(call.arguments), answer.content) == ("draw", {"input": text}, "")


def test_a_whole_text_that_is_cut_short_is_no_whole_call() -> None:
    parser = Parser(None, GivenCall("draw"))
    events = parser.feed("circle 1") + parser.flush(FinishReason.LENGTH)
    assert not parser.calls_tools
    assert gather(events).calls[0].arguments == '{"input": "circle 1'
