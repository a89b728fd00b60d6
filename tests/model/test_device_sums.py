"""What layers add up and join on devices, over Gloo: the same class as over NCCL, but for the group it is given."""

import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.ranks import gloo_ranks
from trioserve.errors import ModelError
from trioserve.model.nccl import (
    DeviceSums,
    QuickSums,
    fits_one_shot,
    join_nccl,
    nccl_environment,
    one_shot_elements,
    together,
)
from trioserve.model.ranks import GroupRanks


def numbers(tp_rank: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(tp_rank)).to(dtype)


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("tp_size", [2, 3])
def test_sums_and_logits_are_those_of_the_host(tp_size: int, batch_invariant: bool) -> None:
    sizes = [5, 4, 6][:tp_size]

    def run(ranks: GroupRanks) -> tuple[Tensor, ...]:
        sums = DeviceSums(ranks.group, batch_invariant=batch_invariant)
        x, columns = numbers(ranks.tp_rank, 7, 16), numbers(ranks.tp_rank, 3, sizes[ranks.tp_rank])
        expected = ranks.sum(x), ranks.join(columns, sizes)
        return *expected, sums.sum(x), sums.join(columns, sizes)

    for expected_sum, expected_join, total, joined in gloo_ranks(tp_size, run):
        torch.testing.assert_close(total, expected_sum, rtol=1e-6, atol=1e-6)
        assert torch.equal(joined, expected_join)


@settings(max_examples=5, deadline=None)
@given(
    num_rows=st.integers(1, 9),
    width=st.integers(1, 40),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
)
def test_batch_invariant_sums_are_in_float32_and_in_the_order_of_ranks(
    num_rows: int, width: int, dtype: torch.dtype
) -> None:
    parts = [numbers(rank, num_rows, width, dtype=dtype) for rank in range(3)]
    expected = ((parts[0].float() + parts[1].float()) + parts[2].float()).to(dtype)

    def run(ranks: GroupRanks) -> tuple[Tensor, Tensor]:
        sums = DeviceSums(ranks.group, batch_invariant=True)
        mine = parts[ranks.tp_rank]
        return sums.sum(mine), sums.sum(mine[-1:].clone())

    for together_, alone in gloo_ranks(3, run):
        assert torch.equal(together_, expected)
        assert torch.equal(alone, expected[-1:]), "a row's sum depends on what is beside it"


def test_tokens_are_those_of_rank_0_in_place() -> None:
    def run(ranks: GroupRanks) -> Tensor:
        token_ids = torch.arange(4) + 10 * ranks.tp_rank
        DeviceSums(ranks.group).share_tokens(token_ids)
        return token_ids

    assert all(torch.equal(each, torch.arange(4)) for each in gloo_ranks(3, run))


def test_all_that_a_graph_has_to_keep_goes_through_the_dispatcher() -> None:
    """Where a graph is captured, and an emulated one too."""

    class Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.names: list[str] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(str(function))
            return function(*args, **(kwargs or {}))

    def run(ranks: GroupRanks) -> list[str]:
        sums, ordered = DeviceSums(ranks.group), DeviceSums(ranks.group, batch_invariant=True)
        with Seen() as seen:
            sums.sum(torch.ones(2, 4))
            sums.join(torch.ones(2, 4), [4, 4])
            sums.share_tokens(torch.ones(2, dtype=torch.int64))
            ordered.sum(torch.ones(2, 4))
        return [name for name in seen.names if name.startswith("c10d.")]

    sum_, join, share, ordered_sum = gloo_ranks(2, run)[0]
    assert (sum_, share) == ("c10d.allreduce_.default", "c10d.broadcast_.default")
    assert join == ordered_sum == "c10d._allgather_base_.default"


def test_logits_of_no_rows_are_joined_too() -> None:
    joined = gloo_ranks(2, lambda ranks: DeviceSums(ranks.group).join(torch.empty(0, 3), [3, 3]))
    assert [tuple(each.shape) for each in joined] == [(0, 6), (0, 6)]


class Doubling:
    """Takes what is short, and gives what no other way gives."""

    def takes(self, x: Tensor) -> bool:
        return fits_one_shot(x, 8, torch.float32)

    def sum(self, x: Tensor) -> Tensor:
        return 2 * x


def test_what_is_small_goes_the_quick_way_unless_the_order_matters() -> None:
    def run(ranks: GroupRanks) -> list[float]:
        quick: QuickSums = Doubling()
        ways = (
            DeviceSums(ranks.group, quick=quick),
            DeviceSums(ranks.group, quick=quick, batch_invariant=True),
        )
        return [float(sums.sum(torch.ones(size))[0]) for sums in ways for size in (8, 12)]

    for found in gloo_ranks(3, run):
        assert found == [2.0, 3.0, 3.0, 3.0]


def test_what_fits_in_one_shot_depends_on_shape_and_type_alone() -> None:
    assert one_shot_elements(2, torch.bfloat16) == 1 << 19
    assert one_shot_elements(8, torch.float32) == 1 << 16
    assert one_shot_elements(2, torch.float16) == 0, "the kernel has no float16"
    assert fits_one_shot(torch.zeros(4, 8), 32, torch.float32)
    assert not fits_one_shot(torch.zeros(4, 9), 32, torch.float32)
    assert not fits_one_shot(torch.zeros(4, 8, dtype=torch.bfloat16), 64, torch.float32)
    assert not fits_one_shot(torch.zeros(3, dtype=torch.bfloat16), 64, torch.bfloat16)
    assert not fits_one_shot(torch.zeros(0), 32, torch.float32)


@pytest.mark.parametrize("failing", [None, 0, 1, 2])
def test_what_fails_on_one_rank_is_left_out_on_all(failing: int | None) -> None:
    def run(ranks: GroupRanks) -> str | None:
        def attempt() -> str:
            if ranks.tp_rank == failing:
                raise RuntimeError("no peer access")
            return f"of rank {ranks.tp_rank}"

        found = together(ranks, attempt)
        shared = np.array([ranks.tp_rank])
        ranks.share(shared)  # nobody is a meeting ahead of the others
        assert shared[0] == 0
        return found

    expected = [f"of rank {rank}" if failing is None else None for rank in range(3)]
    assert gloo_ranks(3, run) == expected


def test_nccl_leaves_the_end_of_ranks_to_the_front() -> None:
    alone = nccl_environment({}, "")
    assert alone["NCCL_SOCKET_IFNAME"] == "=lo"
    assert {alone[f"TORCH_NCCL_{name}"] for name in ("ASYNC_ERROR_HANDLING", "ENABLE_MONITORING")} == {"0"}
    assert "NCCL_SOCKET_IFNAME" not in nccl_environment({}, "10.0.0.1:29500")
    assert "NCCL_SOCKET_IFNAME" not in nccl_environment({"NCCL_SOCKET_IFNAME": "eth1"}, "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_rank_without_a_gpu_says_so_before_anything_is_changed() -> None:
    before = dict(os.environ)
    with pytest.raises(ModelError, match="rank 1 needs cuda:1, this machine has 0 GPUs"):
        join_nccl(-1, 1, 2, torch.device("cuda", 1), torch.bfloat16)
    assert dict(os.environ) == before
