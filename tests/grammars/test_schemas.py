"""Answers that are held to JSON schemas."""

import datetime as dt
import enum
import json
from typing import Annotated, Any, Literal

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from tests.grammars.walking import accepts, walk, written
from trioserve.core.forms import JsonForm
from trioserve.errors import InvalidGrammar


def grammar_of(schema: Any, **options: Any) -> str:
    return written(JsonForm(schema=json.dumps(schema), **options))


# ---- pydantic --------------------------------------------------------------------------------------------------------


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Cat(Strict):
    kind: Literal["cat"]
    lives: int


class Dog(Strict):
    kind: Literal["dog", "wolf"]
    name: str | None = None


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Node(Strict):
    value: Annotated[str, Field(pattern=r"^[A-Z]\d{2}$")]
    children: list["Node"] = []


class Everything(Strict):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    counts: dict[str, int]
    by_colour: dict[Colour, bool]
    pair: tuple[int, Colour]
    code: Annotated[str, Field(min_length=2, max_length=4)]
    when: dt.datetime
    day: dt.date
    secret: Annotated[str, Field(json_schema_extra={"format": "password"})]
    share: Annotated[float, Field(gt=0, le=1)]
    tree: Node


EXAMPLE = Everything(
    pet=Dog(kind="wolf"), counts={"a": 1}, by_colour={Colour.RED: True}, pair=(3, Colour.GREEN), code="abc",
    when=dt.datetime(2024, 2, 29, 12, 30, 1, tzinfo=dt.UTC), day=dt.date(2024, 2, 29), secret="x",
    share=0.5, tree=Node(value="A10", children=[Node(value="B20")]),
)  # fmt: skip


def test_models_of_pydantic_are_filled_in() -> None:
    schema = Everything.model_json_schema()
    grammar = grammar_of(schema)
    assert accepts(grammar, EXAMPLE.model_dump_json())
    assert accepts(grammar, EXAMPLE.model_dump_json(indent=2))
    for seed in range(3):
        text = walk(grammar, seed)
        assert text is not None
        jsonschema_rs.validate(schema, json.loads(text))


def test_a_discriminated_union_takes_the_fields_of_its_kind() -> None:
    grammar = grammar_of(Everything.model_json_schema()["properties"]["pet"] | {"$defs": defs()})
    assert accepts(grammar, '{"kind":"cat","lives":9}')
    assert not accepts(grammar, '{"kind":"dog","lives":9}')


def defs() -> Any:
    return Everything.model_json_schema()["$defs"]


# ---- generated -------------------------------------------------------------------------------------------------------

names = st.text("abc é", min_size=1, max_size=4)
scalars = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-500, 500),
        st.integers(0, 1000),
    ),
    st.just({"type": "number", "exclusiveMinimum": 0, "maximum": 2.5}),
    st.builds(
        lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size},
        st.integers(0, 3),
        st.integers(0, 5),
    ),
    st.just({"type": "string", "pattern": "^[a-f]+-\\d{1,2}$"}),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(names, st.integers(-(1 << 53), 1 << 53), st.none()), min_size=1),
    ),
    st.builds(lambda value: {"const": value}, st.one_of(names, st.booleans())),
    st.sampled_from(
        [{"type": "string", "format": name} for name in ("date", "ipv4", "uuid", "no-such-format")]
    ),
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda properties, optional: {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name not in optional],
            "additionalProperties": False,
        },
        st.dictionaries(names, inner, max_size=4),
        st.sets(names, max_size=2),
    )


schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        objects(inner),
        st.builds(
            lambda items, low: {"type": "array", "items": items, "minItems": low, "maxItems": low + 2},
            inner,
            st.integers(0, 2),
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(
            lambda prefix: {"type": "array", "prefixItems": prefix, "minItems": len(prefix), "items": False},
            st.lists(inner, min_size=1, max_size=3),
        ),
        st.builds(
            lambda values: {"type": "object", "additionalProperties": values, "maxProperties": 3}, inner
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=schemas, seed=st.integers(0, 1000))
def test_every_answer_that_ends_is_valid(schema: Any, seed: int) -> None:
    text = walk(grammar_of(schema), seed)
    if text is not None:
        jsonschema_rs.validate(schema, json.loads(text))


# ---- white space -----------------------------------------------------------------------------------------------------

PAIR = {"type": "object", "properties": {"a": {}, "b": {"type": "array"}}, "required": ["a", "b"]}


def test_white_space_is_free_but_ends() -> None:
    grammar = grammar_of(PAIR)
    value = {"a": {"c": [1, {"d": None}]}, "b": [[]]}
    for text in (json.dumps(value), json.dumps(value, indent=4), json.dumps(value, separators=(",", ":"))):
        assert accepts(grammar, text)
    assert not accepts(grammar, '{"a":' + " " * 100 + '1, "b": []}')
    assert not accepts(grammar, '{"a":' + "\n" * 100 + '1, "b": []}')


def test_white_space_can_be_switched_off_or_be_said_by_the_request() -> None:
    form = JsonForm(schema=json.dumps(PAIR))
    tight = written(form, disable_any_whitespace=True)
    assert accepts(tight, '{"a": 1, "b": [1, 2]}')
    assert not accepts(tight, '{"a":1, "b": []}')
    assert not accepts(tight, '{ "a": 1, "b": []}')
    said = grammar_of(PAIR, whitespace=r"[ ]?")
    assert accepts(said, '{"a": 1,"b" :[ ]}')
    assert not accepts(said, '{"a":  1,"b":[]}')
    with pytest.raises(InvalidGrammar, match="lookahead"):
        grammar_of(PAIR, whitespace="(?= )")


# ---- keywords --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [True, {}, {"title": "x", "x-guidance": {"lenient": True}}])
def test_a_schema_that_says_nothing_takes_any_json(schema: Any) -> None:
    grammar = grammar_of(schema)
    for text in ("1", '"a"', "null", '{"a": [true, 1.5e3]}'):
        assert accepts(grammar, text)
    assert not accepts(grammar, "{a}")


def test_any_object_is_an_object() -> None:
    grammar = grammar_of({"type": "object"})
    assert accepts(grammar, '{"a": [1]}')
    assert not accepts(grammar, "[1]")


def test_a_client_does_not_set_options_of_the_library() -> None:
    grammar = grammar_of({"x-guidance": {"whitespace_pattern": "x+"}, "type": "array"})
    assert not accepts(grammar, "[xx]")


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "integer"}}},
        {"$ref": "#/definitions/a%20b", "definitions": {"a b": {"type": "integer"}}},
        {"$ref": "#here", "$defs": {"x": {"$anchor": "here", "type": "integer"}}},
        {"$ref": "#/$defs/list/0", "$defs": {"list": [{"type": "integer"}]}},
        {
            "$ref": "#/$defs/a",
            "description": "beside",
            "$defs": {"a": {"type": "integer"}, "bad": {"not": {}}},
        },
        {"allOf": [{"type": "integer"}]},
        {"$schema": "http://json-schema.org/draft-07/schema#", "oneOf": [{"type": "integer"}]},
    ],
)
def test_references_lead_where_they_should(schema: Any) -> None:
    grammar = grammar_of(schema)
    assert accepts(grammar, "12")
    assert not accepts(grammar, '"a"')


