"""Fields that ask for a form of the answer: each one's form, and what is refused of them."""

import json
from typing import Any

import pytest

from trioserve.core.forms import (
    Body,
    ChoiceForm,
    FreeForm,
    GrammarForm,
    JsonForm,
    RegexForm,
    TagForm,
    TagsForm,
)
from trioserve.errors import InvalidRequest, RequestError, UnsupportedParameter
from trioserve.protocol.chat import ChatCompletionRequest
from trioserve.protocol.common import parse
from trioserve.protocol.completion import CompletionRequest
from trioserve.protocol.interactive import GenerateRequest
from trioserve.protocol.structured import check_lengths
from trioserve.settings import LimitSettings

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"ä": {"const": 1}}}
TEXT = '{"type":"object","properties":{"ä":{"const":1}}}'
ANY_OBJECT = JsonForm(schema='{"type":"object"}')
CALL = {"begin": "<f=", "schema": SCHEMA, "end": "</f>"}
CALLED = TagForm("<f=", JsonForm(schema=TEXT), "</f>")
TAGS = {"structures": [CALL], "triggers": ["<f"]}
TAGGED = TagsForm(tags=(CALLED,), triggers=("<f",))
FORMATTED_TAG = {
    "type": "tag",
    "begin": "<f=",
    "content": {"type": "json_schema", "json_schema": SCHEMA},
    "end": "</f>",
}


def completion(**fields: Any) -> CompletionRequest:
    request = parse(CompletionRequest, json.dumps({"prompt": "x", **fields}).encode())
    request.check(LimitSettings())
    return request


def form_of(**fields: Any) -> tuple[Body, str] | None:
    return completion(**fields).asked_form()


def refusal_of(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as info:
        form_of(**fields)
    return info.value


def format_of(part: dict[str, Any]) -> Body | None:
    asked = form_of(response_format={"type": "structural_tag", "format": part})
    return None if asked is None else asked[0]


@pytest.mark.parametrize(
    ("fields", "form", "param"),
    [
        ({"response_format": {"type": "json_object"}}, ANY_OBJECT, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            JsonForm(schema=TEXT),
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "regex_schema", "regex_schema": "a+"}},
            RegexForm("a+"),
            "response_format.regex_schema",
        ),
        ({"response_format": {"type": "structural_tag", **TAGS}}, TAGGED, "response_format"),
        ({"guided_json": SCHEMA}, JsonForm(schema=TEXT), "guided_json"),
        ({"guided_json": ' {"a": 1e2}'}, JsonForm(schema=' {"a": 1e2}'), "guided_json"),
        ({"guided_regex": "a+"}, RegexForm("a+"), "guided_regex"),
        ({"guided_choice": ["a", "b"]}, ChoiceForm(("a", "b")), "guided_choice"),
        ({"guided_grammar": 'root ::= "a"'}, GrammarForm('root ::= "a"'), "guided_grammar"),
        ({"structural_tag": TAGS}, TAGGED, "structural_tag"),
        ({"structural_tag": json.dumps(TAGS)}, TAGGED, "structural_tag"),
        ({"structural_tag": {"type": "structural_tag", **TAGS}}, TAGGED, "structural_tag"),
        ({"structured_outputs": {"json": SCHEMA}}, JsonForm(schema=TEXT), "structured_outputs.json"),
        ({"structured_outputs": {"json": TEXT}}, JsonForm(schema=TEXT), "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a"}}, RegexForm("a"), "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a"]}}, ChoiceForm(("a",)), "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "g"}}, GrammarForm("g"), "structured_outputs.grammar"),
        ({"structured_outputs": {"json_object": True}}, ANY_OBJECT, "structured_outputs.json_object"),
        (
            {"structured_outputs": {"structural_tag": json.dumps(TAGS)}},
            TAGGED,
            "structured_outputs.structural_tag",
        ),
        ({"json_schema": TEXT}, JsonForm(schema=TEXT), "json_schema"),
        ({"regex": "a"}, RegexForm("a"), "regex"),
        ({"ebnf": "g"}, GrammarForm("g"), "ebnf"),
    ],
)
def test_each_field_asks_for_its_form(fields: dict[str, Any], form: Body, param: str) -> None:
    assert form_of(**fields) == (form, param)
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    chat = parse(ChatCompletionRequest, json.dumps(body).encode())
    chat.check(LimitSettings())
    assert chat.asked_form() == (form, param)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": None},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False, "disable_any_whitespace": True}},
        {"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}},
        {"guided_decoding_backend": "auto"},
    ],
)
def test_some_values_ask_for_nothing(fields: dict[str, Any]) -> None:
    assert form_of(**fields) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"guided_json": SCHEMA}, {"guided_regex": "a"}),
        ({"response_format": {"type": "json_object"}}, {"guided_choice": ["a"]}),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, {}),
        ({"structured_outputs": {"json_object": True}}, {"structural_tag": TAGS}),
        ({"ebnf": "g"}, {"guided_grammar": "g"}),
    ],
)
def test_two_forms_are_one_too_many(first: dict[str, Any], second: dict[str, Any]) -> None:
    error = refusal_of(**first, **second)
    assert "both ask for a form: give one of them" in str(error)
    names = str(error).partition(" both")[0].split(" and ")
    assert len(set(names)) == 2
    assert error.param == names[1]
    for name in first | second:
        assert any(told.startswith(name) for told in names)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": "{}"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "regex_schema"}}, "response_format.regex_schema"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.structures"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_json": [SCHEMA]}, "guided_json"),
        ({"guided_regex": ["a"]}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_choice": ["a", 5]}, "guided_choice.1"),
        ({"structural_tag": "<f>"}, "structural_tag"),
        ({"structural_tag": "[]"}, "structural_tag"),
        ({"structural_tag": "[" * 100_000}, "structural_tag"),
        ({"structural_tag": '{"triggers": ["\\ud800"]}'}, "structural_tag"),
        ({"structural_tag": {"structures": [CALL]}}, "structural_tag.triggers"),
        ({"structural_tag": {**TAGS, "triggers": ["<g"]}}, "structural_tag.structures.0.begin"),
        ({"structural_tag": {**TAGS, "triggers": ["<f", ""]}}, "structural_tag.triggers"),
        ({"structural_tag": {**TAGS, "triggers": ["<"] * 257}}, "structural_tag.triggers"),
        ({"structural_tag": json.dumps({**TAGS, "structures": 5})}, "structural_tag.structures"),
        (
            {"structural_tag": {**TAGS, "structures": [{**CALL, "end": 1}]}},
            "structural_tag.structures.0.end",
        ),
        ({"structural_tag": {**TAGS, "format": FORMATTED_TAG}}, "structural_tag.structures"),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"guided_whitespace_pattern": " ", "guided_regex": "a"}, "guided_whitespace_pattern"),
        (
            {
                "structured_outputs": {"whitespace_pattern": " ", "json": {}},
                "guided_whitespace_pattern": " ",
            },
            "structured_outputs.whitespace_pattern",
        ),
        (
            {"structured_outputs": {"disable_additional_properties": True, "json": "{"}},
            "structured_outputs.json",
        ),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    error = refusal_of(**fields)
    assert isinstance(error, InvalidRequest)
    assert error.param == param
    assert param in str(error)
    assert len(str(error)) < 1000


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_numbers_that_json_cannot_say_are_refused(number: str) -> None:
    request = parse(CompletionRequest, f'{{"prompt": "x", "guided_json": {{"maximum": {number}}}}}'.encode())
    with pytest.raises(InvalidRequest, match="guided_json: numbers should be finite") as info:
        request.asked_form()
    assert info.value.param == "guided_json"


