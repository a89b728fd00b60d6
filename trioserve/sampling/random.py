"""Randomness without state: a number in [0, 1) for every (seed, position), and what it picks.

Nothing here depends on the batch: not on its size, not on a row's place in it, not on what was drawn before.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)
_RUN: Final = 256
"""Ids whose weights are summed first; the draw looks for the run, then within it."""


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, position), with 53 random bits.

    The seed is mixed before the position is added, so that neighbouring seeds are not the same stream shifted.

    Shapes:
        seeds, positions, result: [num_rows]
    Source:
        splitmix64, Steele, Lea and Flood, OOPSLA 2014.
    """
    mixed = _mix(_mix(seeds + _GOLDEN) + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(weights: Tensor, numbers: NDArray[np.float64]) -> Tensor:
    """The id at which the running sum of a row's weights passes its number, the row's sum being 1.

    Shapes:
        weights: [num_rows, padded_size] float32, at least 0, padded with 0 by ``padded_size``; need not sum to 1
        numbers: [num_rows], in [0, 1)
        result: [num_rows] int64; its weight is above 0
    """
    runs = weights.view(weights.shape[0], -1, _RUN)
    run_sums = runs.sum(-1, dtype=torch.float64)
    ends = run_sums.cumsum(-1)
    targets = torch.from_numpy(numbers)[:, None] * ends[:, -1:]
    run = _first_above(ends, targets, run_sums)
    targets -= ends.gather(1, run) - run_sums.gather(1, run)
    within = runs[torch.arange(len(runs)), run[:, 0]].double()
    offset = _first_above(within.cumsum(-1), targets, within)
    return (run * _RUN + offset)[:, 0]


def padded_size(size: int) -> int:
    """``size`` rounded up to whole runs."""
    return -(-size // _RUN) * _RUN


def _first_above(sums: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """First column whose running sum exceeds the target, or, where rounding leaves none, the last of any weight."""
    first = (sums <= targets).sum(-1, keepdim=True)
    columns = torch.arange(weights.shape[1])
    last = torch.where(weights > 0, columns, 0).amax(-1, keepdim=True)
    return torch.minimum(first, last)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))
