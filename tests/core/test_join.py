"""The handshake of ranks of other machines: what is believed, and that nothing else is."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve.core.join import (
    ANSWER_BYTES,
    CLAIM_BYTES,
    GREETING_BYTES,
    NO_ANSWER,
    is_answer,
    is_claim,
    is_greeting,
    make_answer,
    make_claim,
    make_greeting,
    model_digest,
)
from trioserve.errors import ModelError

KEY = b"a key of both sides"


def flipped(data: bytes, bit: int) -> bytes:
    at = bit % (8 * len(data))
    return data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]


def test_who_has_the_key_is_believed_by_both_sides() -> None:
    greeting = make_greeting()
    claim = make_claim(KEY, greeting)
    answer = make_answer(KEY, greeting, claim)
    assert (len(greeting), len(claim), len(answer)) == (GREETING_BYTES, CLAIM_BYTES, ANSWER_BYTES)
    assert (
        is_greeting(greeting) and is_claim(KEY, greeting, claim) and is_answer(KEY, greeting, claim, answer)
    )


@given(st.integers(0, 10_000))
def test_a_single_bit_that_is_different_is_not(bit: int) -> None:
    greeting = make_greeting()
    claim = make_claim(KEY, greeting)
    answer = make_answer(KEY, greeting, claim)
    assert not is_claim(KEY, greeting, flipped(claim, bit))
    assert not is_claim(KEY, flipped(greeting, bit), claim)
    assert not is_claim(flipped(KEY, bit), greeting, claim)
    assert not is_answer(KEY, greeting, claim, flipped(answer, bit))
    assert not is_answer(flipped(KEY, bit), greeting, claim, answer)


def test_what_one_side_said_is_no_proof_of_the_other_nor_a_second_time() -> None:
    greeting = make_greeting()
    claim = make_claim(KEY, greeting)
    assert not is_answer(KEY, greeting, claim, claim[-ANSWER_BYTES:])
    assert not is_answer(KEY, greeting, claim, NO_ANSWER)
    assert not is_claim(KEY, make_greeting(), claim)
    assert not is_greeting(b"HTTP/1.1 400 Bad Request\r\n\r\n".ljust(GREETING_BYTES))


def test_models_are_told_apart_by_what_they_are_and_not_by_where_they_lie(tmp_path: Path) -> None:
    def made(name: str, config: str = "{}", index: str = "{}", num_bytes: int = 8) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(config)
        (folder / "model.safetensors.index.json").write_text(index)
        (folder / "model-1.safetensors").write_bytes(bytes(num_bytes))
        (folder / "README.md").write_text(name)
        return model_digest(folder)

    same = made("a")
    assert made("b") == same
    others = [made("c", config='{"a": 1}'), made("d", index="[]"), made("e", num_bytes=9)]
    assert len({same, *others}) == 4


def test_a_folder_that_cannot_be_read_is_the_operators_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelError, match="cannot be read"):
        model_digest(tmp_path)
