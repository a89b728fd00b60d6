"""/tokenize, /detokenize, /v1/encode, /apply-template and /tokenizer_info over a tokenizer of one token a byte."""

import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.house import EOS_ID, VOCAB_SIZE, House, make_tokenizer, open_house
from trioserve.builtin import MODEL_DIR
from trioserve.http.app import create_app
from trioserve.prompt.renderer import Renderer
from trioserve.prompt.tokenizer import Tokenizer

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
RENDERED = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
TOKENIZE = ("/tokenize", "/v1/tokenize")


def ids_of(text: str) -> list[int]:
    return make_tokenizer().encode(text, add_special_tokens=False)


@pytest.mark.parametrize("path", TOKENIZE)
async def test_a_prompt_comes_back_as_its_tokens(path: str) -> None:
    async with open_house() as house:
        answer = await house.json(path, {"model": "any", "prompt": "Hé"})
    assert answer == {"count": 3, "max_model_len": 256, "tokens": ids_of("Hé"), "token_strs": None}
    assert [make_tokenizer().backend.id_to_token(token) for token in answer["tokens"]] == ["H", "Ã", "©"]


@pytest.mark.parametrize("path", TOKENIZE)
async def test_token_strs_are_the_vocabularys_own(path: str) -> None:
    async with open_house() as house:
        answer = await house.json(path, {"prompt": "a b<|im_end|>", "return_token_strs": True})
    assert answer["token_strs"] == ["a", "Ġ", "b", "<|im_end|>"]
    assert answer["tokens"][-1] == EOS_ID


async def test_several_prompts_have_several_answers() -> None:
    async with open_house() as house:
        answer = await house.json("/tokenize", {"prompt": ["ab", "", "c"], "return_token_strs": True})
        none = await house.json("/tokenize", {"prompt": []})
    assert answer["count"] == [2, 0, 1]
    assert answer["tokens"] == [ids_of("ab"), [], ids_of("c")]
    assert answer["token_strs"] == [["a", "b"], [], ["c"]]
    assert (none["count"], none["tokens"]) == ([], [])


async def test_a_conversation_comes_back_as_its_prompts_tokens() -> None:
    async with open_house() as house:
        answer = await house.json("/tokenize", {"messages": MESSAGES})
        without = await house.json("/tokenize", {"messages": MESSAGES, "add_generation_prompt": False})
        chat = await house.json("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1})
        begun = [*MESSAGES, {"role": "assistant", "content": "We"}]
        going_on = await house.json("/apply-template", {"messages": begun, "continue_final_message": True})
    assert going_on["prompt"] == RENDERED + "<|im_start|>assistant\nWe"
    assert answer["tokens"] == ids_of(RENDERED + "<|im_start|>assistant\n")
    assert without["tokens"] == ids_of(RENDERED)
    assert answer["count"] == len(answer["tokens"]) == chat["usage"]["prompt_tokens"]


async def test_tools_and_variables_reach_the_template() -> None:
    template = "{{ tools | tojson if tools else 'none' }}|{{ mood }}|{{ messages[0].content }}"
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
    async with open_house(template=template) as house:
        bare = await house.json("/apply-template", body)
        full = {**body, "tools": [tool], "chat_template_kwargs": {"mood": "gay"}}
        assert bare == {"prompt": "none||x"}
        assert await house.json("/apply-template", full) == {"prompt": json.dumps([tool]) + "|gay|x"}
        assert (await house.json("/tokenize", full))["tokens"] == ids_of(json.dumps([tool]) + "|gay|x")


async def test_special_tokens_surround_a_prompt_and_not_a_conversation() -> None:
    async with surrounding_house() as house:
        for body, marks in (
            ({"prompt": "a"}, True),
            ({"prompt": "a", "add_special_tokens": None}, True),
            ({"prompt": "a", "add_special_tokens": False}, False),
            ({"messages": MESSAGES}, False),
            ({"messages": MESSAGES, "add_special_tokens": True}, True),
        ):
            tokens = (await house.json("/tokenize", body))["tokens"]
            assert (tokens[0] == tokens[-1] == EOS_ID) is marks, body


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"input": "ab"}, "[EOS]ab[EOS]"),
        ({"input": "ab", "add_bos": False}, "ab[EOS]"),
        ({"input": "ab", "do_preprocess": True}, "[S]user\nab[EOS]\n[S]assistant\n"),
        ({"input": "", "add_bos": False}, "[EOS]"),
    ],
)
async def test_encode_as_lmdeploy_has_it(body: dict[str, Any], tokens: str) -> None:
    expected = ids_of(tokens.replace("[EOS]", "<|im_end|>").replace("[S]", "<|im_start|>"))
    async with surrounding_house() as house:
        assert await house.json("/v1/encode", body) == {"input_ids": expected, "length": len(expected)}
        several = await house.json("/v1/encode", {**body, "input": [body["input"]] * 2})
    assert several == {"input_ids": [expected] * 2, "length": [len(expected)] * 2}


