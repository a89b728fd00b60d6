"""Grammars compiled, followed and turned into masks, with the built-in model's tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest
from llguidance import LLMatcher

import trioserve.builtin
from trioserve.errors import InvalidGrammar, ModelError
from trioserve.grammars.backend import FORBIDDEN, Matcher
from trioserve.grammars.guidance import GuidanceEngine, GuidanceMatcher, load_tokenizer

FOLDER = Path(trioserve.builtin.__file__).parent / "model"
VOCAB_SIZE = 4096
EOS = (2, 0)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "kind": {"enum": ["alpha", "alps"]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}


def engine(vocab_size: int = VOCAB_SIZE) -> GuidanceEngine:
    return GuidanceEngine(load_tokenizer(FOLDER, vocab_size, EOS))


def ids_of(text: str) -> list[int]:
    return load_tokenizer(FOLDER, VOCAB_SIZE, EOS).tokenize_str(text)


def text_of(token_ids: list[int]) -> str:
    return load_tokenizer(FOLDER, VOCAB_SIZE, EOS).decode_str(token_ids)


def schema(value: object) -> str:
    return LLMatcher.grammar_from_json_schema(json.dumps(value), overrides={"whitespace_flexible": False})


def regex(pattern: str) -> str:
    return LLMatcher.grammar_from_regex(pattern)


def allowed(backend: GuidanceEngine, *matchers: Matcher, vocab_size: int = VOCAB_SIZE) -> list[set[int]]:
    """The ids that each may take next, by way of masks in reverse order."""
    masks = np.full((len(matchers), -(-vocab_size // 32)), 0x55555555, np.int32)
    backend.fill_masks([(matcher, len(matchers) - 1 - at) for at, matcher in enumerate(matchers)], masks)
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")[:, :vocab_size]
    return [set(np.flatnonzero(row).tolist()) for row in bits[::-1]]


def test_an_answer_is_followed_from_its_beginning_to_its_end() -> None:
    matcher = engine().compile(schema(PERSON)).matcher()
    assert text_of(matcher.forced()) == '{"name":'
    assert matcher.accept(matcher.forced())
    assert matcher.forced() == []
    assert not matcher.is_over
    assert matcher.accept(ids_of('"Ada","kind":"alp'))
    assert matcher.accept(ids_of("h"))
    assert text_of(matcher.forced()) == 'a"}'
    assert matcher.accept(matcher.forced())
    assert matcher.is_over
    assert matcher.forced() == []
    assert matcher.accept([2])
    assert matcher.accept([0, 2])  # nothing comes of more of them
    assert (matcher.is_over, matcher.failure) == (True, "")


def test_a_token_that_is_not_allowed_is_not_taken_and_does_no_harm() -> None:
    matcher = engine().compile(regex("ab*c")).matcher()
    (b,) = ids_of("b")
    assert not matcher.accept([b])
    assert matcher.accept(ids_of("a"))
    assert not matcher.accept([2])
    assert not matcher.accept([*ids_of("b"), 2])
    assert matcher.failure == ""
    assert matcher.accept(ids_of("c"))
    assert not matcher.accept([b])
    assert (matcher.is_over, matcher.failure) == (True, "")


def test_a_mask_has_exactly_the_tokens_that_would_be_taken() -> None:
    backend = engine()
    compiled = backend.compile(regex("(un)?[a-c]{1,3}( x)?"))
    first, second, third = compiled.matcher(), compiled.matcher(), compiled.matcher()
    assert second.accept(ids_of("a"))
    assert third.accept(ids_of("abc x"))
    found = allowed(backend, first, second, third)
    for ids, text in ((found[0], ""), (found[1], "a")):
        for token_id in range(VOCAB_SIZE):
            matcher = compiled.matcher()
            assert matcher.accept(ids_of(text))
            assert matcher.accept([token_id]) == (token_id in ids), text_of([token_id])
    assert {2, 0} <= found[1]
    assert not found[0] & {2, 0}
    assert found[2] == {2, 0}


def test_a_token_that_is_not_allowed_is_the_end_of_a_matcher_and_nothing_of_the_text_is_told() -> None:
    compiled = engine().compile(regex("ab"))
    matcher, other = compiled.matcher(), compiled.matcher()
    (b,) = ids_of("b")
    assert matcher.take(ids_of("a")[0]) and matcher.take(b) and matcher.take(2) and matcher.take(0)
    assert not matcher.take(b) and matcher.failure == ""
    assert not other.take(b) and other.failure == FORBIDDEN
    assert not other.take(ids_of("a")[0])


def test_answers_to_one_grammar_do_not_meet() -> None:
    compiled = engine().compile(regex("[ab]+"))
    first, second = compiled.matcher(), compiled.matcher()
    assert first.accept(ids_of("a") * 3 + [2])
    assert first.is_over
    assert not second.is_over
    assert second.accept(ids_of("b"))


@pytest.mark.parametrize(
    "text",
    [
        "start: undefined_rule\n",
        regex("(a"),
        regex("(?P<a>a)(?=b)"),
        schema({"type": "no such type"}),
        '{"grammars": [',
        "",
    ],
)
def test_a_grammar_that_cannot_be_used_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(InvalidGrammar) as caught:
        engine().compile(text)
    assert str(caught.value)
    assert "non-verbose" not in str(caught.value)


def test_a_matcher_that_runs_out_of_its_budget_has_failed_for_good_and_the_next_answer_has_not() -> None:
    backend = engine()
    compiled = backend.compile(regex("(.{1,200}x){1,50}y"))
    matcher, failed = compiled.matcher(), False
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        (ids,) = allowed(backend, matcher)
        if matcher.failure:
            failed = True
            break
        if matcher.is_over or not matcher.accept([int(rng.choice(sorted(ids - set(EOS))))]):
            matcher = compiled.matcher()
    assert failed, "it has become cheaper: the test shows nothing"
    assert "non-verbose" not in matcher.failure
    assert (matcher.is_over, matcher.forced()) == (False, [])
    assert not matcher.accept([2])
    assert allowed(backend, matcher) == [{2, 0}]
    fresh = compiled.matcher()
    assert len(allowed(backend, fresh)[0]) > 1000
    assert fresh.failure == ""


def test_a_model_with_more_ids_than_its_tokenizer_never_gets_one_of_them() -> None:
    backend = engine(5000)
    (ids,) = allowed(backend, backend.compile(regex("(?s:.)*")).matcher(), vocab_size=5000)
    assert len(ids) > 3000
    assert max(ids) < VOCAB_SIZE


def test_a_model_with_fewer_ids_than_its_tokenizer_gets_none_of_the_others() -> None:
    backend = engine(1000)
    matchers = [backend.compile(regex("(?s:.)*")).matcher(), backend.compile(regex("q")).matcher()]
    free, single = allowed(backend, *matchers, vocab_size=1000)
    assert len(free) > 700
    assert single == set(ids_of("q"))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer that grammars could be enforced with"):
        load_tokenizer(tmp_path, 10, (1,))
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(ModelError, match="cannot be enforced with the tokenizer"):
        load_tokenizer(tmp_path, 10, (1,))


def test_the_library_is_never_asked_for_more_rows_than_there_are() -> None:
    backend = engine()
    matcher = backend.compile(regex("a")).matcher()
    assert isinstance(matcher, GuidanceMatcher)
    with pytest.raises(AssertionError):
        backend.fill_masks([(matcher, 1)], np.zeros((1, VOCAB_SIZE // 32), np.int32))
