"""Thinking in chat: where it is told, what bounds it, and which fields switch it on and off."""

from typing import Any

import openai.types.chat as oai
import pytest
from trio.testing import MockClock

from tests.http.chats import HI, PATH, TEMPLATE, THINKING, choices, dialects, rebuilt
from tests.http.house import Answer, make_tokenizer, open_house, saying
from tests.http.test_chat import seen_by
from trioserve.core.sampling import ThinkingBudget
from trioserve.parsers.dialects import Dialects

TEXT = "<think>\nHm, 世.\n</think>\n\nWell."
THOUGHT, SAID = "Hm, 世.", "Well."


def a_house(text: str = TEXT, *, is_open: bool = False, **options: Any) -> Any:
    opening = THINKING if is_open else "assistant\n"
    given = {"template": TEMPLATE, "dialects": dialects(), **options}
    return open_house(next_token=saying(text, opening=opening), **given)


async def asked_of(body: dict[str, Any], **options: Any) -> tuple[dict[str, Any], list[Any]]:
    """The answer's first choice, whole and as a stream."""
    async with a_house(**options) as house:
        whole = await house.json(PATH, {"messages": HI, **body})
        return whole["choices"][0], await house.events(PATH, {"messages": HI, **body})


async def refused(body: dict[str, Any], **options: Any) -> Answer:
    async with a_house(**options) as house:
        answer: Answer = await house.post(PATH, {"messages": HI, **body})
    assert answer.status == 400
    return answer


async def test_thinking_is_told_by_both_names_and_content_begins_behind_it(autojump_clock: MockClock) -> None:
    choice, chunks = await asked_of({})
    told = {"role": "assistant", "content": SAID, "reasoning_content": THOUGHT, "reasoning": THOUGHT}
    assert choice["message"] == {**told, "refusal": None}
    assert rebuilt(chunks) == told
    for chunk in chunks[:-1]:
        oai.ChatCompletionChunk.model_validate(chunk, strict=True)
    deltas = [choice["delta"] for choice in choices(chunks)]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    assert all(set(delta) in ({"reasoning", "reasoning_content"}, {"content"}) for delta in deltas[1:-1])
    assert sum("reasoning" in delta for delta in deltas) > 3


async def test_a_model_that_does_not_think_is_told_to_have_thought_nothing(autojump_clock: MockClock) -> None:
    choice, _ = await asked_of({}, text=SAID)
    message = choice["message"]
    assert (message["content"], message["reasoning"], message["reasoning_content"]) == (SAID, None, None)


async def test_without_a_parser_thinking_is_content_and_the_fields_are_not_there(
    autojump_clock: MockClock,
) -> None:
    choice, chunks = await asked_of({}, dialects=Dialects())
    assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
    assert rebuilt(chunks) == {"role": "assistant", "content": TEXT}


async def test_a_prompt_that_begins_the_thinking_is_understood(autojump_clock: MockClock) -> None:
    choice, chunks = await asked_of(
        {"enable_thinking": True}, text=f"{THOUGHT}\n</think>\n\n{SAID}", is_open=True
    )
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == (THOUGHT, SAID)
    assert rebuilt(chunks)["reasoning"] == THOUGHT


async def test_an_answer_that_is_cut_while_it_thinks_has_no_content(autojump_clock: MockClock) -> None:
    choice, chunks = await asked_of({"max_tokens": 12})
    assert choice["finish_reason"] == "length"
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == ("Hm, ", "")
    assert rebuilt(chunks) == {"role": "assistant", "reasoning": "Hm, ", "reasoning_content": "Hm, "}


async def test_thinking_may_be_left_out_of_the_answer_and_still_counts(autojump_clock: MockClock) -> None:
    choice, chunks = await asked_of({"include_reasoning": False, "logprobs": True})
    assert choice["message"] == {"role": "assistant", "content": SAID, "refusal": None}
    assert rebuilt(chunks) == {"role": "assistant", "content": SAID}
    bytes_ = bytes(byte for entry in choice["logprobs"]["content"] for byte in entry["bytes"])
    assert bytes_.decode().startswith(TEXT)
    streamed = [entry for c in choices(chunks) if c["logprobs"] for entry in c["logprobs"]["content"]]
    assert streamed == choice["logprobs"]["content"]


async def test_thinking_may_stay_in_the_content_with_its_marks(autojump_clock: MockClock) -> None:
    choice, chunks = await asked_of({"separate_reasoning": False})
    assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
    assert rebuilt(chunks) == {"role": "assistant", "content": TEXT}


@pytest.mark.parametrize("max_tokens", [100, 12])
async def test_thinking_may_come_in_one_piece(max_tokens: int, autojump_clock: MockClock) -> None:
    body = {"stream_reasoning": False, "max_tokens": max_tokens}
    choice, chunks = await asked_of(body)
    told = [c["delta"]["reasoning"] for c in choices(chunks) if "reasoning" in c["delta"]]
    assert told == [choice["message"]["reasoning"]] != [None]


# ---- budgets ---------------------------------------------------------------------------------------------------------


