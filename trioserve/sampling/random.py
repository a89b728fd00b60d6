"""Randomness without state: a number in [0, 1) for every (seed, position), and what it picks.

Nothing here depends on the batch: not on its size, not on a row's place in it, not on what was drawn before.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)
_RUN: Final = 256
"""Weights that are summed first; the draw looks for the run, then within it."""


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


def draw(weights: NDArray[np.float32], number: float) -> int:
    """The place at which the running sum of ``weights`` passes ``number``, their whole sum being 1.

    Shapes:
        weights: [num_weights], at least 0, not all 0; need not sum to 1
    """
    num_whole = len(weights) // _RUN
    sums = weights[: num_whole * _RUN].reshape(num_whole, _RUN).sum(1)
    ends = np.append(sums, weights[num_whole * _RUN :].sum()).cumsum(dtype=np.float64)
    target = number * ends[-1]
    run = min(int(ends.searchsorted(target, side="right")), num_whole)
    within = weights[run * _RUN : (run + 1) * _RUN].cumsum(dtype=np.float64)
    if run:
        target -= ends[run - 1]
    place = run * _RUN + int(within.searchsorted(target, side="right"))
    if place < len(weights) and weights[place] > 0:
        return place
    # the two sums round differently: the target fell behind the last weight of its run
    before = np.flatnonzero(weights[:place])
    return int(before[-1] if before.size else weights.argmax())


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))
