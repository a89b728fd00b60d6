"""KV blocks move to host memory and come back to the bit, with the kernel that moves them on a GPU."""

from collections.abc import Callable

import pytest
import torch
from msgspec import structs
from torch import Tensor

from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.emu.tensors import random
from trioserve.core.step import StepPlan, WorkerConfig
from trioserve.errors import ModelError
from trioserve.kernels.copy_blocks import instances
from trioserve.kernels.device import Event, Graph, MemoryInfo
from trioserve.kernels.gpu import Gpu
from trioserve.model.batch import DeviceCache
from trioserve.worker import swap_space
from trioserve.worker.swap_space import SwapSpace, plan_host_blocks

SHAPE = (6, 2, 16, 64)
"""[num_blocks, num_kv_heads, block_size, head_dim]"""


class CopyingDevice:
    """A ``Device`` that copies blocks and nothing else, and whose host has memory up to a bound."""

    torch_device = torch.device("cpu")
    name = "emulator"

    def __init__(self, gpu: EmulatedGpu, *, max_elements: int = 1 << 30) -> None:
        self.gpu: Gpu = gpu
        self._max_elements = max_elements

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        pinned = torch.empty(shape, dtype=dtype)
        if pinned.numel() > self._max_elements:
            raise RuntimeError("out of host memory")
        return pinned

    def memory(self) -> MemoryInfo:
        raise NotImplementedError

    def peak_bytes(self, work: Callable[[], object]) -> int:
        raise NotImplementedError

    def record(self, *, timed: bool = False) -> Event:
        raise NotImplementedError

    def capture(self, work: Callable[[], object]) -> Graph:
        raise NotImplementedError


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu(instances())


def make_caches(*, fp8: bool, num_layers: int = 2) -> list[DeviceCache]:
    caches = []
    for layer in range(num_layers):
        k, v = (random(*SHAPE, dtype=torch.float32, seed=10 * layer + part) for part in (0, 1))
        if fp8:
            scales = [random(*SHAPE[:3], dtype=torch.float32, seed=10 * layer + part) for part in (2, 3)]
            caches.append(DeviceCache(k.to(torch.float8_e4m3fn), v.to(torch.float8_e4m3fn), *scales))
        else:
            caches.append(DeviceCache(k.bfloat16(), v.bfloat16()))
    return caches


def contents(caches: list[DeviceCache], block_id: int) -> list[Tensor]:
    """Copies of all bytes that a block has."""
    tensors = [tensor for cache in caches for tensor in (cache.k, cache.v, cache.k_scales, cache.v_scales)]
    return [
        tensor[block_id].contiguous().view(torch.uint8).clone() for tensor in tensors if tensor is not None
    ]


def are_equal(these: list[Tensor], those: list[Tensor]) -> bool:
    return all(torch.equal(this, that) for this, that in zip(these, those, strict=True))


def overwrite(caches: list[DeviceCache], block_id: int, value: float) -> None:
    for cache in caches:
        for tensor in (cache.k, cache.v, cache.k_scales, cache.v_scales):
            if tensor is not None:
                tensor[block_id] = torch.full((), value).to(tensor.dtype)


def moving(
    *, out: list[tuple[int, int]] | None = None, back: list[tuple[int, int]] | None = None
) -> StepPlan:
    return StepPlan(0, [], [], [], swapped_out=out or [], swapped_in=back or [])


@pytest.mark.parametrize("fp8", [False, True])
def test_a_block_that_moved_out_comes_back_to_the_bit_wherever_it_is_put(gpu: EmulatedGpu, fp8: bool) -> None:
    caches = make_caches(fp8=fp8)
    before = [contents(caches, block_id) for block_id in range(SHAPE[0])]
    space = SwapSpace(caches, 4, CopyingDevice(gpu))
    space.carry_out(moving(out=[(1, 3), (5, 0)]))
    for block_id in (1, 5):
        overwrite(caches, block_id, 7.0)
    space.carry_out(moving(back=[(2, 3), (1, 0)]))
    assert are_equal(contents(caches, 2), before[1])
    assert are_equal(contents(caches, 1), before[5])
    for block_id in (0, 3, 4):
        assert are_equal(contents(caches, block_id), before[block_id])


def test_within_a_plan_blocks_move_out_before_others_move_into_their_place(gpu: EmulatedGpu) -> None:
    """And what moves in may be what has just moved out."""
    caches = make_caches(fp8=False)
    before = [contents(caches, block_id) for block_id in range(SHAPE[0])]
    space = SwapSpace(caches, 3, CopyingDevice(gpu))
    space.carry_out(moving(out=[(0, 0)]))
    space.carry_out(moving(out=[(1, 1), (2, 2)], back=[(1, 0), (3, 2)]))
    assert are_equal(contents(caches, 1), before[0])
    assert are_equal(contents(caches, 3), before[2])
    space.carry_out(moving(back=[(0, 1)]))
    assert are_equal(contents(caches, 0), before[1])


def test_a_plan_that_moves_nothing_starts_nothing(gpu: EmulatedGpu) -> None:
    space = SwapSpace(make_caches(fp8=False), 2, CopyingDevice(gpu))
    num_launched = len(gpu.launched)
    space.carry_out(moving())
    assert len(gpu.launched) == num_launched


def test_memory_that_the_host_does_not_have_is_told(gpu: EmulatedGpu) -> None:
    with pytest.raises(ModelError, match="swap_space cannot be pinned, lower it: out of host memory"):
        SwapSpace(make_caches(fp8=False), 4, CopyingDevice(gpu, max_elements=4096))


CONFIG = WorkerConfig(
    model_path="",
    device="cuda",
    dtype="bfloat16",
    tp_rank=0,
    tp_size=2,
    block_size=16,
    max_num_seqs=1,
    max_num_batched_tokens=1,
    max_model_len=1,
    num_blocks=None,
    kv_cache_bytes=0,
    num_threads=1,
    swap_bytes=1 << 30,
)


def test_host_blocks_are_what_the_swap_space_of_a_rank_holds() -> None:
    assert plan_host_blocks(CONFIG, 1 << 20) == 1024
    assert plan_host_blocks(structs.replace(CONFIG, swap_bytes=0), 1 << 20) == 0


def test_a_swap_space_that_is_too_large_or_too_small_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap_space, "available_memory_bytes", lambda: 2 << 30)
    with pytest.raises(
        ModelError, match=r"swap_space = 1 GiB for each of 2 GPUs is more than the 1\.8 GiB of host memory"
    ):
        plan_host_blocks(CONFIG, 1 << 20)
    config = structs.replace(CONFIG, swap_bytes=1 << 10)
    with pytest.raises(ModelError, match="does not hold one KV block of 1048576 bytes: raise it or leave it"):
        plan_host_blocks(config, 1 << 20)
