"""Tools in chat: what the model is shown, and what the client is told of its calls."""

import json
from dataclasses import replace
from typing import Any

import openai.types.chat as oai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from trio.testing import MockClock

from tests.http.chats import (
    HI,
    PATH,
    TEMPLATE,
    THINKING,
    call,
    choices,
    custom,
    dialects,
    function,
    numbered,
    rebuilt,
)
from tests.http.house import House, make_tokenizer, open_house, saying
from tests.http.test_chat import seen_by
from trioserve.core.forms import AnswerForm, CallsForm, GrammarForm
from trioserve.core.sampling import Grammar
from trioserve.parsers.dialects import Dialects, ToolDialect
from trioserve.parsers.envelope import EnvelopeReader
from trioserve.parsers.tools import ToolSet

TOOLS = [function("look"), function("dig"), custom("draw")]
ONE = call("look", at="sea")


def a_house(text: str, **options: Any) -> Any:
    given = {"template": TEMPLATE, "dialects": dialects(), "max_model_len": 512, **options}
    return open_house(next_token=saying(text), **given)


async def asked_of(text: str, body: dict[str, Any] | None = None, **options: Any) -> Any:
    """The answer of a rank that says ``text``."""
    async with a_house(text, **options) as house:
        return await house.json(PATH, {"messages": HI, "tools": TOOLS, **(body or {})})


