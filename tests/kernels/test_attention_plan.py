"""How keys are cut for the blocks of a graph, whose grid stays."""

from hypothesis import given
from hypothesis import strategies as st

from trioserve.kernels.attention_plan import graph_splits, split_keys


@given(
    seq_lens=st.lists(st.integers(1, 40_000), min_size=1, max_size=64),
    num_kv_heads=st.sampled_from([1, 2, 8, 32]),
    num_multiprocessors=st.sampled_from([4, 108, 132]),
    batch_invariant=st.booleans(),
)
def test_a_graphs_grid_reaches_the_end_of_every_sequence_that_it_may_have(
    seq_lens: list[int], num_kv_heads: int, num_multiprocessors: int, batch_invariant: bool
) -> None:
    most = graph_splits(
        len(seq_lens), 40_000, num_kv_heads, num_multiprocessors, batch_invariant=batch_invariant
    )
    size, num_splits = split_keys(
        seq_lens, num_kv_heads, num_multiprocessors, batch_invariant=batch_invariant, most_splits=most
    )
    assert size % 16 == 0
    assert num_splits <= most
    assert size * num_splits >= max(seq_lens)
    if batch_invariant:
        assert size == 2048


def test_graphs_of_many_sequences_have_few_splits_and_those_of_one_fill_the_device() -> None:
    assert [graph_splits(size, 131_072, 8, 132) for size in (1, 8, 64, 256)] == [64, 17, 4, 4]
    assert graph_splits(1, 300, 8, 132) == 3, "no more than there can be keys for"
