"""The tokenizer: any text round-trips; letters and digits stay apart where the model needs them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from trioserve.builtin import MODEL_DIR
from trioserve.builtin.tokenizer import MARKERS, SPECIAL


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


_TOKENIZER = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    token_ids = _TOKENIZER.encode(text).ids
    assert _TOKENIZER.decode(token_ids, skip_special_tokens=False) == text


@given(st.text(alphabet="0123456789", min_size=1))
def test_every_digit_is_a_token(digits: str) -> None:
    assert _TOKENIZER.encode(digits).tokens == list(digits)


@pytest.mark.parametrize("text", ['"elephant"', "ELEPHANT", "(elephant)", "elephant"])
def test_words_without_a_space_before_are_cut_into_letters(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text).tokens
    assert "".join(tokens) == text
    assert all(len(token) == 1 for token in tokens)


def test_a_usual_word_behind_a_space_is_one_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("What is the capital").tokens[-3:] == ["Ġis", "Ġthe", "Ġcapital"]


def test_special_tokens_come_first_and_only_they_are_special(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in SPECIAL + MARKERS] == list(range(9))
    added = json.loads(tokenizer.to_str())["added_tokens"]
    assert {token["content"] for token in added if token["special"]} == set(SPECIAL)
    assert {token["content"] for token in added if not token["special"]} == set(MARKERS)


def test_markers_stay_when_special_tokens_are_skipped(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("<think>so</think><|im_end|>").ids
    assert tokenizer.decode(token_ids) == "<think>so</think>"


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_a_role_is_one_token(tokenizer: Tokenizer, role: str) -> None:
    assert tokenizer.encode(f"<|im_start|>{role}\n").tokens == ["<|im_start|>", f"{role}Ċ"]


def test_the_vocabulary_is_as_large_as_the_model_says(tokenizer: Tokenizer) -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text())
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert 4096 <= config["vocab_size"] <= 8192
