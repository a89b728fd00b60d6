"""store_kv.cu against its reference."""

import pytest
import torch

from tests.emu.build import ORDERS, EmulatorError
from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.emu.tensors import TYPES, random
from trioserve.kernels.store_kv import instances, store_kv_gpu, store_kv_ref

NUM_BLOCKS = 5


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu(instances())


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("head_dim", [1, 20, 32, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize(("num_tokens", "num_kv_heads", "block_size"), [(1, 1, 16), (7, 2, 32), (40, 3, 8)])
def test_keys_and_values_go_to_their_places_and_nowhere_else(
    gpu: EmulatedGpu, num_tokens: int, num_kv_heads: int, block_size: int, head_dim: int, kind: str
) -> None:
    qkv = random(num_tokens, 2 * num_kv_heads + 1, head_dim, dtype=TYPES[kind])
    _, k, v = torch.split(qkv, [1, num_kv_heads, num_kv_heads], dim=1)
    slots = torch.randperm(block_size * NUM_BLOCKS, generator=torch.Generator().manual_seed(0))[:num_tokens]
    empty = torch.full((NUM_BLOCKS, num_kv_heads, block_size, head_dim), 7.0, dtype=TYPES[kind])
    expected = (empty.clone(), empty.clone())
    store_kv_ref(k, v, *expected, slots)
    for order in ORDERS:
        found = (empty.clone(), empty.clone())
        store_kv_gpu(gpu.taking(order), k, v, *found, slots)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_bits_pass_unchanged(gpu: EmulatedGpu) -> None:
    """Also those of NaNs, infinities and subnormals."""
    bits = torch.arange(-0x8000, 0x8000, dtype=torch.int32).to(torch.int16)
    states = bits.view(torch.bfloat16).view(256, 4, 64)
    found = torch.zeros(16, 4, 16, 64, dtype=torch.bfloat16)
    store_kv_gpu(gpu, states, states, found, found.clone(), torch.arange(256))
    stored = found.transpose(1, 2).reshape(256, 4, 64)
    assert torch.equal(stored.view(torch.int16), states.view(torch.int16))


@pytest.mark.parametrize("slot", [-1, 16 * NUM_BLOCKS])
def test_a_slot_beyond_the_cache_is_caught(gpu: EmulatedGpu, slot: int) -> None:
    k = random(1, 1, 32, dtype=torch.float32)
    k_cache, v_cache = torch.zeros(2, NUM_BLOCKS, 1, 16, 32)
    with pytest.raises(EmulatorError, match="out of bounds: store"):
        store_kv_gpu(gpu, k, k.clone(), k_cache, v_cache, torch.tensor([slot]))
