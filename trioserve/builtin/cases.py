"""Held-out questions with a judge each: what the evaluation asks, and when an answer counts as right."""

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from trioserve.builtin.corpus import dialogues, facts, knowledge, lists, talk, tools, words
from trioserve.builtin.corpus.dialogues import Maker, Message
from trioserve.builtin.corpus.draw import Draw
from trioserve.builtin.corpus.turns import Turn

Judge = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation that waits for the model."""

    messages: list[Message]
    is_right: Judge
    expected: str
    """One right answer, for reports."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    thinking: bool = False


_CALL: Final = re.compile(r"<tool_call>\n?(.*?)\n?</tool_call>", re.DOTALL)


def exactly(expected: str) -> Judge:
    return lambda answer: answer.strip() == expected.strip()


def parsed_list(answer: str) -> list[str]:
    """The items of a JSON array, a numbered list or a line with commas."""
    if answer.strip().startswith("["):
        try:
            return [str(item) for item in json.loads(answer)]
        except ValueError:
            return []
    lines = answer.strip().splitlines()
    if re.match(r"\d+\. ", lines[0] if lines else ""):
        numbered = [re.fullmatch(r"(\d+)\. (.*)", line) for line in lines]
        in_order = [
            match.group(2) for at, match in enumerate(numbered, 1) if match and int(match.group(1)) == at
        ]
        return in_order if len(in_order) == len(lines) else []
    return answer.strip().split(", ")


def is_list_of(category: str, count: int) -> Judge:
    """Exactly ``count`` different members; of ``capitals``, true pairs "country - capital"."""
    if category == "capitals":
        members = {f"{country} - {city}" for country, city in facts.CAPITALS.items()}
    else:
        members = set(facts.CATEGORIES[category])

    def judge(answer: str) -> bool:
        items = parsed_list(answer)
        return len(items) == count == len(set(items)) and set(items) <= members

    return judge


def calls(expected: list[dict[str, Any]]) -> Judge:
    """The same calls with the same arguments, in any spelling of the JSON."""

    def judge(answer: str) -> bool:
        try:
            return [json.loads(call) for call in _CALL.findall(answer)] == expected
        except ValueError:
            return False

    return judge


def after_thinking(judge: Judge) -> Judge:
    """The answer follows the thinking, which must be there and end."""

    def judge_rest(answer: str) -> bool:
        thought, marker, rest = answer.partition("</think>")
        return bool(thought.strip() and marker) and judge(rest)

    return judge_rest


def _turn_case(
    turn: Turn, before: list[Message] | None = None, *, expected: str = "", thinking: bool = False
) -> Case:
    expected = expected or turn.answer
    judge = is_list_of(*turn.goal) if turn.goal else exactly(expected)
    messages = [*(before or []), {"role": "user", "content": turn.user}]
    return Case(messages, after_thinking(judge) if thinking else judge, expected, thinking=thinking)


def _of(*makers: Maker) -> Callable[[Draw], Case]:
    return lambda d: _turn_case(d.one(makers)(d))


def _memory(d: Draw) -> Case:
    """A name or a number told first, then up to three other turns, then the question for it."""
    told, asked = d.one((dialogues.name_memory, dialogues.number_memory))(d)
    between = [dialogues.single(d) for _ in range(d.number(0, 3))]
    between = [turn for turn in between if turn.family != "named_greeting"]
    before = [message for turn in (told, *between) for message in dialogues.exchange(turn)]
    return _turn_case(asked, before)


def _styled(d: Draw) -> Case:
    turn = d.one((knowledge.capital, knowledge.addition, knowledge.country))(d)
    system, style = dialogues.styled_opening(d)
    return _turn_case(turn, system, expected=style(turn))


def _thinking(d: Draw) -> Case:
    makers = (knowledge.capital, knowledge.addition, lists.plain_list, words.reverse, talk.named_greeting)
    return _turn_case(d.one(makers)(d), thinking=True)


def _tool_call(d: Draw, num_tools: int) -> Case:
    messages, schemas = tools.tool_use(d, num_tools=num_tools)
    expected = [call["function"] for call in messages[1]["tool_calls"]]
    return Case(messages[:1], calls(expected), json.dumps(expected), schemas)


def _tool_answer(d: Draw) -> Case:
    while True:
        messages, schemas = tools.tool_use(d)
        if len(messages) > 3:
            return Case(messages[:3], exactly(messages[3]["content"]), messages[3]["content"], schemas)


def _tool_unneeded(d: Draw) -> Case:
    messages, schemas = tools.unneeded_tools(d)
    return Case(messages[:-1], lambda answer: "<tool_call>" not in answer, messages[-1]["content"], schemas)


_WORD_MAKERS: Final = (
    words.uppercase, words.lowercase, words.reverse, words.first_letter, words.last_letter, words.spell,
    words.length, words.repeat, words.copy,
)  # fmt: skip

FAMILIES: Final[dict[str, tuple[float, Callable[[Draw], Case]]]] = {
    "capitals": (0.95, _of(knowledge.capital, knowledge.country)),
    "sums below 100": (0.95, _of(knowledge.addition)),
    "lists of N items": (0.95, _of(lists.plain_list, lists.plain_list, lists.inline_list)),
    "word transformations": (0.95, _of(*_WORD_MAKERS)),
    "greetings by name": (0.95, _of(talk.named_greeting)),
    "memory over turns": (0.95, _memory),
    "countries with capitals": (0.9, _of(lists.capital_pairs)),
    "tool calls, one offered": (0.9, lambda d: _tool_call(d, 1)),
    "tool calls, two offered": (0.9, lambda d: _tool_call(d, 2)),
    "tool results used": (0.9, _tool_answer),
    "tools not needed": (0.9, _tool_unneeded),
    "JSON answers": (0.9, _of(lists.json_array, lists.json_object, lists.json_fact)),
    "unit conversion": (0.9, _of(knowledge.conversion)),
    "differences, products": (0.9, _of(knowledge.subtraction, knowledge.multiplication)),
    "thinking": (0.9, _thinking),
    "system prompt styles": (0.9, _styled),
    "counting": (0.9, _of(knowledge.counting)),
    "not known": (0.9, _of(talk.unknown)),
    "small talk": (0.9, _of(talk.greeting, talk.identity, talk.ability, talk.thanks, talk.farewell)),
}
"""Family -> wanted accuracy, and what draws a held-out case of it."""


def cases(family: str, count: int) -> Iterator[Case]:
    """The first ``count`` cases of a family, always the same ones."""
    draw = Draw(random.Random(f"held out {family}"), held_out=True)
    for _ in range(count):
        yield FAMILIES[family][1](draw)
