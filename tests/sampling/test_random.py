"""Numbers from (seed, position) and what they pick."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trioserve.sampling.random import draw, padded_size, uniforms


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


def pad(weights: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(weights, (0, padded_size(weights.shape[1]) - weights.shape[1]))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 1000),
    st.integers(0, 2**32),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4),
)
def test_a_draw_inverts_the_running_sum(size: int, seed: int, numbers: list[float]) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand((len(numbers), size), generator=generator)
    weights[weights < 0.7] = 0
    weights[:, seed % size] = 1
    found = draw(pad(weights), np.array(numbers)).numpy()
    for row, number, token_id in zip(weights.double().numpy(), numbers, found, strict=True):
        assert row[token_id] > 0
        sums = row.cumsum()
        target = number * sums[-1]
        assert sums[token_id] >= target - 1e-9 * sums[-1]
        assert sums[token_id] - row[token_id] <= target + 1e-9 * sums[-1]


@pytest.mark.parametrize("number", [0.0, 0.3, 1 - 2**-53])
def test_a_single_possibility_is_always_drawn(number: float) -> None:
    for at in (0, 255, 256, 599):
        weights = torch.zeros(1, 600)
        weights[0, at] = 1e-30
        assert draw(pad(weights), np.array([number])).tolist() == [at]
