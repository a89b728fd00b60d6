"""Which numbers of sequences have graphs."""

import pytest

from trioserve.worker.device_steps import buckets_up_to


@pytest.mark.parametrize(
    ("max_num_seqs", "expected"),
    [(1, [1]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (30, [1, 2, 4, 8, 16, 24, 30])],
)
def test_graphs_are_few_and_close_together_up_to_the_most_sequences(
    max_num_seqs: int, expected: list[int]
) -> None:
    assert buckets_up_to(max_num_seqs) == expected


def test_very_large_steps_have_none() -> None:
    assert buckets_up_to(4096)[-2:] == [504, 512]