@pytest.mark.parametrize(
    ("part", "form"),
    [
        ({"type": "json_schema", "json_schema": SCHEMA}, JsonForm(schema=TEXT)),
        ({"type": "json_schema", "json_schema": True, "style": "json"}, JsonForm(schema="true")),
        ({"type": "regex", "pattern": "a+"}, RegexForm("a+")),
        ({"type": "grammar", "grammar": "g"}, GrammarForm("g")),
        ({"type": "const_string", "value": "yes"}, ChoiceForm(("yes",))),
        (
            {
                "type": "or",
                "elements": [
                    {"type": "const_string", "value": "yes"},
                    {"type": "const_string", "value": "no"},
                ],
            },
            ChoiceForm(("yes", "no")),
        ),
        (
            FORMATTED_TAG,
            TagsForm(tags=(CALLED,), triggers=("<f=",), at_least_one=True, stop_after_first=True),
        ),
        (
            {
                "type": "triggered_tags",
                "triggers": ["<"],
                "tags": [FORMATTED_TAG, {"begin": "<b>", "content": {"type": "any_text"}, "end": ["</b>"]}],
                "at_least_one": True,
            },
            TagsForm(tags=(CALLED, TagForm("<b>", FreeForm(), "</b>")), triggers=("<",), at_least_one=True),
        ),
    ],
)
def test_parts_of_a_format_are_taken_that_a_form_can_say(part: dict[str, Any], form: Body) -> None:
    assert format_of(part) == form


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ({"type": "sequence", "elements": []}, "type"),
        ({"type": "tags_with_separator", "tags": [FORMATTED_TAG], "separator": ","}, "type"),
        ({}, ""),
        ({"type": "any_text", "excludes": ["a"]}, ""),
        ({"type": "json_schema", "json_schema": SCHEMA, "style": "qwen_xml"}, "style"),
        ({"type": "or", "elements": [{"type": "regex", "pattern": "a"}]}, "elements.0.type"),
        ({**FORMATTED_TAG, "end": ["a", "b"]}, "end"),
        ({**FORMATTED_TAG, "begin": {"type": "token", "token": 5}}, "begin"),
        ({**FORMATTED_TAG, "content": {"type": "const_string", "value": "a"}}, "content.type"),
        ({"type": "triggered_tags", "triggers": ["<"], "tags": []}, "tags"),
        ({"type": "triggered_tags", "triggers": ["<g"], "tags": [FORMATTED_TAG]}, "tags.0.begin"),
    ],
)
def test_parts_of_a_format_that_no_form_can_say_are_named(part: dict[str, Any], where: str) -> None:
    param = f"response_format.format.{where}".rstrip(".")
    error = refusal_of(response_format={"type": "structural_tag", "format": part})
    assert (error.param, param in str(error)) == (param, True)


