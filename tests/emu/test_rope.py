"""rope.cu against its reference."""

import pytest
import torch
from torch import Tensor

from tests.emu.build import ORDERS, EmulatorError
from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.emu.tensors import TYPES, assert_near, random
from trioserve.kernels.rope import apply_rope_gpu, instances, rope_ref

NUM_POSITIONS = 50


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu(instances())


def table_of(head_dim: int) -> Tensor:
    """As a model has it: the angles of 50 positions."""
    angles = torch.arange(NUM_POSITIONS)[:, None] / 10_000 ** torch.linspace(0, 1, head_dim // 2)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("head_dim", [2, 20, 32, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_heads_turn_as_in_the_reference(
    gpu: EmulatedGpu, num_tokens: int, head_dim: int, interleaved: bool, kind: str
) -> None:
    """Slices of one projection, as a model has them; the values behind them stay."""
    table, positions = table_of(head_dim), torch.tensor([49, 0, 7])[:num_tokens]
    before = random(num_tokens, 10, head_dim, dtype=TYPES[kind])
    for order in ORDERS:
        qkv = before.clone()
        q, k, v = torch.split(qkv, [6, 2, 2], dim=1)
        apply_rope_gpu(gpu.taking(order), q, k, positions, table, interleaved=interleaved)
        for found, x in ((q, before[:, :6]), (k, before[:, 6:8])):
            # the differences of two products keep their absolute error
            assert_near(found, rope_ref(x, positions, table, interleaved=interleaved), absolute=1e-6)
        assert torch.equal(v, before[:, 8:])


@pytest.mark.parametrize("interleaved", [False, True])
def test_queries_and_keys_may_be_tensors_of_their_own(gpu: EmulatedGpu, interleaved: bool) -> None:
    table, positions = table_of(64), torch.tensor([3, 1, 4, 1, 5])
    q, k = random(5, 3, 64, dtype=torch.bfloat16), random(5, 1, 64, dtype=torch.bfloat16, seed=1)
    expected = [rope_ref(x, positions, table, interleaved=interleaved) for x in (q, k)]
    apply_rope_gpu(gpu, q, k, positions, table, interleaved=interleaved)
    assert_near(q, expected[0], absolute=1e-6)
    assert_near(k, expected[1], absolute=1e-6)


@pytest.mark.parametrize("position", [-1, NUM_POSITIONS])
def test_a_position_beyond_the_table_is_caught(gpu: EmulatedGpu, position: int) -> None:
    q, k = random(1, 2, 32, dtype=torch.float16), random(1, 1, 32, dtype=torch.float16)
    with pytest.raises(EmulatorError, match="out of bounds"):
        apply_rope_gpu(gpu, q, k, torch.tensor([position]), table_of(32), interleaved=False)
