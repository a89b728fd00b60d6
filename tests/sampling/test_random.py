"""Numbers from (seed, position) and what they pick."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trioserve.sampling.random import draw, uniforms


def stream(seed: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return uniforms(np.full(count, seed, np.uint64), np.arange(count))


def test_a_number_depends_on_seed_and_position_alone() -> None:
    seeds, positions = np.array([5, 9, 5, 2**64 - 1], np.uint64), np.array([0, 3, 0, 7])
    together = uniforms(seeds, positions)
    alone = [uniforms(seeds[i : i + 1], positions[i : i + 1])[0] for i in range(4)]
    assert together.tolist() == alone
    assert together[0] == together[2] != together[1]


def test_the_numbers_never_change_between_versions() -> None:
    """As computed by splitmix64 in whole numbers."""
    assert stream(42, 3).tolist() == [0.34329192209867343, 0.9557467261317436, 0.48634953628166855]


@pytest.mark.parametrize("seeds", ["one stream", "one position"])
def test_numbers_are_even(seeds: str) -> None:
    """Chi-square over 100 bins; 99 degrees of freedom, 99.9 % below 148."""
    if seeds == "one stream":
        numbers = stream(7, 100_000)
    else:
        numbers = uniforms(np.arange(100_000, dtype=np.uint64), np.full(100_000, 12))
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 148
    assert numbers.min() >= 0
    assert numbers.max() < 1


def test_neighbouring_seeds_and_positions_are_independent() -> None:
    numbers = [stream(seed, 50_000) for seed in (0, 1, 2, 0x9E3779B97F4A7C15)]
    for first in range(4):
        for second in range(4):
            for shift in (0, 1, 2):
                if first != second or shift:
                    pair = numbers[first][: 50_000 - shift], numbers[second][shift:]
                    assert abs(np.corrcoef(*pair)[0, 1]) < 0.02


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 1200), st.integers(0, 2**32), st.floats(0, 1, exclude_max=True))
def test_a_draw_inverts_the_running_sum(size: int, seed: int, number: float) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.random(size, dtype=np.float32)
    weights[weights < 0.7] = 0
    weights[seed % size] = 1
    place = draw(weights, number)
    sums = weights.cumsum(dtype=np.float64)
    target, slack = number * sums[-1], 1e-6 * sums[-1]
    assert weights[place] > 0
    assert sums[place] - weights[place] - slack <= target <= sums[place] + slack


@pytest.mark.parametrize("number", [0.0, 0.3, 1 - 2**-53])
@pytest.mark.parametrize("at", [0, 255, 256, 599])
def test_a_single_possibility_is_always_drawn(number: float, at: int) -> None:
    weights = np.zeros(600, np.float32)
    weights[at] = 1e-30
    assert draw(weights, number) == at


def test_weights_that_are_no_numbers_pick_something() -> None:
    """A broken model must not end the rank."""
    for size in (3, 600):
        assert 0 <= draw(np.full(size, np.nan, np.float32), 0.5) < size
        assert 0 <= draw(np.zeros(size, np.float32), 0.5) < size
