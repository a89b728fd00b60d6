"""Streamed text against ``tokenizers``' own decoding of the whole, for tokenizers of both kinds made at random."""

import functools
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

import trioserve
from trioserve._speedups.detokenizer import Detokenizer, Vocabulary
from trioserve.errors import UnsupportedTokenizer
from trioserve.output.vocabulary import load_vocabulary

LETTERS = "abcdefgh ,.\n0123éßñжщ日本語テ한🙂🏳️‍🌈\u0301\u200d\x00"
NUM_TOKENIZERS = 8

texts = st.text(LETTERS, max_size=40) | st.text(max_size=20)
seeds = st.integers(0, NUM_TOKENIZERS - 1)


def random_words(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices(LETTERS, k=rng.randint(1, 8))) for _ in range(count)]


def add_tokens(tokenizer: Tokenizer) -> None:
    """Add tokens that decoders have been known to trip over."""
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_end|>", AddedToken("<ça>", special=True)])
    tokenizer.add_tokens(["<tool>", "two words", "é", "▁▁", "日本", "¡", "\n\n"])


@functools.cache
def byte_level(seed: int) -> tuple[Tokenizer, Vocabulary]:
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel() if seed % 2 else decoders.Sequence([decoders.ByteLevel()])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + 30 * seed, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" ".join(random_words(rng, 300))], trainer)
    add_tokens(tokenizer)
    return tokenizer, load_vocabulary(tokenizer)


FALLBACK_CHAINS: list[list[decoders.Decoder]] = [
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)],
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()],
    [decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()],
    [decoders.Metaspace(prepend_scheme="never"), decoders.ByteFallback()],
]


@functools.cache
def byte_fallback(seed: int) -> tuple[Tokenizer, Vocabulary]:
    rng = random.Random(seed)
    words = {word.replace(" ", "▁") for word in random_words(rng, 60)} | {"▁", "a", "▁a", "▁▁", "日"}
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(words)]
    model = models.BPE(
        {token: i for i, token in enumerate(tokens)}, [], byte_fallback=True, unk_token="<unk>"
    )
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(FALLBACK_CHAINS[seed % len(FALLBACK_CHAINS)])
    add_tokens(tokenizer)
    return tokenizer, load_vocabulary(tokenizer)


def token_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None
    return found


def streamed(vocabulary: Vocabulary, token_ids: list[int], *, skip: bool) -> str:
    detokenizer = Detokenizer(vocabulary, skip_special_tokens=skip)
    return "".join(map(detokenizer.feed, token_ids)) + detokenizer.flush()


# ---- byte-level ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(seed=seeds, picks=st.lists(st.integers(0, 2**31), max_size=30), skip=st.booleans())
def test_any_byte_level_tokens_decode_as_the_whole(seed: int, picks: list[int], skip: bool) -> None:
    tokenizer, vocabulary = byte_level(seed)
    token_ids = [pick % (vocabulary.size + 2) for pick in picks]
    assert streamed(vocabulary, token_ids, skip=skip) == tokenizer.decode(token_ids, skip_special_tokens=skip)


@settings(deadline=None)
@given(seed=seeds, text=texts)
def test_byte_level_text_comes_back(seed: int, text: str) -> None:
    tokenizer, vocabulary = byte_level(seed)
    token_ids = tokenizer.encode(text).ids
    shown = streamed(vocabulary, token_ids, skip=False)
    assert shown == tokenizer.decode(token_ids, skip_special_tokens=False)
    if not {"é", "¡"} & set(text):  # as added tokens these two mean bytes of the alphabet to the decoder
        assert shown == text


# ---- byte-fallback ---------------------------------------------------------------------------------------------------


def spelled(tokenizer: Tokenizer, text: str) -> list[int]:
    return [token_id(tokenizer, f"<0x{byte:02X}>") for byte in text.encode()]


@settings(deadline=None, max_examples=300)
@given(
    seed=seeds,
    picks=st.lists(st.integers(257, 2**31) | st.text("é日🙂 a\x00", min_size=1, max_size=2), max_size=20),
    skip=st.booleans(),
)
def test_tokens_and_spelled_characters_decode_as_the_whole(
    seed: int, picks: list[int | str], skip: bool
) -> None:
    tokenizer, vocabulary = byte_fallback(seed)
    token_ids: list[int] = []
    for pick in picks:
        if isinstance(pick, str):
            token_ids += spelled(tokenizer, pick)
        else:
            token_ids.append(257 + pick % (vocabulary.size + 2 - 257))
    assert streamed(vocabulary, token_ids, skip=skip) == tokenizer.decode(token_ids, skip_special_tokens=skip)


@settings(deadline=None)
@given(seed=seeds, text=texts)
def test_byte_fallback_text_decodes_as_the_whole(seed: int, text: str) -> None:
    tokenizer, vocabulary = byte_fallback(seed)
    token_ids = tokenizer.encode(text.replace(" ", "▁")).ids
    for skip in (True, False):
        assert streamed(vocabulary, token_ids, skip=skip) == tokenizer.decode(
            token_ids, skip_special_tokens=skip
        )