async def test_a_call_has_openais_form(autojump_clock: MockClock) -> None:
    answer = await asked_of(ONE)
    oai.ChatCompletion.model_validate(answer, strict=True)
    choice = answer["choices"][0]
    (made,) = choice["message"].pop("tool_calls")
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": None,
        "reasoning": None,
    }
    assert choice["finish_reason"] == "tool_calls"
    assert made.pop("id").startswith("call_")
    assert made == {"type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}


async def test_an_answer_without_calls_has_no_list_of_them(autojump_clock: MockClock) -> None:
    answer = await asked_of("Nothing to call.")
    assert "tool_calls" not in answer["choices"][0]["message"]
    assert answer["choices"][0]["message"]["content"] == "Nothing to call."
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_a_stream_tells_id_type_and_name_once_and_arguments_as_they_come(
    autojump_clock: MockClock,
) -> None:
    async with a_house(ONE + call("dig", deep=True)) as house:
        *chunks, done = await house.events(PATH, {"messages": HI, "tools": TOOLS})
    assert done == "[DONE]"
    for chunk in chunks:
        oai.ChatCompletionChunk.model_validate(chunk, strict=True)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    parts = [part for c in choices([*chunks, done]) for part in c["delta"].get("tool_calls", [])]
    for index, name in enumerate(["look", "dig"]):
        first, *others = [part for part in parts if part["index"] == index]
        assert first["id"].startswith("call_")
        assert (first["type"], first["function"]["name"]) == ("function", name)
        assert all(set(part) == {"index", "function"} for part in others)
        assert all(set(part["function"]) == {"arguments"} for part in others)
        assert len(others) > 3
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_the_sdk_puts_streamed_calls_together(autojump_clock: MockClock) -> None:
    async with a_house("So: " + ONE + call("dig", deep=True)) as house:
        *chunks, _ = await house.events(PATH, {"messages": HI, "tools": TOOLS, "logprobs": True})
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(oai.ChatCompletionChunk.model_validate(chunk))
    choice = state.get_final_completion().choices[0]
    assert choice.message.content == "So: "
    assert [
        (c.type, c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls or []
    ] == [
        ("function", "look", {"at": "sea"}),
        ("function", "dig", {"deep": True}),
    ]
    assert choice.logprobs is not None
    assert choice.finish_reason == "tool_calls"


TEXTS = {
    "plain": "Just words.",
    "call": ONE,
    "two calls": ONE + "\n" + call("dig", deep=1, text="Grüße, 世界"),
    "words and a call": "Let me see.\n" + ONE,
    "thinking and a call": "<think>\nHm.\n</think>\n\n" + ONE,
    "all of it": "<think>\nHm, 世.\n</think>\n\nSo.\n" + ONE + "\nThen.",
    "custom": call("draw", input='a "circle"\n of 世\\界'),
    "custom of another form": call("draw", shape="circle"),
    "broken": '<tool_call>\n{"name": "look", "arguments": {"at": ]}\n</tool_call>',
    "no call": '<tool_call>\n{"name": 5}\n</tool_call>',
    "unknown": call("swim", far=True),
    "nothing": "",
}


@pytest.mark.parametrize(
    "fields", [{}, {"n": 2, "logprobs": True, "top_logprobs": 1}, {"max_tokens": 37}], ids=str
)
@pytest.mark.parametrize("kind", TEXTS)
async def test_the_streamed_answer_equals_the_whole_one(
    kind: str, fields: dict[str, Any], autojump_clock: MockClock
) -> None:
    body = {"messages": HI, "tools": TOOLS, "return_token_ids": True, **fields}
    async with a_house(TEXTS[kind]) as house:
        whole = await house.json(PATH, body)
        chunks = await house.events(PATH, body)
    for choice in whole["choices"]:
        mine = choices(chunks, choice["index"])
        message = choice["message"]
        ids = [t for c in mine for t in c.get("token_ids", [])]
        assert ids == choice["token_ids"] == message.pop("completion_token_ids")
        del message["prompt_token_ids"]
        for part in mine:
            part["delta"].pop("prompt_token_ids", None)
            part["delta"].pop("completion_token_ids", None)
        assert rebuilt(chunks, choice["index"]) == numbered(message)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        streamed = [entry for c in mine if c["logprobs"] for entry in c["logprobs"]["content"]]
        assert streamed == (choice["logprobs"] or {"content": []})["content"]
    assert len(whole["choices"]) == fields.get("n", 1)


async def test_a_call_that_is_cut_ends_with_length_and_is_the_beginning_of_the_whole_one(
    autojump_clock: MockClock,
) -> None:
    text = ONE + call("dig", deep=True)
    async with a_house(text, step_s=0.001) as house:
        for max_tokens in range(1, len(text) + 1, 3):
            body = {"messages": HI, "tools": TOOLS, "max_tokens": max_tokens}
            choice = (await house.json(PATH, body))["choices"][0]
            assert choice["finish_reason"] == "length"
            for made, whole in zip(
                choice["message"].get("tool_calls", []), ['{"at": "sea"}', '{"deep": true}'], strict=False
            ):
                assert whole.startswith(made["function"]["arguments"])


async def test_a_broken_call_is_never_marked_finished(autojump_clock: MockClock) -> None:
    answer = await asked_of(TEXTS["broken"])
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_the_input_of_a_custom_tool_is_told_as_text(autojump_clock: MockClock) -> None:
    text = 'a "circle"\n of 世\\界'
    async with a_house(call("draw", input=text)) as house:
        body = {"messages": HI, "tools": TOOLS}
        answer = await house.json(PATH, body)
        chunks = await house.events(PATH, body)
    oai.ChatCompletion.model_validate(answer, strict=True)
    (made,) = answer["choices"][0]["message"]["tool_calls"]
    assert (made["type"], made["custom"]) == ("custom", {"name": "draw", "input": text})
    assert "function" not in made
    parts = [part for c in choices(chunks) for part in c["delta"].get("tool_calls", [])]
    assert (parts[0]["type"], parts[0]["custom"]) == ("custom", {"name": "draw", "input": ""})
    assert len(parts) > 10


async def test_the_model_is_shown_the_tools_as_functions(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{{ tools | tojson if tools else 'none' }}" + TEMPLATE
    tools = [
        function(
            "look", description="Look", parameters={"type": "object", "properties": {}}, strict=False, x=1
        ),
        custom("draw"),
    ]
    shown = [await prompt_of({"tools": tools}, template, monkeypatch)]
    shown += [await prompt_of({"tools": tools, "tool_choice": "none"}, template, monkeypatch)]
    listed, _, rest = shown[0].partition("look draw ")
    assert json.loads(listed) == [
        {
            "type": "function",
            "function": {
                "name": "look",
                "description": "Look",
                "parameters": {"type": "object", "properties": {}},
                "x": 1,
            },
        },
        {
            "type": "function",
            "function": {
                "name": "draw",
                "parameters": {
                    "type": "object",
                    "properties": {"input": {"type": "string"}},
                    "required": ["input"],
                },
            },
        },
    ]
    assert shown[1] == "none" + rest


async def prompt_of(body: dict[str, Any], template: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the model reads, special tokens left out."""
    async with a_house("x", template=template, max_model_len=2048) as house:
        seen = seen_by(house, monkeypatch)
        await house.json(PATH, {"messages": HI, "max_tokens": 1, **body})
        return make_tokenizer().decode(
            seen[0].token_ids[: seen[0].num_prompt_tokens], skip_special_tokens=True
        )


async def test_calls_and_results_of_earlier_turns_are_shown(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [
        *HI,
        {
            "role": "assistant",
            "content": None,
            "reasoning": "hm ",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}},
                {"id": "b", "type": "custom", "custom": {"name": "draw", "input": "o"}},
            ],
        },
        {"role": "tool", "tool_call_id": "never heard of", "content": "blue"},
    ]
    shown = await prompt_of({"messages": messages, "tools": TOOLS}, TEMPLATE, monkeypatch)
    assert 'assistant\nhm {"name": "look", "arguments": {"at": "sea"}}' in shown
    assert '{"name": "draw", "arguments": {"input": "o"}}\ntool\nblue' in shown


async def test_with_tool_choice_none_calls_are_text(autojump_clock: MockClock) -> None:
    answer = await asked_of(ONE, {"tool_choice": "none"})
    message = answer["choices"][0]["message"]
    assert message["content"] == ONE and "tool_calls" not in message
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("options", "param", "reason"),
    [
        ({"dialects": Dialects()}, "tools", "tool_call_parser"),
        ({"template": "{{ messages[0].content }}<|im_start|>assistant\n"}, "tools", "does not show tools"),
    ],
)
async def test_tools_that_cannot_be_served_are_refused(
    options: dict[str, Any], param: str, reason: str, autojump_clock: MockClock
) -> None:
    async with a_house("x", **options) as house:
        body = {"messages": HI, "tools": TOOLS, "max_tokens": 1}
        answer = await house.post(PATH, body)
        assert answer.status == 400 and answer.error["param"] == param and reason in answer.error["message"]
        assert (await house.post(PATH, {**body, "tool_choice": "none"})).status == 200


# ---- calls of a form -------------------------------------------------------------------------------------------------


def forms_of(house: House, monkeypatch: pytest.MonkeyPatch) -> list[tuple[AnswerForm, str]]:
    """The forms that are asked for from now on; each gets a grammar that the rank takes."""
    forms: list[tuple[AnswerForm, str]] = []

    async def grammar(form: AnswerForm, *, param: str) -> Grammar:
        forms.append((form, param))
        return Grammar("test", "any", b"key")

    monkeypatch.setattr(house.services.model.grammars, "grammar", grammar)
    return forms


LOOK = {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize(("choice", "reason"), [(LOOK, "stop"), ("required", "tool_calls")])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_named_call_ends_with_stop_and_a_required_one_with_tool_calls(
    choice: Any, reason: str, stream: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_house(ONE) as house:
        forms, seen = forms_of(house, monkeypatch), seen_by(house, monkeypatch)
        body = {"messages": HI, "tools": TOOLS, "tool_choice": choice}
        if stream:
            found = choices(await house.events(PATH, body))[-1]
        else:
            found = (await house.json(PATH, body))["choices"][0]
            assert len(found["message"]["tool_calls"]) == 1
    assert found["finish_reason"] == reason
    ((form, param),) = forms
    assert param.startswith("tools") and isinstance(form.body, CallsForm) and form.body.is_required
    assert form.thinking is not None and not form.thinking.is_open
    assert seen[0].params.grammar == Grammar("test", "any", b"key")


async def test_where_the_model_may_do_as_it_likes_no_grammar_is_made(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_house(ONE) as house:
        forms, seen = forms_of(house, monkeypatch), seen_by(house, monkeypatch)
        await house.json(PATH, {"messages": HI, "tools": TOOLS})
    assert forms == [] and seen[0].params.grammar is None


DRAW = {"type": "custom", "custom": {"name": "draw"}}
ONLY_DRAW = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [DRAW]}}


@pytest.mark.parametrize(("choice", "reason"), [(DRAW, "stop"), (ONLY_DRAW, "tool_calls")])
@pytest.mark.parametrize("text", ["circle 1\n", "<think>\nround?\n</think>\n\ncircle 1\n", ""])
async def test_a_whole_answer_may_be_the_input_of_a_custom_tool(
    text: str, choice: Any, reason: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /.*/"}}
    tool = {"type": "custom", "custom": {"name": "draw", "format": grammar}}
    body = {"messages": HI, "tools": [tool, function("dig")], "tool_choice": choice}
    async with a_house(text) as house:
        forms = forms_of(house, monkeypatch)
        answer = await house.json(PATH, body)
        chunks = await house.events(PATH, body)
        cut = await house.json(PATH, {**body, "max_tokens": 1})
    message = answer["choices"][0]["message"]
    assert message["tool_calls"][0]["custom"] == {"name": "draw", "input": text.rpartition("</think>\n\n")[2]}
    assert answer["choices"][0]["finish_reason"] == choices(chunks)[-1]["finish_reason"] == reason
    assert forms[0][0].body == GrammarForm("start: /.*/")
    assert rebuilt(chunks).get("tool_calls", [{}])[0]["custom"] == message["tool_calls"][0]["custom"]
    assert cut["choices"][0]["finish_reason"] == ("length" if text else reason)


# ---- around it -------------------------------------------------------------------------------------------------------


async def test_what_is_stored_of_a_stream_has_the_ids_that_its_client_got() -> None:
    async with a_house("So: " + ONE + call("draw", input="o"), enable_store=True) as house:
        body = {"messages": HI, "tools": TOOLS, "store": True}
        *chunks, _ = await house.events(PATH, body)
        stored = (await house.ask("GET", f"{PATH}/{chunks[0]['id']}")).json
    parts = [part for chunk in chunks for c in chunk["choices"] for part in c["delta"].get("tool_calls", [])]
    message = stored["choices"][0]["message"]
    assert [made["id"] for made in message["tool_calls"]] == [part["id"] for part in parts if "id" in part]
    assert message["tool_calls"][1]["custom"]["input"] == "o"
    assert stored["choices"][0]["finish_reason"] == "tool_calls"


async def test_padding_hides_the_length_of_arguments_too(autojump_clock: MockClock) -> None:
    options = {"include_obfuscation": True}
    async with a_house(ONE) as house:
        *chunks, _ = await house.events(PATH, {"messages": HI, "tools": TOOLS, "stream_options": options})
    for chunk in chunks:
        (part,) = chunk["choices"][0]["delta"].get("tool_calls", [{}])
        written = json.dumps(part.get("function", {}).get("arguments", ""))[1:-1]
        assert (len(written) + len(chunk["obfuscation"])) % 32 == 0


async def test_markers_that_are_special_tokens_are_found_and_not_told(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_reader(tools: ToolSet) -> Any:
        return EnvelopeReader(tools, begins=("<|im_end|>",), ends=("\n",)).machine()

    special = ToolDialect(name="special", open=open_reader, shows_special_tokens=True)
    text = '<|im_end|>{"name": "look", "arguments": {}}'
    (end,) = make_tokenizer().encode("!", add_special_tokens=False)
    async with open_house(
        template=TEMPLATE,
        dialects=replace(dialects(), tools=special),
        next_token=saying(text, eos_id=end),
        eos_token_ids=(end,),
    ) as house:
        body = {"messages": HI, "tools": TOOLS, "max_tokens": 60}
        called = await house.json(PATH, {**body, "skip_special_tokens": True})
        plain = await house.json(PATH, {**body, "tool_choice": "none"})
    assert called["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "look"
    assert called["choices"][0]["message"]["content"] is None
    assert plain["choices"][0]["message"]["content"] == text.removeprefix("<|im_end|>")


async def test_a_call_behind_thinking_that_the_prompt_began_is_found(autojump_clock: MockClock) -> None:
    text = f"I {ONE} now.\n</think>\n\n{ONE}"
    async with open_house(
        template=TEMPLATE,
        dialects=dialects(),
        max_model_len=512,
        next_token=saying(text, opening=THINKING),
    ) as house:
        answer = await house.json(PATH, {"messages": HI, "tools": TOOLS, "enable_thinking": True})
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"] == f"I {ONE} now." and message["content"] is None
    assert len(message["tool_calls"]) == 1
