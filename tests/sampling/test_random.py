"""Numbers from (seed, position)."""

import numpy as np
import pytest

from trioserve._speedups.sampling import number_of


def stream(seed: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([number_of(seed, position) for position in range(count)])


def test_the_numbers_never_change_between_versions() -> None:
    """As computed by splitmix64 in whole numbers."""
    assert stream(42, 3).tolist() == [0.34329192209867343, 0.9557467261317436, 0.48634953628166855]


@pytest.mark.parametrize("seeds", ["one stream", "one position"])
def test_numbers_are_even(seeds: str) -> None:
    """Chi-square over 100 bins; 99 degrees of freedom, 99.9 % below 148."""
    if seeds == "one stream":
        numbers = stream(7, 100_000)
    else:
        numbers = np.array([number_of(seed, 12) for seed in range(100_000)])
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
