"""What of a model each rank holds."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.test_native import config_of
from trioserve.errors import ModelError
from trioserve.model.parts import WHOLE, Part


@given(size=st.integers(1, 1000), tp_size=st.integers(1, 16))
def test_every_token_is_on_one_rank_and_shares_differ_by_one_at_most(size: int, tp_size: int) -> None:
    cuts = [Part(tp_rank, tp_size).tokens(size) for tp_rank in range(tp_size)]
    assert [at for cut in cuts for at in range(cut.start, cut.end)] == list(range(size))
    assert max(cut.length for cut in cuts) - min(cut.length for cut in cuts) <= 1


@given(
    num_kv_heads=st.sampled_from([1, 2, 4, 8]), tp_size=st.sampled_from([1, 2, 4, 8]), group=st.integers(1, 3)
)
def test_query_heads_are_on_the_rank_of_the_kv_head_that_they_read(
    num_kv_heads: int, tp_size: int, group: int
) -> None:
    num_heads = max(num_kv_heads, tp_size) * group
    for tp_rank in range(tp_size):
        part = Part(tp_rank, tp_size)
        own, kv = part.heads(num_heads, 1), part.heads(num_kv_heads, 1)
        local_group = own.length // kv.length
        for head in range(own.start, own.end):
            assert head // (num_heads // num_kv_heads) == kv.start + (head - own.start) // local_group


def test_a_rank_counts_the_heads_and_the_width_that_it_has() -> None:
    shape = Part(3, 4).shape(config_of(num_heads=8, num_kv_heads=2, intermediate_size=96))
    assert (shape.num_heads, shape.num_kv_heads, shape.intermediate_size) == (2, 1, 24)
    config = config_of(num_heads=8)
    assert WHOLE.shape(config) == config


@pytest.mark.parametrize(
    ("changes", "tp_size", "sentence"),
    [
        ({"num_heads": 6}, 4, "num_attention_heads 6 is no multiple of it"),
        (
            {"num_heads": 12, "num_kv_heads": 4},
            6,
            "num_key_value_heads 4 is neither a multiple nor a divisor",
        ),
        ({"intermediate_size": 98}, 4, "intermediate_size 98 is no multiple of it"),
        ({"vocab_size": 3}, 4, "vocab_size 3 is less"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_with_the_number_in_the_way(
    changes: dict[str, Any], tp_size: int, sentence: str
) -> None:
    with pytest.raises(ModelError, match=f"tensor_parallel_size {tp_size} does not fit .*{sentence}"):
        Part(0, tp_size).refuse_uneven(config_of(**changes))
