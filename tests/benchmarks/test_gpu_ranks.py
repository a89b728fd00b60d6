"""What checks sums of several GPUs, tried out on the CPU: it finds them right, and would find them wrong."""

import pytest
import torch

from benchmarks.gpu import ranks


def test_every_way_of_making_sums_is_checked_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ranks.run(2, "GLOO")
    assert list(found) == [str(size) for size in ranks.SIZES]
    assert all(list(figures) == ["all-reduce", "in order"] for figures in found.values())
    assert all(0 < microseconds < 1e8 for figures in found.values() for microseconds in figures.values())


def test_a_sum_that_is_wrong_is_found() -> None:
    cpu = torch.device("cpu")
    parts = [ranks._part(rank, 1 << 13, 1, cpu) for rank in range(2)]
    ranks._compare(parts[0] + parts[1], 2, 1 << 13, 1, cpu)
    with pytest.raises(AssertionError, match="a sum of 8192 bytes is wrong by"):
        ranks._compare(parts[0], 2, 1 << 13, 1, cpu)
