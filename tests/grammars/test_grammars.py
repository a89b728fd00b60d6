"""Grammars of clients, in EBNF and in Lark, alone and inside tags."""

# ruff: noqa: E501  # a case stands on its line

import pytest

from tests.grammars.walking import accepts, walk, written
from trioserve.core.forms import (
    FreeForm,
    GrammarForm,
    JsonForm,
    RegexForm,
    TagForm,
    TagsForm,
    ThinkingForm,
)
from trioserve.errors import InvalidGrammar

ARITHMETIC = r"""
# sums
root ::= expr ws   # the whole
expr ::= term (ws [+\-] ws term)*
term ::= num | "(" ws expr ws ")" |
         neg-term
neg-term ::= "-" term
num ::= [0-9]+ ("." [0-9]{1,2})?
ws ::= ([ \t\n] ws)?
"""
JSON_EBNF = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


def ebnf(text: str) -> str:
    return written(GrammarForm(text))


@pytest.mark.parametrize("text", ["1", "1 + (2.5-3)", "-(1)", "--1 + 2 ", "((1))\n"])
def test_recursive_rules_are_followed(text: str) -> None:
    assert accepts(ebnf(ARITHMETIC), text)


@pytest.mark.parametrize("text", ["", "1 +", "(1", "1.234", "a"])
def test_what_the_rules_do_not_say_is_not_allowed(text: str) -> None:
    assert not accepts(ebnf(ARITHMETIC), text)


def test_the_well_known_grammar_of_json_takes_json() -> None:
    grammar = ebnf(JSON_EBNF)
    assert accepts(grammar, '{"a": [1, -2.5e3, {"b\\n": null}], "é\\u00e9": true}')
    assert accepts(grammar, "{}")
    assert not accepts(grammar, '{"a": 01x}')


@pytest.mark.parametrize("text", [ARITHMETIC, JSON_EBNF])
def test_random_answers_do_not_get_stuck(text: str) -> None:
    grammar = ebnf(text)
    for seed in range(4):
        answer = walk(grammar, seed)
        assert answer is None or accepts(grammar, answer)


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        (r'root ::= "\x41\u00e9\U0001F30D\t\"\\"', 'Aé🌍\t"\\', "A"),
        (r'root ::= [^a-c\]]{2}', "zé", "za"),
        (r'root ::= [a\-c^]+', "a-c^", "b"),
        (r"root ::= [-a]+", "-a", "b"),
        (r'root ::= "a"{2,} "b"{,2} "c"{3}', "aaabccc", "abccc"),
        (r'root ::= "a"? ("b" | )+ .', "bé", "ba1"),
        ("root ::= a-b a_c\na-b ::= \"x\"\na_c::=\n  \"y\"\n  | \"z\"", "xz", "x"),
        ("root ::= digit | digit root\ndigit ::= [0-9]", "0123", "a"),
        ("root ::= 'single' \"\"", "single", ""),
        ("root ::= ( ( \"a\" ) ) # end", "a", "b"),
    ],
)  # fmt: skip
def test_the_notation_is_read(text: str, yes: str, no: str) -> None:
    grammar = ebnf(text)
    assert accepts(grammar, yes)
    assert not accepts(grammar, no)


def test_a_grammar_without_recursion_is_one_word_for_the_parser() -> None:
    grammar = ebnf('root ::= word ("," word)*\nword ::= letter+ "end"\nletter ::= [a-z]')
    assert accepts(grammar, "fooend,barend")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('start ::= "a"', "no rule root"),
        ("root ::= b", "rule root of the grammar refers to b"),
        ('root ::= "a" ) "b"', "line 1 .* a \\) that closes nothing"),
        ('root ::= ("a"', "not closed"),
        ('root ::= "a\n', "line 1 .*not understood"),
        ('root ::= [z-a]', "wrong way round"),
        ('root ::= "a"{5,2}', "repetition"),
        ('root ::= "a"{1,1000000}', "repetition"),
        ('root ::= "\\ud800"', "no character"),
        ('root ::= "a"\nroot ::= "b"', "two rules root"),
        ('root ::= "a"\n%', "not understood"),
        ('root ::= (=a) "b"', "lookahead"),
        ("root ::= <[3]>", "not understood"),
        ("root ::= " + "(" * 99 + '"a"' + ")" * 99, "more than 64 groups"),
        ("root ::= a0\n" + "\n".join(f'a{n} ::= "(" a{n + 1} | a0 "x"' for n in range(900)) + '\na900 ::= "b"', "in a row"),
    ],
)  # fmt: skip
def test_a_broken_grammar_is_refused_with_a_place(text: str, message: str) -> None:
    with pytest.raises(InvalidGrammar, match=message):
        ebnf(text)


# ---- Lark ------------------------------------------------------------------------------------------------------------

LARK = """
%llguidance {}
%import common.INT
start: greeting " " NAME count?   // who
greeting: "hello" | "bye"i
NAME: /[A-Z][a-z]{1,8}/ & ~/Bob/
count: " x" INT
"""


