"""The corpus: reproducible, right, and strict about what is held out."""

import json
import random
from itertools import islice, pairwise
from types import ModuleType

import pytest

from trioserve.builtin.cases import FAMILIES, cases
from trioserve.builtin.corpus import (
    conversations,
    dialogues,
    facts,
    knowledge,
    lists,
    stories,
    talk,
    tools,
    words,
)
from trioserve.builtin.corpus.draw import Draw, Phrases, expand

_MODULES = (talk, knowledge, words, lists, stories, dialogues, tools)


def phrases_of(module: ModuleType) -> list[Phrases]:
    named = [value for value in vars(module).values() if isinstance(value, Phrases)]
    return named + ([skill.requests for skill in tools.SKILLS] if module is tools else [])


@pytest.mark.parametrize("module", _MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_no_held_out_phrasing_can_occur_in_training(module: ModuleType) -> None:
    for phrases in phrases_of(module):
        train = set(phrases.expansions(held_out=False))
        assert train.isdisjoint(phrases.expansions(held_out=True))


@pytest.mark.parametrize("module", _MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_both_sides_of_a_phrasing_use_known_slots(module: ModuleType) -> None:
    for phrases in phrases_of(module):
        assert phrases.train and phrases.held_out
        for text in phrases.train + phrases.held_out:
            assert text.count("[") == text.count("]"), text
            assert text.count("{") == text.count("}"), text


def test_held_out_names_are_not_in_training() -> None:
    assert set(facts.NAMES).isdisjoint(facts.HELD_OUT_NAMES)
    spoken = " ".join(
        message["content"] for each in islice(conversations("names"), 3000) for message in each.messages
    )
    assert not {name for name in facts.HELD_OUT_NAMES if f" {name}" in spoken}


def test_the_same_seed_gives_the_same_conversations() -> None:
    first, again, other = (list(islice(conversations(seed), 50)) for seed in ("a", "a", "b"))
    assert first == again != other


def test_every_conversation_ends_with_an_answer() -> None:
    for each in islice(conversations("ends"), 2000):
        assert each.messages[-1]["role"] == "assistant"
        assert all(message["role"] != previous["role"] for previous, message in pairwise(each.messages))


def test_calls_name_an_offered_tool_and_its_arguments() -> None:
    for each in islice(conversations("calls"), 3000):
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in each.tools}
        for message in each.messages:
            for call in message.get("tool_calls", ()):
                parameters = offered[call["function"]["name"]]
                assert (
                    list(call["function"]["arguments"])
                    == parameters["required"]
                    == list(parameters["properties"])
                )


def test_there_are_all_countries() -> None:
    assert len(facts.CAPITALS) >= 195
    assert facts.CAPITALS["France"] == "Paris"
    assert set(facts.WELL_KNOWN) <= set(facts.CAPITALS)
    assert set(facts.CAPITALS) >= facts.ARTICLE_COUNTRIES


def test_categories_have_no_doubles() -> None:
    for members in facts.CATEGORIES.values():
        assert len(members) == len(set(members)) >= 7


@pytest.mark.parametrize("count", range(1, 8))
def test_lists_have_the_wanted_length(count: int) -> None:
    drawn = (lists.plain_list(Draw(random.Random(seed))) for seed in range(300))
    for turn in drawn:
        assert turn.goal is not None
        if turn.goal[1] == count:
            assert len(turn.answer.splitlines()) == count


def test_sums_are_right() -> None:
    for seed in range(300):
        a, plus, b, equals, total = knowledge.addition(Draw(random.Random(seed))).answer.split()
        assert (plus, equals, int(a) + int(b)) == ("+", "=", int(total))


def test_a_choice_expands_to_one_of_its_branches() -> None:
    assert {expand("[a|b [c|d]]", random.Random(seed)) for seed in range(50)} == {"a", "b c", "b d"}


def test_json_answers_parse() -> None:
    for maker in (lists.json_array, lists.json_object, lists.json_fact):
        for seed in range(100):
            json.loads(maker(Draw(random.Random(seed))).answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expected_answer_of_a_case_is_right(family: str) -> None:
    for case in cases(family, 30):
        if case.thinking:
            assert case.is_right(f"Hm.\n</think>\n\n{case.expected}")
            assert not case.is_right(case.expected)
        elif "tool calls" in family:
            call = json.dumps(json.loads(case.expected)[0])
            assert case.is_right(f"<tool_call>\n{call}\n</tool_call>")
            assert not case.is_right("<tool_call>\n{broken\n</tool_call>")
        else:
            assert case.is_right(case.expected)
