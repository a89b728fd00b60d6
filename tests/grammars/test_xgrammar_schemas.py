"""JSON under xgrammar's masks fits its schema, and what xgrammar does not hold to is refused."""

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trioserve.core.forms import JsonForm
from trioserve.errors import InvalidGrammar

pytest.importorskip("xgrammar", reason="the extra xgrammar is not installed")

from tests.grammars.xgrammar_walking import accepts, walk, written

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.sampled_from(["", "a/b", 'q"', "é🌍\n", 1.5])
)
bounds = st.tuples(st.integers(-50, 50), st.integers(0, 60))
names = st.text('ab_é" /', max_size=3)
plain_names = st.text("ab_ /", min_size=1, max_size=3)


def _bounded(kind: str, low: str, high: str) -> st.SearchStrategy[dict[str, Any]]:
    return bounds.map(lambda pair: {"type": kind, low: pair[0], high: pair[0] + pair[1] + 1})


leaves = st.one_of(
    st.sampled_from(
        [
            {},
            {"type": "string"},
            {"type": ["integer", "null"]},
            {"type": "boolean"},
            {"type": "number"},
            {"type": "string", "minLength": 2, "maxLength": 5},
            {"type": "string", "maxLength": 3},
            {"type": "string", "pattern": "^[a-c]+x?$|q{2}$"},
            {"type": "string", "pattern": "\\d"},
            {"type": "string", "format": "date"},
            {"type": "integer", "multipleOf": 3},
            {"maxLength": 2},
            {"type": "integer", "minimum": 0.5, "exclusiveMaximum": 7.5},
        ]
    ),
    _bounded("integer", "minimum", "exclusiveMaximum"),
    _bounded("number", "exclusiveMinimum", "maximum"),
    st.lists(scalars, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    scalars.map(lambda value: {"const": value}),
)


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    others = draw(st.sampled_from([None, True, False, {"type": "integer"}]))
    properties = draw(st.dictionaries(plain_names if others else names, inner, max_size=4))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    found = {"type": "object", "properties": properties, "required": required}
    return found if others is None else {**found, "additionalProperties": others}


def _arrays(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda items, prefix, low, more: {
            "type": "array", "items": items, "prefixItems": prefix or [{}], "minItems": low, "maxItems": low + more,
        },
        inner, st.lists(inner, max_size=2), st.integers(0, 3), st.integers(1, 3),
    )  # fmt: skip


schemas = st.recursive(
    leaves,
    lambda inner: (
        _objects(inner)
        | _arrays(inner)
        | st.lists(inner, min_size=1, max_size=3).map(lambda found: {"anyOf": found})
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(schema=schemas, seed=st.integers(0, 10**6), tight=st.booleans())
def test_every_answer_that_ends_fits_its_schema(schema: dict[str, Any], seed: int, tight: bool) -> None:
    grammar = written(JsonForm(schema=json.dumps(schema)), tight=tight)
    answer = walk(grammar, seed)
    if answer is not None:
        value = json.loads(answer, parse_constant=pytest.fail)
        jsonschema_rs.validate(schema, value)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


TREE = {
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {"left": {"$ref": "#/$defs/tree"}, "value": {"type": "integer"}},
            "required": ["value"],
        }
    },
    "$ref": "#/$defs/tree",
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "array"},
        TREE,
        {"type": "object", "patternProperties": {"^x_": {"type": "integer"}}},
        {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 2},
        {"type": "object", "required": ["a"], "additionalProperties": {"type": "null"}},
        {"oneOf": [{"type": "string", "maxLength": 2}, {"type": "integer"}]},
        {"allOf": [{"type": "array", "prefixItems": [{"type": "null"}, True], "items": False}]},
        {"enum": [1.0, "x\u2028\x7f\x00", [1, {"a": None}], {}]},
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
def test_answers_fit_schemas_of_special_kinds(schema: dict[str, Any], seed: int) -> None:
    answer = walk(written(JsonForm(schema=json.dumps(schema))), seed)
    if answer is not None:
        jsonschema_rs.validate(schema, json.loads(answer))


def test_usual_answers_are_allowed() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array"}}}
    grammar = written(JsonForm(schema=json.dumps(schema)))
    for value in ({}, {"a": "é🌍 C:\\users \u0001"}, {"a": "x", "b": [1.5e-3, None, {"c": [True]}]}):
        for text in (
            json.dumps(value),
            json.dumps(value, indent=4),
            json.dumps(value, ensure_ascii=False, separators=(",", ":")),
        ):
            assert accepts(grammar, text) or "\\ud83c" in text
    assert not accepts(grammar, '{"c": 1}')
    assert not accepts(grammar, '{"a": "\\ud83c"}')
    assert not accepts(grammar, '{"a": "\t"}')


def test_items_may_be_listed_as_before_2020() -> None:
    schema = {"type": "array", "items": [{"type": "null"}, True], "additionalItems": False}
    grammar = written(JsonForm(schema=json.dumps(schema)))
    assert (
        accepts(grammar, '[null, {"a": 1}]')
        and not accepts(grammar, "[1, 2]")
        and not accepts(grammar, "[null, 1, 2]")
    )


def test_white_space_is_as_asked_for() -> None:
    schema = '{"type": "object", "properties": {"a": {"enum": [1]}, "b": {"enum": [[2, 3]]}}}'
    tight = written(JsonForm(schema=schema), tight=True)
    none = written(JsonForm(schema=schema, whitespace=""), tight=True)
    spacious = written(JsonForm(schema=schema))
    assert accepts(tight, '{"a": 1}') and not accepts(tight, '{ "a": 1}') and not accepts(tight, '{"a":1}')
    assert accepts(none, '{"a":1}') and not accepts(none, '{"a": 1}')
    assert accepts(spacious, '{\n\t"a" :1 }') and not accepts(spacious, "{" + "\n" * 100 + "}")
    with pytest.raises(InvalidGrammar, match="guidance"):
        written(JsonForm(schema=schema, whitespace="[ ]?"))


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ('{"type": ', "JSON"),
        ('{"type": "strin"}', "type"),
        ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ('{"not": {}}', "not"),
        ("false", "no value"),
        ('{"type": "string", "pattern": "a", "minLength": 2}', "pattern beside.*guidance"),
        ('{"type": "string", "format": "date", "minLength": 2}', "format beside.*guidance"),
        ('{"type": "number", "multipleOf": 0.1}', "multipleOf.*guidance"),
        ('{"type": "integer", "multipleOf": 2, "minimum": 1}', "multipleOf.*guidance"),
        ('{"allOf": [{"type": "object"}, {"type": "object"}]}', "allOf.*guidance"),
        ('{"anyOf": [{}], "type": "string"}', "anyOf beside type.*guidance"),
        ('{"$ref": "#/$defs/a", "minLength": 1, "$defs": {"a": {}}}', "ref beside minLength.*guidance"),
        ('{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#"}}}', "itself"),
        ('{"oneOf": [{"type": "integer"}, {"minimum": 3}]}', "oneOf|fit both"),
        ('{"type": "object", "properties": {"a": {}}, "patternProperties": {"b": {}}}', "patternProperties.*guidance"),
        ('{"type": "object", "propertyNames": {"enum": ["a"]}}', "propertyNames.*guidance"),
        ('{"type": "object", "minProperties": 2}', "minProperties.*guidance"),
        ('{"type": "string", "maxLength": 1000000}', "at most 100000"),
        ('{"enum": [12345678901234567890]}', "number beyond"),
        ('{"type": "integer", "minimum": 5, "maximum": 4}', "range"),
        ('{"type": "string", "pattern": "(?=a)"}', "pattern.*"),
        ('{"enum": ["\\ud800"]}', "surrogate"),
        (json.dumps({"type": "object", "properties": {"a": 1}}), "#/properties/a"),
        ('{"items": ' * 400 + "{}" + "}" * 400, "64 levels"),
        ("[" * 100_000, "levels"),
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_a_schema_that_cannot_be_held_to_is_refused_in_words(schema: str, complaint: str) -> None:
    with pytest.raises(InvalidGrammar, match=complaint):
        written(JsonForm(schema=schema))
