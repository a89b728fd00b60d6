"""Masked logits against numpy, on every instruction set."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trioserve._speedups.sampling import available_isas, mask_logits, masked_argmax

SIZES = st.one_of(st.integers(1, 70), st.sampled_from([511, 512, 513, 544, 1024, 1100, 2049]))
VALUES = [0.0, -0.0, 1.0, -1.0, 2.5, 3e38, -3e38, np.inf, -np.inf, np.nan]


def packed(allowed: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int32]:
    """The mask of each row; what lies behind the last token is arbitrary."""
    num_rows, size = allowed.shape
    bits = rng.random((num_rows, -(-size // 32) * 32)) < 0.5
    bits[:, :size] = allowed
    return np.packbits(bits, axis=1, bitorder="little").view(np.int32)


def drawn(
    seed: int, num_rows: int, size: int, share: float, values: list[float]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int32]]:
    """Logits, some of which are ``values``, and which are allowed, plain and packed."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(size=(num_rows, size)) * 4, 1).astype(np.float32)  # with ties
    if values:
        places = rng.random(logits.shape) < 0.3
        logits[places] = rng.choice(np.array(values, np.float32), int(places.sum()))
    allowed = rng.random((num_rows, size)) < share
    return logits, allowed, packed(allowed, rng)


def expected_argmax(logits: NDArray[np.float32], allowed: NDArray[np.bool_]) -> int:
    """The first of the largest allowed; no number is less than any."""
    if not allowed.any():
        return -1
    kept = np.where(allowed & ~np.isnan(logits), logits, -np.inf)
    if kept.max() > -np.inf:
        return int(kept.argmax())
    lowest = np.flatnonzero(allowed & (logits == -np.inf))
    return int(lowest[0] if lowest.size else allowed.argmax())


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(1, 4),
    size=SIZES,
    share=st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]),
    values=st.lists(st.sampled_from(VALUES), max_size=4),
    isa=st.sampled_from(available_isas()),
    num_threads=st.integers(1, 3),
)
def test_masked_logits_are_those_of_numpy(
    seed: int, num_rows: int, size: int, share: float, values: list[float], isa: str, num_threads: int
) -> None:
    logits, allowed, masks = drawn(seed, num_rows, size, share, values)
    rows = np.random.default_rng(seed).permutation(num_rows)[: 1 + seed % num_rows]
    found = np.full(len(rows), 77)
    masked_argmax(logits, masks, rows, found, num_threads=num_threads, isa=isa)
    assert found.tolist() == [expected_argmax(logits[row], allowed[at]) for at, row in enumerate(rows)]
    for row in range(num_rows):
        out = np.full(size, 7, np.float32)
        assert mask_logits(out, logits[row], masks[row], isa=isa) == allowed[row].any()
        expected = np.where(allowed[row], logits[row], np.float32(-np.inf))
        np.testing.assert_array_equal(out, expected)
        in_place = logits[row].copy()
        mask_logits(in_place, in_place, masks[row], isa=isa)
        np.testing.assert_array_equal(in_place, expected)


@pytest.mark.parametrize("isa", available_isas())
def test_many_rows_go_to_several_threads(isa: str) -> None:
    torch.set_num_threads(2)  # loads the pool that is borrowed
    try:
        logits, allowed, masks = drawn(5, 80, 8200, 0.3, [])
        found = np.empty(80, np.int64)
        masked_argmax(logits, masks, np.arange(80), found, num_threads=2, isa=isa)
    finally:
        torch.set_num_threads(1)
    assert found.tolist() == np.where(allowed, logits, -np.inf).argmax(1).tolist()


def test_arrays_that_do_not_fit_each_other_are_refused() -> None:
    logits, _, masks = drawn(1, 2, 100, 0.5, [])
    found, isa = np.empty(2, np.int64), available_isas()[0]
    for rows in (np.array([0, 2]), np.array([-1, 0])):
        with pytest.raises(ValueError, match="row"):
            masked_argmax(logits, masks, rows, found, num_threads=1, isa=isa)
    with pytest.raises(ValueError, match="words of masks"):
        masked_argmax(logits, masks[:, :3].copy(), np.array([0, 1]), found, num_threads=1, isa=isa)
    with pytest.raises(ValueError, match="words of masks"):
        masked_argmax(logits, masks[:1], np.array([0, 1]), found, num_threads=1, isa=isa)
    with pytest.raises(ValueError, match="room for"):
        mask_logits(np.empty(99, np.float32), logits[0], masks[0], isa=isa)
    with pytest.raises(ValueError, match="words of mask"):
        mask_logits(np.empty(100, np.float32), logits[0], masks[0, :3], isa=isa)
