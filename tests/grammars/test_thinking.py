"""Thinking before an answer that is held to a form."""

import json
from typing import Any

import pytest

from tests.grammars.walking import accepts, plain_tokenizer, tokenizer, walk, written
from tests.parsers.feeding import events_of
from trioserve.core.forms import CallsForm, ChoiceForm, JsonForm, RegexForm, ThinkingForm
from trioserve.parsers.dialects import open_parser
from trioserve.parsers.parser import gather
from trioserve.parsers.reasoning_dialects import REASONING_DIALECTS
from trioserve.parsers.tool_dialects import TOOL_DIALECTS
from trioserve.parsers.tools import Tool

NUMBER = JsonForm(
    schema=json.dumps(
        {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["a"],
            "additionalProperties": False,
        }
    )
)
MAY_THINK = ThinkingForm(begins=("<think>",), ends=("</think>",), is_open=False)
THINKS = ThinkingForm(begins=("<think>",), ends=("</think>",), is_open=True)
each_tokenizer = pytest.mark.parametrize("of", [tokenizer, plain_tokenizer], ids=["tokens", "text"])
marked = [name for name, dialect in REASONING_DIALECTS.items() if not dialect.is_channels]


@each_tokenizer
def test_an_answer_thinks_or_does_not_as_it_likes(of: Any) -> None:
    grammar = written(NUMBER, thinking=MAY_THINK, of=of())
    assert accepts(grammar, '{"a": 1}', of=of())
    assert accepts(grammar, '<think>\nHm, {"a": "b"}?\n</think>\n\n{"a": 1}', of=of())
    assert accepts(grammar, '<think></think>{"a": 1}', of=of())
    assert not accepts(grammar, '\n{"a": 1}', of=of())
    assert not accepts(grammar, '<think>{"a": 1}', of=of())
    assert not accepts(grammar, '<think>x</think>\n\n\n\n\n\n{"a": 1}', of=of())


@each_tokenizer
def test_thinking_that_the_prompt_began_ends_before_the_body(of: Any) -> None:
    grammar = written(ChoiceForm(("yes", "no")), thinking=THINKS, of=of())
    assert accepts(grammar, "so be it </think>\nyes", of=of())
    assert accepts(grammar, "</think>no", of=of())
    assert not accepts(grammar, "yes", of=of())
    assert not accepts(grammar, "hm</think>maybe", of=of())


def test_an_end_that_is_spelled_out_is_one() -> None:
    grammar = written(ChoiceForm(("yes",)), thinking=THINKS)
    assert accepts(grammar, "hm </think>yes", special=False)
    assert not accepts(grammar, "hm </think> and </think>yes", special=False)


def test_no_other_special_token_is_thought() -> None:
    assert not accepts(written(ChoiceForm(("yes",)), thinking=THINKS), "<tool_call></think>yes")
    assert not accepts(written(ChoiceForm(("yes",)), thinking=THINKS), "<|im_end|></think>yes")


@pytest.mark.parametrize("name", marked)
@each_tokenizer
def test_every_family_is_read_as_it_thinks(name: str, of: Any) -> None:
    dialect = REASONING_DIALECTS[name]
    form = dialect.form
    thinking = ThinkingForm(begins=form.begins, ends=form.ends, is_open=True, space=form.space)
    grammar = written(NUMBER, thinking=thinking, of=of())
    for seed in range(2):
        text = walk(grammar, seed, of=of(), endings=form.ends)
        assert text is not None
        found = gather(events_of(open_parser(dialect, None, prompt="open"), [text]))
        assert isinstance(json.loads(found.content)["a"], int)


def test_calls_follow_thinking() -> None:
    form = TOOL_DIALECTS["hermes"].format([Tool("f", {"type": "object", "properties": {}})])
    assert form is not None
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    required = written(CallsForm(format=form, is_required=True), thinking=MAY_THINK)
    free = written(CallsForm(format=form, is_required=False), thinking=MAY_THINK)
    for grammar in (required, free):
        assert accepts(grammar, f"<think>\nx\n</think>\n\n{call}")
        assert accepts(grammar, call)
    assert accepts(free, f"<think>\nx\n</think>\n\n\n\n\n\nText. {call}")
    assert not accepts(required, f"<think>x</think>text {call}")


def test_a_body_that_is_any_text_takes_the_space() -> None:
    grammar = written(RegexForm("(?s).*"), thinking=THINKS)
    assert accepts(grammar, "x</think>\n\n\n\n\n\n\nanything")
