"""How many values a body may hold: counted before they are made, whatever its texts look like."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http.house import open_house
from trioserve.errors import InvalidRequest
from trioserve.http.body import check_values

TEXTS = st.text(st.sampled_from('a,"\\[{}] \né'), max_size=6)
BODIES = st.recursive(
    TEXTS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def num_values(body: Any) -> int:
    """Texts, keys among them, lists and objects."""
    match body:
        case dict():
            return 1 + sum(1 + num_values(value) for value in body.values())
        case list():
            return 1 + sum(map(num_values, body))
    return int(isinstance(body, str))


def is_refused(data: bytes, limit: int) -> bool:
    try:
        check_values(data, limit)
    except InvalidRequest:
        return True
    return False


@given(BODIES, st.booleans())
def test_as_many_may_be_as_the_limit_and_no_more(body: Any, is_ascii: bool) -> None:
    data, count = json.dumps(body, ensure_ascii=is_ascii).encode(), num_values(body)
    assert not is_refused(data, max(1, count))
    if count > 1:
        assert is_refused(data, count - 1)


@given(st.binary(max_size=60), st.integers(1, 5))
def test_what_is_no_json_is_counted_too(data: bytes, limit: int) -> None:
    is_refused(data, limit)


@pytest.mark.parametrize(("count", "is_too_many"), [(161, False), (162, True)])
def test_of_numbers_there_may_be_more(count: int, is_too_many: bool) -> None:
    assert is_refused(json.dumps([1] * count).encode(), 10) is is_too_many


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/v1/chat/interactive", "/invocations"]
)
async def test_every_route_refuses_more_and_names_the_limit(path: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "x": ["a"] * 12}
    async with open_house(max_body_values=20) as house:
        answer = await house.post(path, body)
        assert (answer.status, answer.error["code"]) == (400, "invalid_value")
        assert "more than max_body_values = 20 texts, lists and objects" in answer.error["message"]
        fewer = await house.post(path, {**body, "x": ["a"] * 3})
        assert b"max_body_values" not in fewer.body
