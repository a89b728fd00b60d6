"""Answers under xgrammar's masks are what their forms say."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from trioserve.builtin import MODEL_DIR
from trioserve.core.forms import (
    AnswerForm,
    ChoiceForm,
    FreeForm,
    GrammarForm,
    JsonForm,
    RegexForm,
    TagForm,
    TagsForm,
    ThinkingForm,
)
from trioserve.errors import InvalidGrammar, SettingsError

pytest.importorskip("xgrammar", reason="the extra xgrammar is not installed")
from tests.grammars.xgrammar_walking import (
    END,
    VOCAB_SIZE,
    accepts,
    allowed,
    backend,
    tokenizer,
    walk,
    written,
)
from trioserve.grammars.xgrammar import Xgrammar

# ---- regular expressions, choices, grammars --------------------------------------------------------------------------

atoms = st.sampled_from(
    [
        "a",
        "é",
        "\\d",
        "[^a-c]",
        "\\w",
        ".",
        "\\.",
        "\\n",
        "[\\s\\-x]",
        "\\x41",
        "\\u00e9",
        "[]\\]]"[1:],
        "😀",
        "\\W",
        "[\\D]",
    ]
)
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner | st.just(""), min_size=2, max_size=3).map(lambda found: f"(?:{'|'.join(found)})"),
        st.tuples(inner, st.sampled_from(["*", "+?", "{1,3}", "?"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(pattern=patterns, anchored=st.booleans(), seed=st.integers(0, 10**6))
def test_answers_match_their_regular_expression(pattern: str, anchored: bool, seed: int) -> None:
    pattern = f"^{pattern}$" if anchored and "|" not in pattern else pattern
    answer = walk(written(RegexForm(pattern)), seed)
    if answer is not None:
        assert re.fullmatch(pattern, answer, re.ASCII)


@pytest.mark.parametrize(
    "pattern",
    ["(", ")", "a**", "*", "a{3,1}", "[", "[]", "[b-a]", "(?=a)", "(?i)a", "\\1", "\\b", "\\p{L}", "\\Z", "a^b", "(^a)",
     "a$b", "\\ud800", "a{99999}", "a++", "{", "\\", "(" * 65 + ")" * 65],
)  # fmt: skip
def test_a_regular_expression_that_cannot_be_held_to_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidGrammar, match=r"character .* of the regular expression"):
        written(RegexForm(pattern))


@settings(max_examples=30, deadline=None)
@given(
    choices=st.lists(st.text('ab"\\ é🌍\n{', max_size=5), min_size=1, max_size=6), seed=st.integers(0, 10**6)
)
def test_an_answer_is_one_of_its_choices(choices: list[str], seed: int) -> None:
    grammar = written(ChoiceForm(tuple(choices)))
    assert walk(grammar, seed) in choices
    assert all(accepts(grammar, choice) for choice in choices)


NESTED = 'root ::= "(" root* ")" | item\nitem ::= [a-z]{1,3} # letters\n'


@pytest.mark.parametrize(
    "text", [NESTED, 'start: "(" start* ")" | ITEM\nITEM: /[a-z]{1,3}/\n'], ids=["ebnf", "lark"]
)
@pytest.mark.parametrize("seed", range(4))
def test_answers_follow_their_grammar(text: str, seed: int) -> None:
    grammar = written(GrammarForm(text))
    assert accepts(grammar, "((ab)(c()d))")
    assert not accepts(grammar, "((ab)")
    answer = walk(grammar, seed)
    if answer is not None:
        assert re.fullmatch("[()a-z]+", answer) and answer.count("(") == answer.count(")")


@pytest.mark.parametrize(
    "text",
    ["", "root ::= other", 'root ::= ("a"', 'rule ::= "a"', "start: no", 'start: "a', f"root ::= {'(' * 70}{')' * 70}"],
)  # fmt: skip
def test_a_broken_grammar_is_refused(text: str) -> None:
    with pytest.raises(InvalidGrammar):
        written(GrammarForm(text))


# ---- tags and thinking -----------------------------------------------------------------------------------------------

TAGS = (
    TagForm("<fn=a>", JsonForm(schema='{"type": "integer"}'), "</fn>"),
    TagForm("<fn=b>", RegexForm("[xy]+"), "</fn>"),
    TagForm("<fn=c>", FreeForm(), "</fn>"),
    TagForm("<say>", GrammarForm('root ::= "hi" | "ho"'), "</say>"),
)
TRIGGERS = ("<fn=", "<say>")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("at_least_one", [False, True])
@pytest.mark.parametrize("stop_after_first", [False, True])
def test_what_triggers_begin_is_a_whole_tag(seed: int, at_least_one: bool, stop_after_first: bool) -> None:
    form = TagsForm(
        tags=TAGS, triggers=TRIGGERS, at_least_one=at_least_one, stop_after_first=stop_after_first
    )
    answer = walk(written(form), seed, hints=["<fn=a>1</fn>", "<fn=b>x", "<fn=", "<say>", "</fn>"])
    if answer is None:
        return
    tag = r"<fn=a>\s*-?\d+\s*</fn>|<fn=b>[xy]+</fn>|<fn=c>(?:(?!</fn>).)*</fn>|<say>(?:hi|ho)</say>"
    found = re.findall(tag, answer, re.DOTALL)
    rest = re.sub(tag, "\0", answer, flags=re.DOTALL)
    assert not any(trigger in rest for trigger in TRIGGERS)
    assert not at_least_one or rest.startswith("\0")
    assert not stop_after_first or (len(found) <= 1 and (not found or rest.endswith("\0")))


def test_tags_stand_in_any_text() -> None:
    grammar = written(TagsForm(tags=TAGS, triggers=TRIGGERS))
    for text in ("", "plain <f", "é <fn=a>12</fn> <<fn=b>xy</fn>\n<fn=c>{</fn><say>hi</say>"):
        assert accepts(grammar, text)
    for text in ("<fn=d>", "<fn=a>x</fn>", "<fn=a>1", "<say>no</say>"):
        assert not accepts(grammar, text)
    for tags, triggers in [
        ((), ()),
        (TAGS, ("<fn=",)),
        (TAGS, (*TRIGGERS, "<x>")),
        ((TagForm("<a>", FreeForm(), ""),), ("<a>",)),
    ]:
        with pytest.raises(InvalidGrammar, match="tag"):
            written(TagsForm(tags=tags, triggers=triggers))


def test_thinking_comes_before_the_body() -> None:
    body = ChoiceForm(("yes", "no"))
    is_open = written(
        body, thinking=ThinkingForm(begins=("<think>",), ends=("</think>", "[END]"), is_open=True)
    )
    assert accepts(is_open, "hm <think>\n</think>\n\nyes") and accepts(is_open, "hm[END]no")
    assert (
        not accepts(is_open, "yes")
        and not accepts(is_open, "a</think>maybe")
        and not accepts(is_open, "a</think>\n\n\n\n\nyes")
    )
    closed = written(body, thinking=ThinkingForm(begins=("<think>",), ends=("</think>",), is_open=False))
    assert (
        accepts(closed, "yes")
        and accepts(closed, "<think>yes?</think>\nno")
        and not accepts(closed, "<think>yes")
    )


def test_tags_in_thinking_are_no_tags() -> None:
    thinking = ThinkingForm(begins=("<think>",), ends=("</think>",), is_open=False)
    grammar = written(TagsForm(tags=TAGS, triggers=TRIGGERS), thinking=thinking)
    assert accepts(grammar, "<think><fn=no</think>\nwell <fn=a>1</fn>") and accepts(grammar, "well")
    assert not accepts(grammar, "<think>x</think><fn=no") and not accepts(grammar, "<think><fn=a>1</fn>")


# ---- masks and matchers ----------------------------------------------------------------------------------------------


def test_masks_of_a_batch_are_those_of_each_alone() -> None:
    grammars = [written(RegexForm("a+b")), written(JsonForm(schema="{}")), written(ChoiceForm(("ab",)))]
    matchers = [backend().compile(grammar).matcher() for grammar in grammars]
    masks = np.zeros((5, VOCAB_SIZE // 32), np.int32)
    backend().fill_masks([(matcher, row) for matcher, row in zip(matchers, (4, 0, 2), strict=True)], masks)
    for matcher, row in zip(matchers, (4, 0, 2), strict=True):
        found = np.nonzero(np.unpackbits(masks[row].view(np.uint8), bitorder="little"))[0]
        assert list(found) == allowed(matcher)
    assert not masks[[1, 3]].any()


def test_a_matcher_says_when_the_answer_is_over_and_takes_no_harm_from_what_it_refuses() -> None:
    compiled = backend().compile(written(ChoiceForm(("ab", "abc"))))
    a, b, c = (tokenizer().encode(char).ids[0] for char in "abc")
    matcher = compiled.matcher()
    assert matcher.accept([a, b]) and not matcher.is_over and matcher.forced() == []
    assert matcher.accept([c]) and matcher.is_over and allowed(matcher) == [END]
    assert matcher.accept([END]) and matcher.is_over and allowed(matcher) == [END]
    assert matcher.accept([END, END]) and not matcher.accept([a])
    other = compiled.matcher()
    assert not other.accept([a, c]) and other.failure == ""
    assert other.accept([b]) and c in allowed(other)
    fresh = compiled.matcher()
    masks = np.zeros((3, VOCAB_SIZE // 32), np.int32)
    backend().fill_masks([(other, 0), (fresh, 1), (matcher, 2)], masks)
    assert masks[0].any() and masks[1].any() and masks[0].tolist() != masks[2].tolist()


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE, 1 << 31, 0])
def test_a_token_of_no_text_is_refused_without_an_exception(token_id: int) -> None:
    matcher = backend().compile(written(RegexForm(".*"))).matcher()
    assert not matcher.accept([token_id])


def test_special_tokens_are_no_text() -> None:
    for grammar in (
        written(JsonForm(schema='{"type": "string"}')),
        written(RegexForm(".*")),
        written(TagsForm(tags=TAGS, triggers=TRIGGERS)),
    ):
        matcher = backend().compile(grammar).matcher()
        assert matcher.accept(tokenizer().encode('"').ids)
        assert not {0, 1} & set(allowed(matcher))


def test_text_that_is_no_grammar_is_refused() -> None:
    for text in ("", "{}", '{"type": "structural_tag", "format": {"type": "other"}}', "root ::= x"):
        with pytest.raises(InvalidGrammar):
            backend().compile(text)


def test_a_folder_without_a_tokenizer_or_an_end_is_a_setting_to_change(tmp_path: Path) -> None:
    options: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "disable_any_whitespace": False, "max_depth": 64}
    with pytest.raises(SettingsError, match="tokenizer"):
        Xgrammar(tokenizer_path=tmp_path, eos_token_ids=(END,), **options)
    with pytest.raises(SettingsError, match="ends an answer"):
        Xgrammar(tokenizer_path=MODEL_DIR, eos_token_ids=(), **options)


def test_a_model_with_more_logits_than_tokens_writes_none_of_the_others() -> None:
    wide = Xgrammar(
        tokenizer_path=MODEL_DIR,
        vocab_size=5000,
        eos_token_ids=(END,),
        disable_any_whitespace=False,
        max_depth=64,
    )
    compiled = wide.compile(wide.write(AnswerForm(body=TagsForm(tags=TAGS, triggers=TRIGGERS))))
    masks = np.zeros((2, -(-5000 // 32)), np.int32)
    wide.fill_masks([(compiled.matcher(), 0), (compiled.matcher(), 1)], masks)
    assert masks[:, :128].any() and not masks[:, 128:].any()
    matcher = wide.compile(wide.write(AnswerForm(body=ChoiceForm(("a",))))).matcher()
    assert not matcher.is_over and matcher.accept(tokenizer().encode("a").ids) and matcher.is_over


def test_tokens_of_a_vocabulary_with_bytes_as_a_last_resort_are_told_apart(tmp_path: Path) -> None:
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "a",
        "\u2581a",
        '"',
        "{",
        "}",
    ]
    model = tokenizers.models.BPE(
        {word: index for index, word in enumerate(words)}, [("\u2581", "a")], byte_fallback=True
    )
    made = tokenizers.Tokenizer(model)
    made.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    made.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    made.add_special_tokens(words[:3])
    made.save(str(tmp_path / "tokenizer.json"))
    size = len(words)
    of = Xgrammar(
        tokenizer_path=tmp_path,
        vocab_size=size,
        eos_token_ids=(2,),
        disable_any_whitespace=False,
        max_depth=64,
    )
    matcher = of.compile(of.write(AnswerForm(body=RegexForm('"( a|\u00e9)"')))).matcher()
    masks = np.zeros((1, -(-size // 32)), np.int32)
    steps = []
    for word in ('"', "<0xC3>", "<0xA9>", '"', "</s>"):
        of.fill_masks([(matcher, 0)], masks)
        found = np.nonzero(np.unpackbits(masks.view(np.uint8), bitorder="little"))[0]
        steps.append({words[token] for token in found})
        assert matcher.accept([words.index(word)]), steps
    assert steps[0] == {'"', "<0x22>"} and {"\u2581a", "\u2581", "<0xC3>", "<0x20>"} == steps[1]
    assert steps[2] == {"<0xA9>"} and steps[4] == {"</s>"}