@settings(deadline=None)
@given(seed=seeds, text=st.text("é日🙂", min_size=1, max_size=3), data=st.data())
def test_a_skipped_special_token_within_a_character_decodes_as_the_whole(
    seed: int, text: str, data: st.DataObject
) -> None:
    tokenizer, vocabulary = byte_fallback(seed)
    token_ids = spelled(tokenizer, text)
    token_ids.insert(data.draw(st.integers(0, len(token_ids))), token_id(tokenizer, "</s>"))
    assert streamed(vocabulary, token_ids, skip=True) == tokenizer.decode(token_ids) == text.removeprefix(" ")


@settings(deadline=None)
@given(run=st.lists(st.sampled_from([0x80, 0xBF, 0xC3, 0xE3, 0xF0, 0xFF]), max_size=4).map(bytes))
def test_a_run_without_a_character_decodes_as_the_whole(run: bytes) -> None:
    tokenizer, vocabulary = byte_fallback(0)
    token_ids = [token_id(tokenizer, f"<0x{byte:02X}>") for byte in run] + [token_id(tokenizer, "日")]
    whole = tokenizer.decode(token_ids)
    if run.decode("utf-8", "ignore") == "":
        assert streamed(vocabulary, token_ids, skip=True) == whole == "\ufffd" * len(run) + "日"


def test_a_character_in_an_invalid_run_stays() -> None:
    tokenizer, vocabulary = byte_fallback(0)
    token_ids = [*spelled(tokenizer, "é"), token_id(tokenizer, "<0xFF>")]
    assert tokenizer.decode(token_ids) == "\ufffd\ufffd\ufffd"
    assert streamed(vocabulary, token_ids, skip=True) == "é\ufffd"


def test_special_tokens_do_not_count_as_the_start() -> None:
    tokenizer, vocabulary = byte_fallback(0)
    token_ids = [token_id(tokenizer, token) for token in ("<s>", "</s>", "▁a", "▁a")]
    assert streamed(vocabulary, token_ids, skip=True) == tokenizer.decode(token_ids) == "a a"


# ---- what was read ---------------------------------------------------------------------------------------------------


def test_pieces_are_the_bytes_of_the_tokens() -> None:
    tokenizer, vocabulary = byte_level(1)
    assert vocabulary.piece(token_id(tokenizer, "Ġ")) == b" "
    assert vocabulary.piece(token_id(tokenizer, "two words")) == b"two words"
    tokenizer, vocabulary = byte_fallback(0)
    assert vocabulary.piece(token_id(tokenizer, "▁a")) == b" a"
    assert vocabulary.piece(token_id(tokenizer, "<0xE3>")) == b"\xe3"
    assert vocabulary.piece(token_id(tokenizer, "<s>")) == b"<s>"


def test_gaps_between_ids_are_allowed() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 7}, []))
    tokenizer.decoder = decoders.ByteLevel()
    vocabulary = load_vocabulary(tokenizer)
    assert vocabulary.size == 8
    assert streamed(vocabulary, [0, 3, 7, 8], skip=True) == tokenizer.decode([0, 3, 7, 8]) == "ab"


def test_without_byte_fallback_byte_tokens_are_text() -> None:
    tokenizer = Tokenizer(models.BPE({"<0x41>": 0, "▁b": 1}, []))
    tokenizer.decoder = decoders.Replace("▁", " ")
    assert streamed(load_vocabulary(tokenizer), [0, 1], skip=True) == tokenizer.decode([0, 1]) == "<0x41> b"


def test_the_tokenizer_of_the_built_in_model_is_read() -> None:
    path = Path(trioserve.__file__).parent / "builtin" / "model" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    vocabulary = load_vocabulary(tokenizer)
    text = "The capital of France is Paris.\n naïve 日本語 🙂🏳️‍🌈"
    token_ids = tokenizer.encode(text).ids
    assert streamed(vocabulary, token_ids, skip=True) == tokenizer.decode(token_ids) == text


UNSUPPORTED: list[Any] = [
    (decoders.WordPiece(), "WordPiece"),
    (decoders.BPEDecoder(), "BPEDecoder"),
    (decoders.CTC(), "CTC"),
    (decoders.Sequence([decoders.Strip(" ", 1, 0)]), "Strip"),
    (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), "Strip"),
    (decoders.Sequence([decoders.Fuse(), decoders.Strip("_", 1, 0)]), "Strip"),
    (decoders.Sequence([decoders.Fuse(), decoders.Replace("▁", " ")]), "Fuse.*Replace"),
    (decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]), "ByteFallback.*Metaspace"),
    (decoders.Sequence([decoders.ByteLevel(), decoders.ByteFallback()]), "ByteLevel.*ByteFallback"),
    (decoders.Sequence([]), "none"),
    (None, "none"),
]


@pytest.mark.parametrize(("decoder", "named"), UNSUPPORTED)
def test_other_decoders_are_refused_by_name(decoder: decoders.Decoder | None, named: str) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    if decoder is not None:
        tokenizer.decoder = decoder
    with pytest.raises(UnsupportedTokenizer, match=f"it is .*{named}"):
        load_vocabulary(tokenizer)


def test_a_replacement_by_pattern_is_refused() -> None:
    written = Tokenizer(models.BPE({"a": 0}, []))
    written.decoder = decoders.Replace("X", " ")
    tokenizer = Tokenizer.from_str(written.to_str().replace('"String":"X"', '"Regex":"X+"'))
    with pytest.raises(UnsupportedTokenizer, match="Regex"):
        load_vocabulary(tokenizer)