def test_white_space_is_that_of_all_json_in_the_form() -> None:
    asked = form_of(guided_json=SCHEMA, guided_whitespace_pattern="[ ]?")
    assert asked == (JsonForm(schema=TEXT, whitespace="[ ]?"), "guided_json")
    asked = form_of(structural_tag=TAGS, structured_outputs={"disable_any_whitespace": True})
    tag = TagForm("<f=", JsonForm(schema=TEXT, whitespace=""), "</f>")
    assert asked == (TagsForm(tags=(tag,), triggers=("<f",)), "structural_tag")
    asked = form_of(guided_regex="a", structured_outputs={"disable_any_whitespace": True})
    assert asked == (RegexForm("a"), "guided_regex")


def test_objects_are_closed_where_asked_for_and_their_values_left_alone() -> None:
    inner = {"type": "object", "properties": {}}
    schema = {
        "properties": {"properties": inner, "open": {**inner, "additionalProperties": True}},
        "items": [inner],
        "anyOf": [inner, True],
        "const": inner,
        "$defs": {"a": {"not": inner}},
    }
    asked = form_of(structured_outputs={"json": schema, "disable_additional_properties": True})
    assert asked is not None
    assert isinstance(asked[0], JsonForm)
    closed = {**inner, "additionalProperties": False}
    assert json.loads(asked[0].schema) == {
        "properties": {"properties": closed, "open": {**inner, "additionalProperties": True}},
        "items": [closed],
        "anyOf": [closed, True],
        "const": inner,
        "$defs": {"a": {"not": closed}},
        "additionalProperties": False,
    }


def test_texts_that_are_looked_into_have_a_length() -> None:
    with pytest.raises(InvalidRequest, match="at most max_grammar_bytes = 8 bytes, not 9") as info:
        parse(CompletionRequest, b'{"prompt": "x", "structural_tag": "123456789"}').check(
            LimitSettings(max_grammar_bytes=8)
        )
    assert info.value.param == "structural_tag"


@pytest.mark.parametrize("name", ["guided_json", "response_format", "guided_choice", "ebnf"])
def test_a_form_that_is_far_too_long_is_refused_before_it_is_read(name: str) -> None:
    limits = LimitSettings(max_grammar_bytes=1000)
    for value, is_refused in (("x" * 3990, False), ("x" * 4000, True), (["x"] * 2000, True)):
        body = json.dumps({"prompt": "y" * 9000, name: value}).encode()
        if is_refused:
            with pytest.raises(InvalidRequest, match=f"{name}: at most max_grammar_bytes = 1000") as info:
                check_lengths(body, limits)
            assert info.value.param == name
        else:
            check_lengths(body, limits)


@pytest.mark.parametrize("body", [b"[" * 9000, b'{"ebnf": ' + b"[" * 9000, b"9" * 9000, b"\xff" * 9000])
def test_what_is_no_json_is_left_to_whoever_reads_it(body: bytes) -> None:
    check_lengths(body, LimitSettings(max_grammar_bytes=1))


def test_only_the_backend_that_is_used_may_be_named() -> None:
    completion(guided_decoding_backend="guidance").check_backend("guidance")
    completion(guided_decoding_backend="auto").check_backend("guidance")
    for asked, used in (("outlines", "guidance"), ("guidance", ""), ("xgrammar", "guidance")):
        with pytest.raises(UnsupportedParameter, match="guided_decoding_backend: auto or ") as info:
            completion(guided_decoding_backend=asked).check_backend(used)
        assert info.value.param == "guided_decoding_backend"


def test_strict_servers_refuse_unknown_parts() -> None:
    limits = LimitSettings(strict_requests=True)
    for fields, param in (
        ({"response_format": {"type": "text", "x": 1}}, "response_format.x"),
        ({"structured_outputs": {"x": 1}}, "structured_outputs.x"),
    ):
        request = parse(CompletionRequest, json.dumps({"prompt": "x", **fields}).encode())
        with pytest.raises(UnsupportedParameter) as info:
            request.check(limits)
        assert info.value.param == param


def test_sessions_take_no_forms() -> None:
    for name, value in (
        ("guided_json", SCHEMA),
        ("response_format", {"type": "json_object"}),
        ("regex", "a"),
    ):
        request = parse(GenerateRequest, json.dumps({"prompt": "x", name: value}).encode())
        with pytest.raises(UnsupportedParameter) as info:
            request.check(LimitSettings())
        assert info.value.param == name
    asks_nothing = {"prompt": "x", "response_format": {"type": "text"}}
    parse(GenerateRequest, json.dumps(asks_nothing).encode()).check(LimitSettings())
