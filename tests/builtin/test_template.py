"""The chat template: what it writes, in jinja2's sandbox and in transformers."""

from itertools import islice
from typing import Any

import pytest
from transformers import AutoTokenizer

from trioserve.builtin import MODEL_DIR
from trioserve.builtin.corpus import conversations
from trioserve.builtin.template import render

_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_a_question_waits_for_its_answer() -> None:
    assert (
        render([user("Hi")], add_generation_prompt=True)
        == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_thinking_is_a_switch_of_the_prompt() -> None:
    prompt = render([user("Hi")], add_generation_prompt=True, enable_thinking=True)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n")


@pytest.mark.parametrize("role", ["system", "developer"])
def test_developer_is_another_word_for_system(role: str) -> None:
    assert render([{"role": role, "content": "Be brief."}, user("Hi")]).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n"
    )


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render([user(parts)]) == "<|im_start|>user\nab<|im_end|>\n"


def test_tools_stand_in_the_system_turn() -> None:
    text = render([{"role": "system", "content": "Be kind."}, user("Hi")], [_TOOL])
    signature = 'Get the weather: get_weather("city": string, "days": integer)'
    assert text.startswith(
        f"<|im_start|>system\nBe kind.\n\nYou can call these tools:\n{signature}<|im_end|>\n"
    )


def test_a_tool_without_parameters_or_description_renders() -> None:
    assert "\nnow()<|im_end|>" in render([user("Hi")], [{"type": "function", "function": {"name": "now"}}])


@pytest.mark.parametrize("arguments", [{"city": "Łódź"}, '{"city": "Łódź"}'])
def test_tool_calls_and_results_render(arguments: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [
        user("Weather?"),
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    block = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Łódź"}}\n</tool_call>'
    assert render(messages).endswith(
        f"<|im_start|>assistant\n{block}\n{block}<|im_end|>\n"
        "<|im_start|>tool\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
    )


def test_thoughts_are_kept_for_the_last_answer_only() -> None:
    answer = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}
    first = [user("2+2?"), answer]
    assert render(first).endswith("<think>\n2 and 2\n</think>\n\n4<|im_end|>\n")
    assert "2 and 2" not in render([*first, user("And now?")])


def test_thoughts_left_in_the_content_are_dropped() -> None:
    text = render(
        [user("2+2?"), {"role": "assistant", "content": "<think>\nhm\n</think>\n\n4"}, user("Sure?")]
    )
    assert "<|im_start|>assistant\n4<|im_end|>" in text


def test_transformers_renders_the_same() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL_DIR)
    for each in islice(conversations("template"), 200):
        theirs = tokenizer.apply_chat_template(each.messages, tools=each.tools or None, tokenize=False)
        assert theirs == render(each.messages, each.tools)