async def test_detokenize_says_text_under_both_names() -> None:
    tokens = ids_of("Grüße<|im_end|>")
    async with open_house() as house:
        for path in ("/detokenize", "/v1/detokenize"):
            text = "Grüße<|im_end|>"
            assert await house.json(path, {"tokens": tokens}) == {"prompt": text, "text": text}
        plain = await house.json("/detokenize", {"tokens": tokens, "skip_special_tokens": True})
        assert plain["text"] == "Grüße"
        several = await house.json("/detokenize", {"tokens": [tokens[:2], [], tokens[:1]]})
        assert several == {"prompt": ["Gr", "", "G"], "text": ["Gr", "", "G"]}
        assert (await house.json("/detokenize", {"tokens": []}))["text"] == ""
        assert (await house.json("/detokenize", {"tokens": tokens[2:3]}))["text"] == "\ufffd"


@pytest.mark.parametrize(
    ("path", "body", "param", "said"),
    [
        ("/detokenize", {"tokens": [VOCAB_SIZE]}, "tokens", f"end at {VOCAB_SIZE - 1}, not {VOCAB_SIZE}"),
        ("/detokenize", {"tokens": [[0], [VOCAB_SIZE]]}, "tokens", "end at"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0", "greater than or equal to 0"),
        ("/detokenize", {"tokens": [[0], 1]}, "tokens.1", "valid array"),
        ("/detokenize", {"tokens": "abc"}, "tokens", "list of token ids"),
        ("/detokenize", {}, "tokens", "required"),
        ("/tokenize", {}, "prompt", "prompt or messages"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "messages", "not both"),
        ("/tokenize", {"prompt": 5}, "prompt", "string"),
        ("/tokenize", {"messages": []}, "messages", "at least 1"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages.0.content", "needs content"),
        ("/tokenize", {"messages": MESSAGES * 3}, "messages", "at most 4, not 6"),
        ("/tokenize", {"prompt": "a" * 101}, "prompt", "at most max_tokenize_len = 100 characters, not 101"),
        ("/tokenize", {"prompt": ["a" * 60, "b" * 60]}, "prompt", "not 120"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": "a" * 90}]},
            "messages",
            "max_tokenize_len = 100",
        ),
        ("/detokenize", {"tokens": [1] * 101}, "tokens", "100 token ids, not 101"),
        ("/v1/encode", {"input": "a" * 101}, "input", "max_tokenize_len = 100"),
        (
            "/v1/encode",
            {"input": "a" * 90, "do_preprocess": True},
            "input",
            "max_tokenize_len = 100",
        ),
        ("/v1/encode", {"input": [1, 2]}, "input.0", "string"),
        ("/tokenize", {"messages": MESSAGES, "tools": [5]}, "tools.0", "an object"),
        ("/tokenize", {"messages": MESSAGES, "chat_template": "x"}, "chat_template", "not supported"),
        (
            "/apply-template",
            {"messages": MESSAGES, "continue_final_message": True},
            "continue_final_message",
            "to be the assistant's",
        ),
        (
            "/apply-template",
            {"messages": MESSAGES, "chat_template_kwargs": {"messages": []}},
            "chat_template_kwargs.messages",
            "messages is a field of its own",
        ),
        ("/apply-template", {}, "messages", "required"),
    ],
)
async def test_what_is_wrong_is_named(path: str, body: dict[str, Any], param: str, said: str) -> None:
    async with open_house(max_messages=4, max_tokenize_len=100) as house:
        answer = await house.post(path, body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert said in answer.error["message"]


ROUTES: dict[str, dict[str, Any]] = {
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
    "/v1/encode": {"input": "a"},
    "/apply-template": {"messages": MESSAGES},
}


@pytest.mark.parametrize("path", ROUTES)
async def test_a_model_that_is_named_must_be_served_where_names_are_strict(path: str) -> None:
    async with open_house(strict_model=True) as house:
        for fields in ({}, {"model": None}, {"model": "reciter"}):
            await house.json(path, {**ROUTES[path], **fields})
        answer = await house.post(path, {**ROUTES[path], "model": "other"})
        assert (answer.status, answer.error["code"], answer.error["param"]) == (
            404,
            "model_not_found",
            "model",
        )
    async with open_house() as house:
        await house.json(path, {**ROUTES[path], "model": "other"})


@pytest.mark.parametrize("path", ROUTES)
async def test_a_strict_server_refuses_what_nobody_defines(path: str) -> None:
    async with open_house(strict_requests=True) as house:
        await house.json(path, ROUTES[path])
        answer = await house.post(path, {**ROUTES[path], "tokenise": True})
        assert (answer.status, answer.error["param"]) == (400, "tokenise")
    async with open_house() as house:
        await house.json(path, {**ROUTES[path], "tokenise": True})


async def test_a_model_without_a_template_still_tokenizes_prompts() -> None:
    async with open_house(template=None) as house:
        assert (await house.json("/tokenize", {"prompt": "ab"}))["count"] == 2
        answer = await house.post("/apply-template", {"messages": MESSAGES})
    assert (answer.status, answer.error["code"]) == (400, "no_chat_template")


async def test_prompts_may_be_longer_than_the_model_takes() -> None:
    text = "longer than the loop bears " * 1000
    async with open_house() as house:
        answer = await house.json("/tokenize", {"prompt": text, "return_token_strs": True})
        assert (answer["count"], answer["max_model_len"]) == (len(text), 256)
        back = await house.json("/detokenize", {"tokens": answer["tokens"]})
    assert back["text"] == text
    assert "".join(answer["token_strs"]).replace("Ġ", " ") == text


async def test_long_work_holds_up_neither_the_loop_nor_a_client_that_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tokenizer blocks until the test lets it go: what answers meanwhile does not wait for it."""
    go, began, leaves, left = threading.Event(), trio.Event(), trio.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()
    async with open_house() as house, trio.open_nursery() as nursery:
        encode = Tokenizer.encode

        def slow(self: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
            if len(text) > 5000:
                token.run_sync_soon(began.set)
                assert go.wait(20)
            return encode(self, text, add_special_tokens=add_special_tokens)

        monkeypatch.setattr(Tokenizer, "encode", slow)

        async def ask() -> None:
            await house.ask("POST", "/tokenize", {"prompt": "x" * 10_000}, leaves=leaves)
            left.set()

        nursery.start_soon(ask)
        try:
            with trio.fail_after(10):
                await began.wait()
                assert (await house.json("/tokenize", {"prompt": "short"}))["count"] == 5
                chat = {"messages": [{"role": "user", "content": "y" * 100}], "max_tokens": 1}
                await house.json("/v1/chat/completions", chat)
                assert not left.is_set()
                leaves.set()
                await left.wait()
                assert house.services.errands.borrowed_tokens == 1  # the thread itself cannot be stopped
        finally:
            go.set()
        with trio.fail_after(10):
            assert (await house.json("/tokenize", {"prompt": "x" * 6000}))["count"] == 6000


async def test_the_tokenizer_is_shown_only_where_it_may_be() -> None:
    async with open_house() as house:
        assert (await house.ask("GET", "/tokenizer_info")).status == 404
    async with open_house(enable_tokenizer_info_endpoint=True) as house:
        object.__setattr__(house.engine.model, "tokenizer_path", MODEL_DIR)
        info = (await house.ask("GET", "/tokenizer_info")).json
    assert info["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert info["eos_token"] == "<|im_end|>"
    assert info["chat_template"] == (Path(MODEL_DIR) / "chat_template.jinja").read_text(encoding="utf-8")


@asynccontextmanager
async def surrounding_house() -> AsyncIterator[House]:
    """A tokenizer that puts its end-of-sequence token on both sides of a text, and calls it the first token too."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.backend.post_processor = TemplateProcessing(
        single="<|im_end|> $A <|im_end|>", special_tokens=[("<|im_end|>", EOS_ID)]
    )
    tokenizer.special_tokens["bos_token"] = "<|im_end|>"
    async with open_house() as house:
        served = house.services.model
        house.services.serve(
            house.engine, Renderer(tokenizer, served.renderer._templates), grammars=served.grammars
        )
        yield house


@cache
def builtin_renderer() -> Renderer:
    return Renderer.load(MODEL_DIR)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(), min_size=1, max_size=5))
def test_every_text_comes_back_from_its_tokens(texts: list[str]) -> None:
    """Through the endpoints, with the tokenizer of the built-in model."""

    async def round_trip() -> None:
        async with open_house() as house:
            house.services.serve(house.engine, builtin_renderer(), grammars=house.services.model.grammars)
            house.app = create_app(house.services)
            for text in texts:
                there = await house.json("/tokenize", {"prompt": text})
                back = await house.json("/detokenize", {"tokens": there["tokens"]})
                assert back == {"prompt": text, "text": text}
                assert there["count"] == len(there["tokens"])
            many = await house.json("/tokenize", {"prompt": texts})
            assert (await house.json("/detokenize", {"tokens": many["tokens"]}))["text"] == texts

    trio.run(round_trip)