async def thinking_of(
    body: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> ThinkingBudget | None:
    """What the rank is told of the thinking."""
    async with a_house(**options) as house:
        seen = seen_by(house, monkeypatch)
        await house.json(PATH, {"messages": HI, "max_tokens": 1, **body})
    budget: ThinkingBudget | None = seen[0].params.thinking
    return budget


FORCED_END = tuple(make_tokenizer().encode("\n</think>\n\n", add_special_tokens=False))


async def test_every_sequence_says_how_its_thinking_is_told_from_the_rest(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = await thinking_of({}, monkeypatch)
    assert told == ThinkingBudget(
        begins=("<think>",), ends=("</think>",), is_open=False, max_tokens=None, forced_end=FORCED_END
    )
    opened = await thinking_of({"enable_thinking": True}, monkeypatch, is_open=True)
    assert opened is not None and opened.is_open
    assert await thinking_of({}, monkeypatch, dialects=Dialects()) is None
    inside = await thinking_of({}, monkeypatch, dialects=dialects(reasoning="deepseek_r1"))
    assert inside is not None and inside.is_open
    closed = TEMPLATE + "<think>\n\n</think>\n\n"
    assert await thinking_of({}, monkeypatch, template=closed) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_max_tokens": 5},
        {"thinking_budget": 5},
        {"thinking_token_budget": 5},
        {"logits_processors_args": {"thinking_budget": 5}},
        {"thinking_budget": 5, "reasoning_max_tokens": 5},
    ],
)
async def test_a_budget_has_many_names(
    fields: dict[str, Any], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = await thinking_of(fields, monkeypatch)
    assert told is not None and told.max_tokens == 5


@pytest.mark.parametrize(
    ("said", "is_open"), [("<think>\nHm", True), ("<think>\nHm.\n</think>\n\nWe", None), ("We", None)]
)
async def test_an_answer_that_goes_on_with_a_message_goes_on_with_its_thinking(
    said: str, is_open: bool | None, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"messages": [*HI, {"role": "assistant", "content": said}], "continue_final_message": True}
    told = await thinking_of(body, monkeypatch, dialects=dialects(reasoning="deepseek_r1"))
    assert (None if told is None else told.is_open) == is_open


# ---- fields ----------------------------------------------------------------------------------------------------------

SWITCHED = "{{ 'on' if enable_thinking else 'off' if enable_thinking is defined else '?' }}" + TEMPLATE
EFFORT = "{{ reasoning_effort or '?' }}" + TEMPLATE


async def head_of_prompt(template: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    async with a_house(template=template) as house:
        seen = seen_by(house, monkeypatch)
        await house.json(PATH, {"messages": HI, "max_tokens": 1, **body})
    shown = make_tokenizer().decode(seen[0].token_ids, skip_special_tokens=True)
    return shown.partition("user")[0]


@pytest.mark.parametrize(
    ("template", "fields", "shown"),
    [
        (SWITCHED, {}, "?"),
        (SWITCHED, {"reasoning_effort": "none"}, "off"),
        (SWITCHED, {"reasoning_effort": "low"}, "on"),
        (SWITCHED, {"reasoning_effort": "high", "enable_thinking": False}, "off"),
        (SWITCHED, {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}, "on"),
        (SWITCHED.replace("enable_thinking", "thinking"), {"reasoning_effort": "minimal"}, "on"),
        (EFFORT.replace("enable_thinking", "x"), {"reasoning_effort": "high"}, "high"),
        (EFFORT.replace("enable_thinking", "x"), {"reasoning_effort": "none"}, "none"),
    ],
)
async def test_reasoning_effort_is_told_in_the_variables_that_the_template_reads(
    template: str,
    fields: dict[str, Any],
    shown: str,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await head_of_prompt(template, fields, monkeypatch) == shown


async def test_an_effort_that_the_model_would_not_hear_of_is_refused(autojump_clock: MockClock) -> None:
    deaf = TEMPLATE.replace("enable_thinking", "x")
    for body in ({"reasoning_effort": "low"}, {"reasoning_effort": "high", "prompt_token_ids": [1]}):
        answer = await refused(body, template=deaf)
        assert answer.error["param"] == "reasoning_effort"
    choice, _ = await asked_of({"reasoning_effort": "none"}, template=deaf)
    assert choice["message"]["reasoning"] == THOUGHT


@pytest.mark.parametrize(
    "fields",
    [
        {"include_reasoning": False},
        {"stream_reasoning": False},
        {"reasoning_max_tokens": 5},
        {"thinking_budget": 0},
        {"thinking_token_budget": 5},
        {"logits_processors_args": {"thinking_budget": 5}},
    ],
)
async def test_what_needs_thinking_to_be_known_is_refused_without_a_parser(
    fields: dict[str, Any], autojump_clock: MockClock
) -> None:
    answer = await refused(fields, dialects=Dialects())
    assert answer.error["param"].startswith(next(iter(fields)))
    assert "reasoning_parser" in answer.error["message"]


async def test_fields_that_ask_for_what_happens_anyway_need_no_parser(autojump_clock: MockClock) -> None:
    body = {"include_reasoning": True, "stream_reasoning": True, "separate_reasoning": True}
    choice, _ = await asked_of(body, dialects=Dialects())
    assert choice["message"]["content"] == TEXT