def test_lark_is_passed_on() -> None:
    grammar = written(GrammarForm(LARK))
    assert accepts(grammar, "hello Anna")
    assert accepts(grammar, "BYE Anna x3")
    assert not accepts(grammar, "hello Bob")


def test_schemas_inside_lark_are_prepared() -> None:
    grammar = written(GrammarForm('start: "x" j\nj: %json {"type": "string", "format": "no-such", "x-y": 1}'))
    assert accepts(grammar, 'x"a"')
    with pytest.raises(InvalidGrammar, match="not is not supported"):
        written(GrammarForm('start: %json {"not": {}}'))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("start: <think>", "<think> names a token"),
        ("start: <[3]>", r"<\[3\]> names a token"),
        ("start: /a/ <|im_end|>", "names a token"),
        ("start: @other", "refers to another grammar"),
        ('%llguidance {"allow_invalid_utf8": true}\nstart: "a"', "with options"),
        ('start: "a" } <[0]> {', "closes nothing"),
        ('start: %lark { start: "a" }', "%lark is not supported"),
        ('start[max_tokens=3]: "a"', "the option max_tokens"),
        ('start: a\na[stop="x"]: /.*/', "line 2 .*the option stop"),
        ('begin: "a"', "no rule start"),
        ('start: "a', "not understood"),
        ("start: %json {", "no valid JSON"),
        ("start: a0\n" + "\n".join(f"a{n}: a{n + 1}" for n in range(900)) + '\na900: "b"', "in a row"),
    ],
)
def test_lark_that_reaches_too_far_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidGrammar, match=message):
        written(GrammarForm(text))


def test_a_grammar_stands_behind_thinking() -> None:
    thinking = ThinkingForm(begins=("<think>",), ends=("</think>",), is_open=False)
    for text in (LARK, 'root ::= "hello" " " [A-Z] [a-z]+'):
        grammar = written(GrammarForm(text), thinking=thinking)
        assert accepts(grammar, "<think>Hm.</think>\nhello Anna")
        assert accepts(grammar, "hello Anna")
        assert not accepts(grammar, "<think>Hm.</think>\nnone")


# ---- tags ------------------------------------------------------------------------------------------------------------

TAGS = (
    TagForm("<f>", JsonForm(schema='{"type": "integer"}'), "</f>"),
    TagForm("<fg>", RegexForm("[a-z<]+.*"), "</fg>"),
    TagForm("<note>", FreeForm(), "</note>"),
    TagForm("<sum>", GrammarForm(ARITHMETIC), "</sum>"),
    TagForm("<think>", FreeForm(), "</think>"),
)
TRIGGERS = ("<f", "<note>", "<sum", "<think>")


def tags(**options: bool) -> str:
    return written(TagsForm(tags=TAGS, triggers=TRIGGERS, **options))


@pytest.mark.parametrize(
    "text",
    [
        "just text, a < b", "<f>12</f>", "a <f>1</f> b <fg>abc <x></fg> c", "<note>any <f>thing</note>", "<sum>1 + (2)</sum>.",
        "<think>x</think> y", "",
    ],
)  # fmt: skip
def test_tags_stand_in_free_text(text: str) -> None:
    assert accepts(tags(), text)


@pytest.mark.parametrize(
    "text", ["<fh", "<f>a</f>", "<f>1</g>", "<fg>1</fg>", "<note>never ends", "<sum>1 +</sum>", "</think>"]
)
def test_what_a_trigger_begins_must_be_a_tag(text: str) -> None:
    assert not accepts(tags(), text)


def test_an_answer_may_have_to_begin_with_a_tag_and_end_with_it() -> None:
    assert not accepts(tags(at_least_one=True), "text <f>1</f>")
    assert accepts(tags(at_least_one=True), "<f>1</f> text <f>2</f>")
    assert accepts(tags(stop_after_first=True), "text <f>1</f>")
    assert accepts(tags(stop_after_first=True), "text")
    assert not accepts(tags(stop_after_first=True), "<f>1</f> text")
    only = tags(at_least_one=True, stop_after_first=True)
    assert accepts(only, "<f>1</f>")
    assert not accepts(only, "<f>1</f> ")
    assert not accepts(only, "")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (TagsForm(tags=(), triggers=()), "at least one tag"),
        (TagsForm(tags=TAGS[:1], triggers=("<f", "<g")), "begins with the trigger '<g'"),
        (TagsForm(tags=TAGS[:1], triggers=()), "begins with none of the triggers"),
        (TagsForm(tags=TAGS[:1], triggers=("",)), "the trigger ''"),
        (TagsForm(tags=(TagForm("<a>", FreeForm(), ""),), triggers=("<a>",)), "has no end"),
    ],
)
def test_tags_that_make_no_sense_are_refused(form: TagsForm, message: str) -> None:
    with pytest.raises(InvalidGrammar, match=message):
        written(form)
