"""Regular expressions of clients."""

# ruff: noqa: E501  # a case stands on its line

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.grammars.walking import accepts, matcher, walk, written
from trioserve.core.forms import ChoiceForm, JsonForm, RegexForm
from trioserve.errors import InvalidGrammar
from trioserve.grammars.regexes import MAX_CHARS

PATTERNS = [
    r"\d{3}-\d{4}", r"^(\+\d{1,2} )?\d+$", r"(yes|no)(, (maybe|never))*?!", r"[\w.+-]+@[^\W_]+\.(com|org)", r"(?i)hello+",
    r"(?P<year>\d{4})-(?P<month>0[1-9]|1[0-2])", r"[^a-z\d\s]{1,4}", r"\D\W\S", r"a{,3}b{2,}", r"\u00e9\x41\012\t",
    r"[]a-]+", r"x{", r"(?:a|)(b|)", r"/path/to", r"\Aab\Z", r"[^\D5]+", r"(^a|^b)c", r"é🌍+", r".*",
    "", r"(?s:.)(?i:Q)", r"a\.b\\c\"'", r"[\b\n-\r]", r"((((a))))",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_written_matches_as_a_whole(pattern: str) -> None:
    grammar = written(RegexForm(pattern))
    for seed in range(3):
        text = walk(grammar, seed)
        assert text is None or re.fullmatch(pattern, text)


def test_brackets_hold_characters_and_no_operations() -> None:
    grammar = written(RegexForm(r"[a&&b~~[|-]{2}"))
    assert accepts(grammar, "&[")
    assert accepts(grammar, "b-")
    assert not accepts(grammar, "cc")


regexes = st.recursive(
    st.sampled_from(["a", "b", "[ab]", "[^a]", r"\d", ".", "é", r"\.", "c"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: f"({'|'.join(options)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "*?"])).map(
            lambda part: f"(?:{part[0]}){part[1]}"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(pattern=regexes, seed=st.integers(0, 99), text=st.text("ab1.é", max_size=5))
def test_generated_patterns_mean_what_they_mean_in_python(pattern: str, seed: int, text: str) -> None:
    grammar = written(RegexForm(pattern))
    found = walk(grammar, seed)
    assert found is None or re.fullmatch(pattern, found)
    assert accepts(grammar, text) is (re.fullmatch(pattern, text) is not None)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("ab", "xaby"),
        ("^ab", "aby"),
        ("ab$", "xab"),
        ("^a|b$", "xxb"),
        ("^a|b$", "ayy"),
        ("(^a|b)c", "xbcx"),
        ("", "x"),
    ],
)
def test_patterns_of_schemas_match_somewhere(pattern: str, text: str) -> None:
    grammar = written(JsonForm(schema=json.dumps({"type": "string", "pattern": pattern})))
    assert re.search(pattern, text)
    assert accepts(grammar, json.dumps(text))
    assert accepts(grammar, '"zz"') is (re.search(pattern, "zz") is not None)


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("(?=a)b", "lookahead"), ("(?<!a)b", "lookbehind"), (r"(a)\1", "a backreference"), ("(?P<x>a)(?P=x)", "a backreference"),
        (r"\bword", "a word boundary"), ("a^b", "\\^ inside it"), ("(a$)*", "a repeated anchor"), ("a**", "two quantifiers"),
        ("a++", "a possessive quantifier"), ("*a", "nothing before"), ("(a", "not closed"), ("a)", r"an unmatched \)"),
        ("[a", "not closed"), ("a{3,2}", "wrong way round"), ("a{1,999999}", "more than 100000 characters"),
        ("(a{1000}){1000}", "more than 100000 characters"), ("((a{0,100}){0,100}){0,100}", "more than 100000 characters"), (r"\y", "not known"),
        (r"\ud800", "surrogate"), ("[z-a]", "wrong way round"), ("(?(1)a|b)", "a condition"), ("(?>a)", "an atomic group"),
        ("(" * 99 + "a" + ")" * 99, "more than 64 groups"), ("a" * (MAX_CHARS + 1), f"the limit is {MAX_CHARS}"), ("\\", "not known"),
    ],
)  # fmt: skip
def test_what_no_automaton_has_is_refused_by_name(pattern: str, what: str) -> None:
    with pytest.raises(InvalidGrammar, match=what):
        written(RegexForm(pattern))


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*c", "(a{300}){300}", "(a?){500}a{500}", "(.*a){20}b"])
def test_patterns_that_drown_other_engines_are_written(pattern: str) -> None:
    matcher(written(RegexForm(pattern))).compute_bitmask()


@pytest.mark.parametrize(
    "choices", [("a", "ab", "abc"), ("", "x"), ("é🌍", '"\\', "a\nb", "\x7f\x00", "</p>/"), ("same", "same")]
)
def test_a_choice_is_one_of_its_texts(choices: tuple[str, ...]) -> None:
    grammar = written(ChoiceForm(choices))
    for choice in choices:
        assert accepts(grammar, choice)
        assert not accepts(grammar, choice + "!")
    for seed in range(3):
        assert walk(grammar, seed) in choices


def test_a_choice_of_a_marker_is_its_text() -> None:
    grammar = written(ChoiceForm(("<think>",)))
    assert accepts(grammar, "<think>", special=False)
    assert not accepts(grammar, "<think>")


@pytest.mark.parametrize("choices", [(), ("\ud800",)])
def test_no_choice_is_refused(choices: tuple[str, ...]) -> None:
    with pytest.raises(InvalidGrammar):
        written(ChoiceForm(choices))
