"""copy_blocks.cu against its reference."""

import pytest
import torch

from tests.emu.build import ORDERS, EmulatorError
from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.emu.tensors import random
from trioserve.kernels.copy_blocks import copy_blocks_gpu, copy_blocks_ref, instances
from trioserve.kernels.shapes import ShapeError


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu(instances())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize(("num_kv_heads", "head_dim"), [(1, 64), (2, 80), (8, 256)])
@pytest.mark.parametrize("order", ORDERS)
def test_blocks_are_copied_and_others_stay(
    gpu: EmulatedGpu, order: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    """Less than what a block of threads copies, and several times that, not evenly."""
    source = random(6, num_kv_heads, 16, head_dim, dtype=torch.float32).to(dtype)
    found = random(5, num_kv_heads, 16, head_dim, dtype=torch.float32, seed=1).to(dtype)
    block_ids = torch.tensor([[5, 0], [0, 3], [5, 4]])
    expected = found.clone()
    copy_blocks_ref(expected, source, block_ids)
    copy_blocks_gpu(gpu.taking(order), found, source, block_ids)
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def test_a_prefix_forks_within_its_cache(gpu: EmulatedGpu) -> None:
    cache = random(4, 2, 16, 64, dtype=torch.bfloat16)
    before = cache.clone()
    copy_blocks_gpu(gpu, cache, cache, torch.tensor([[1, 3], [1, 2]]))
    assert torch.equal(cache, before[[0, 1, 1, 1]])


def test_no_pairs_copy_nothing(gpu: EmulatedGpu) -> None:
    cache = random(2, 1, 16, 64, dtype=torch.bfloat16)
    before = cache.clone()
    copy_blocks_gpu(gpu, cache, cache, torch.zeros(0, 2, dtype=torch.int64))
    assert torch.equal(cache, before)


@pytest.mark.parametrize("pair", [[4, 0], [0, 4], [-1, 0]], ids=str)
def test_a_block_beyond_the_cache_is_caught(gpu: EmulatedGpu, pair: list[int]) -> None:
    source, to = (random(4, 1, 16, 64, dtype=torch.bfloat16, seed=seed) for seed in (0, 1))
    with pytest.raises(EmulatorError, match="out of bounds"):
        copy_blocks_gpu(gpu, to, source, torch.tensor([pair]))


def test_blocks_must_be_alike(gpu: EmulatedGpu) -> None:
    source = random(4, 1, 16, 64, dtype=torch.bfloat16)
    with pytest.raises(ShapeError, match=r"source .* has head_dim = 64, expected 32"):
        copy_blocks_gpu(gpu, source[..., :32].contiguous(), source, torch.zeros(1, 2, dtype=torch.int64))
    odd = torch.zeros(2, 1, 1, 3, dtype=torch.bfloat16)
    with pytest.raises(ShapeError, match="a block of 6 bytes is no multiple of 16"):
        copy_blocks_gpu(gpu, odd, odd, torch.zeros(1, 2, dtype=torch.int64))