def test_recursion_is_fine() -> None:
    grammar = grammar_of(
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False}
    )
    assert accepts(grammar, '{"a":{"a":{}}}')
    assert not accepts(grammar, '{"a":{"b":{}}}')


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            {"properties": {"a": {"uniqueItems": True}}},
            r"uniqueItems is not supported .*#/properties/a/uniqueItems",
        ),
        ({"if": {}, "then": False}, "if is not supported"),
        (
            {"properties": {"a/b": {"dependentRequired": {"x": ["y"]}}}},
            r"#/properties/a~1b/dependentRequired",
        ),
        ({"unevaluatedProperties": False}, "unevaluatedProperties is not supported"),
        ({"propertyNames": {"pattern": "^a"}}, "propertyNames is supported with enum and const only"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"$ref": "http://example.com/schema"}, "a place in the same schema"),
        ({"$ref": "#"}, "leads back to itself"),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
            "back to itself",
        ),
        ({"type": "strng"}, "#/type of the schema must name types"),
        ({"type": ["string", 1]}, "#/type of the schema must"),
        ({"enum": []}, "#/enum of the schema must be a list of values, and not empty"),
        ({"anyOf": {}}, "#/anyOf of the schema must be a list"),
        ({"properties": []}, "#/properties of the schema must be an object"),
        ({"items": 3}, "#/items of the schema must be an object or a boolean"),
        ({"required": "a"}, "#/required of the schema must be a list of strings"),
        ({"minLength": -1}, "#/minLength of the schema must be a whole number"),
        ({"maximum": "3"}, "#/maximum of the schema must be a number"),
        ({"pattern": "(?=x)"}, "#/pattern of the schema: .*lookahead"),
        ([], "# of the schema must be an object or a boolean"),
        ({"enum": [1 << 60]}, "#/enum of the schema has a number beyond"),
        ({"multipleOf": 1 << 60}, "multipleOf .* is beyond"),
        ({"minimum": 10**400}, "minimum .* is beyond"),
    ],
)
def test_what_cannot_be_held_to_is_refused_by_name_and_place(schema: Any, message: str) -> None:
    with pytest.raises(InvalidGrammar, match=message):
        grammar_of(schema)


def test_bounds_beyond_exact_floats_move_inwards() -> None:
    largest, exact = (1 << 63) - 1, 1 << 53
    grammar = grammar_of({"type": "integer", "minimum": -largest - 1, "maximum": largest})
    for value in (0, -exact, exact):
        assert accepts(grammar, str(value))
    assert not accepts(grammar, str(largest + 1))
    assert not accepts(grammar, str(-largest - 2))


@pytest.mark.parametrize("text", ["{", '{"a": NaN}', '{"minimum": 1e999}', "", '{"const": "\\ud800"}'])
def test_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidGrammar):
        written(JsonForm(schema=text))


# ---- exactly one -----------------------------------------------------------------------------------------------------


def tagged(value: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"t": {"const": value}, **more}, "required": ["t"]}


@pytest.mark.parametrize(
    "options",
    [
        [{"type": "string"}, {"type": "null"}],
        [{"enum": [1, "a"]}, {"enum": [2, "b"]}],
        [tagged("a"), tagged("b"), tagged("c")],
        [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        [tagged("a"), {"type": "array"}, {"anyOf": [{"type": "null"}, {"const": 1}]}],
        [
            {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False},
            {"type": "object", "properties": {"b": {}}, "required": ["b"], "additionalProperties": False},
        ],
        [{"allOf": [{"$ref": "#/$defs/a"}, tagged("a", x={})]}, {"$ref": "#/$defs/b"}],
    ],
)
def test_alternatives_that_exclude_each_other_are_alternatives(options: list[Any]) -> None:
    assert grammar_of({"oneOf": options, "$defs": {"a": tagged("a"), "b": tagged("b")}})


@pytest.mark.parametrize(
    "options",
    [
        [{"type": "integer"}, {"type": "number"}],
        [{"const": 1}, {"const": 1.0}],
        [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}],
        [{"type": "object", "required": ["a"]}, {"type": "object", "required": ["b"]}],
        [
            {"properties": {"t": {"const": 1}}, "required": ["t"]},
            {"properties": {"t": {"const": 2}}, "required": ["t"]},
        ],
        [{}, {"type": "string"}],
    ],
)
def test_alternatives_that_one_value_may_fit_are_refused(options: list[Any]) -> None:
    with pytest.raises(InvalidGrammar, match="alternative 0 and alternative 1"):
        grammar_of({"oneOf": options})


def test_one_of_beside_any_of_holds_both() -> None:
    grammar = grammar_of(
        {"anyOf": [{"const": 1}, {"const": 2}], "oneOf": [{"const": 2}, {"const": 3}], "type": "integer"}
    )
    assert accepts(grammar, "2")
    assert not accepts(grammar, "1")
    assert not accepts(grammar, "3")
