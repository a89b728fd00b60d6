"""layer_norm.cu against its reference."""

import pytest
import torch

from tests.emu.build import ORDERS, EmulatorError
from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.emu.tensors import TYPES, assert_near, random
from trioserve.kernels.layer_norm import THREADS, add_layer_norm_gpu, add_layer_norm_ref, instances, kernel

EPS = 1e-5
KINDS = ("bf16", "fp16")


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu(instances())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 33, 90, 1000, 4104])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_sum_is_stored_and_normalised(gpu: EmulatedGpu, has_bias: bool, size: int, kind: str) -> None:
    """Of rows of a slice, far from a mean of 0; a last bit of a product may be off where the bias cancels it."""
    x = random(3, size + 8, dtype=TYPES[kind])[:, :size]
    before = random(3, size, dtype=TYPES[kind], seed=2) + 5
    weight, bias = (random(size, dtype=TYPES[kind], seed=seed) for seed in (1, 3))
    arguments = (weight, bias if has_bias else None)
    expected, total = add_layer_norm_ref(x, before, *arguments, eps=EPS)
    for order in ORDERS:
        residual = before.clone()
        found = add_layer_norm_gpu(gpu.taking(order), x, residual, *arguments, eps=EPS)
        assert torch.equal(residual, total)
        assert_near(found, expected, absolute=1e-5)


def test_what_is_added_has_a_scale(gpu: EmulatedGpu) -> None:
    x, before = random(2, 64, dtype=torch.bfloat16), random(2, 64, dtype=torch.bfloat16, seed=1)
    weight = torch.ones(64, dtype=torch.bfloat16)
    expected, total = add_layer_norm_ref(x, before, weight, None, eps=EPS, x_scale=0.5)
    found = add_layer_norm_gpu(gpu, x, before, weight, None, eps=EPS, x_scale=0.5)
    assert torch.equal(before, total)
    assert_near(found, expected, absolute=1e-5)


def test_a_row_too_many_is_caught(gpu: EmulatedGpu) -> None:
    x, residual = (random(2, 64, dtype=torch.bfloat16, seed=seed) for seed in range(2))
    weight = torch.ones(64, dtype=torch.bfloat16)
    with pytest.raises(EmulatorError, match="out of bounds"):
        gpu.launch(
            kernel("bf16", 8),
            *(torch.empty_like(x), x, residual, weight, weight, 64, 64, 0, 1.0, EPS),
            grid=(3,),
            block=(THREADS,),
        )
