"""What followed the last tokens before: only what did, and whenever something did."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trioserve._speedups.ngrams import NgramIndex

ROOM = 5


def continued(token_ids: list[int], place: int) -> list[int]:
    """What comes from ``place`` on, going on with itself behind the end."""
    tokens = list(token_ids)
    for _ in range(ROOM):
        tokens.append(tokens[place])
        place += 1
    return tokens[len(token_ids) :]


def places(token_ids: list[int], length: int) -> list[int]:
    """Behind every earlier occurrence of the last ``length`` tokens."""
    last = token_ids[-length:]
    return [end for end in range(length, len(token_ids)) if token_ids[end - length : end] == last]


class Table:
    """A slot's row of tokens, and an index that is asked about it as it grows."""

    def __init__(self, shortest: int, longest: int, max_len: int = 4096) -> None:
        self.token_ids: NDArray[np.int32] = np.full((3, max_len), -7, np.int32)
        self.num_tokens, self.limits, self.wakes_at = np.zeros((3, 3), np.int64)
        self.index = NgramIndex(
            self.token_ids, self.num_tokens, self.limits, self.wakes_at, shortest=shortest, longest=longest
        )

    def draft(self, token_ids: list[int], room: int = ROOM, most: int = 100) -> list[int]:
        """What is drafted behind ``token_ids``, which go on where they were; it is looked for in any case."""
        length, known = len(token_ids), int(self.num_tokens[1])
        self.token_ids[1, known:length] = token_ids[known:]
        self.num_tokens[1], self.limits[1], self.wakes_at[1] = length, length + room + 1, 0
        found = np.array([-1])
        total = self.index.draft(np.array([1]), np.ones(1, np.uint8), most, found)
        assert total == found[0]
        assert self.token_ids[1, :length].tolist() == token_ids, "known tokens have changed"
        drafted: list[int] = self.token_ids[1, length : length + total].tolist()
        return drafted


TOKENS = st.lists(st.integers(0, 3), min_size=0, max_size=200)


@settings(max_examples=200, deadline=None)
@given(
    token_ids=TOKENS,
    lengths=st.tuples(st.integers(1, 4), st.integers(0, 3)),
    asked_at=st.lists(st.integers(0, 200), max_size=6),
)
def test_a_draft_is_what_followed_the_last_tokens_before(
    token_ids: list[int], lengths: tuple[int, int], asked_at: list[int]
) -> None:
    shortest, longest = lengths[0], sum(lengths)
    table = Table(shortest, longest)
    for length in sorted({*(at for at in asked_at if at < len(token_ids)), len(token_ids)}):
        known = token_ids[:length]
        drafted = table.draft(known)
        options = [continued(known, place) for place in places(known, shortest)] if length >= shortest else []
        assert drafted == [] or drafted in options


@settings(max_examples=100, deadline=None)
@given(token_ids=st.lists(st.integers(0, 1), min_size=2, max_size=60))
def test_the_longest_occurrence_counts_and_of_these_the_last(token_ids: list[int]) -> None:
    """With two tokens there are so few n-grams that no two of them have one place in the table."""
    found = [places(token_ids, length) for length in (2, 1) if length < len(token_ids)]
    expected = next((continued(token_ids, at[-1]) for at in found if at), [])
    assert Table(1, 2).draft(token_ids) == expected


def test_what_repeats_is_found_in_a_long_text_whenever_it_is_asked_for() -> None:
    rng = np.random.default_rng(3)
    text = rng.integers(0, 50_000, 1500).tolist()
    table, num_found = Table(2, 4), 0
    for length in range(1502, 1900):
        known = (text + text)[:length]
        num_found += table.draft(known) == (text + text)[length : length + ROOM]
    assert num_found >= 0.95 * (1900 - 1502), "more than a few n-grams have lost their places to others"


def test_nothing_is_drafted_of_what_was_never_there() -> None:
    table = Table(2, 4)
    assert [table.draft(list(range(length))) for length in range(50)] == [[]] * 50


@pytest.mark.parametrize("room", [-3, 0])
def test_where_there_is_no_room_tokens_are_entered_and_nothing_is_drafted(room: int) -> None:
    table = Table(1, 3)
    assert table.draft([1, 2, 1, 2], room) == []
    assert table.draft([1, 2, 1, 2, 1]) == [2, 1, 2, 1, 2]


def test_a_sequence_that_is_forgotten_leaves_nothing_to_the_next() -> None:
    table = Table(1, 3)
    assert table.draft([1, 2, 3, 1])[:2] == [2, 3]
    table.index.forget(1)
    table.num_tokens[1] = 0
    assert table.draft([4, 5, 6, 1]) == []
    assert table.draft([4, 5, 6, 1, 4])[:2] == [5, 6]


def test_no_more_is_drafted_than_asked_for() -> None:
    assert Table(1, 3).draft([1, 2, 3, 1, 2, 3], most=2) == [1, 2]


def test_a_sequence_in_which_nothing_was_found_rests() -> None:
    table, found = Table(1, 2), np.array([-1])
    table.draft([1, 2, 3])
    assert table.wakes_at[1] == 6
    for length, expected in ((5, 0), (6, 4)):
        table.token_ids[1, 3:6] = [1, 2, 3]
        table.num_tokens[1], table.limits[1] = length, 100
        assert table.index.draft(np.array([1]), np.ones(1, np.uint8), 4, found) == expected


def table_of(rows: list[list[int]], num_tokens: list[int]) -> tuple[NDArray[np.int32], NgramIndex]:
    token_ids = np.array(rows, np.int32)
    size = len(rows)
    arrays = (np.array(num_tokens), np.full(size, 99), np.zeros(size, np.int64))
    return token_ids, NgramIndex(token_ids, *arrays, shortest=1, longest=2)


def test_slots_know_nothing_of_each_other_and_those_that_are_not_whole_are_left_alone() -> None:
    rows = [[1, 2, 1, 0, 0, 0], [3, 4, 5, 0, 0, 0], [6, 7, 6, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    token_ids, index = table_of(rows, [3] * 4)
    found = np.zeros(4, np.int64)
    assert index.draft(np.arange(4), np.array([1, 1, 1, 0], np.uint8), 2, found) == 4
    assert found.tolist() == [2, 0, 2, 0]
    assert token_ids[[0, 2], 3:5].tolist() == [[2, 1], [7, 6]]
    assert token_ids[3].tolist() == rows[3]


@pytest.mark.parametrize(("slots", "num_tokens"), [([4], 1), ([-1], 1), ([0], 6), ([0], -1), ([0, 1], 1)])
def test_what_lies_outside_is_refused(slots: list[int], num_tokens: int) -> None:
    _, index = table_of([[0] * 5] * 4, [num_tokens] * 4)
    with pytest.raises((ValueError, IndexError)):
        index.draft(np.array(slots), np.ones(1, np.uint8), 3, np.zeros(1, np.int64))


@pytest.mark.parametrize(("shortest", "longest"), [(0, 2), (3, 2), (1, 33)])
def test_impossible_lengths_are_refused(shortest: int, longest: int) -> None:
    with pytest.raises(ValueError, match="n-grams"):
        Table(shortest, longest)


def test_all_pairs_of_a_small_alphabet_are_told_apart() -> None:
    text = list(itertools.chain.from_iterable((a, b, 10 + a * 6 + b) for a in range(6) for b in range(6)))
    for a, b in itertools.product(range(6), range(6)):
        assert Table(2, 2).draft([*text, a, b])[:1] in ([10 + a * 6 + b], [])
