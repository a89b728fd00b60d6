"""activation.cu against its reference."""

from typing import Final

import pytest
import torch
from torch import Tensor

from tests.emu.build import ORDERS, EmulatorError
from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.emu.tensors import TYPES, assert_near, random
from trioserve.kernels.activation import (
    THREADS,
    Activation,
    activation_mul_gpu,
    activation_mul_ref,
    instances,
    kernel,
)

ACTIVATIONS: Final = ("silu", "gelu", "gelu_tanh")
SIZES = [1, 33, 90, 64, 80, 1000, 2056]
"""Fewer elements than threads, odd, of every width, several blocks a row, a last block that is not full."""


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu(instances())


def cancelled(gate_up: Tensor) -> Tensor:
    """What 1 + erf and 1 + tanh of a large negative gate may differ by: a few last bits of that 1.

    Against float64, torch's vectorised gelu is off by up to 2.7 of them, the kernel by 0.8.
    """
    gate, up = gate_up.double().chunk(2, dim=-1)
    return (gate * up).abs() * 4 * 2.0**-23


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_rows_come_out_as_the_reference_has_them(
    gpu: EmulatedGpu, num_tokens: int, size: int, activation: Activation, kind: str
) -> None:
    gate_up = random(num_tokens, 2 * size, dtype=TYPES[kind]) * 3
    expected = activation_mul_ref(gate_up, activation)
    for order in ORDERS:
        found = activation_mul_gpu(gpu.taking(order), gate_up, activation)
        assert_near(found, expected, absolute=cancelled(gate_up))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_half_precision_gate_is_near(gpu: EmulatedGpu, activation: Activation) -> None:
    """All finite ones, up to where the result is beyond the type."""
    gate = torch.arange(-0x8000, 0x8000, dtype=torch.int32).to(torch.int16).view(torch.float16)
    gate = gate[gate.abs() <= 60000].view(1, -1)
    gate_up = torch.cat([gate, torch.ones_like(gate)], dim=1)
    found = activation_mul_gpu(gpu, gate_up, activation)
    assert_near(found, activation_mul_ref(gate_up, activation), absolute=cancelled(gate_up))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extremes_are_finite(gpu: EmulatedGpu, activation: Activation) -> None:
    gate_up = torch.tensor([[-1e12, -200.0, -88.0, -0.0, 0.0, 88.0, 200.0, 1e12, *[1.0] * 8]])
    found = activation_mul_gpu(gpu, gate_up, activation)[0].tolist()
    assert found[3:] == pytest.approx([0.0, 0.0, 88.0, 200.0, 1e12], rel=1e-6)
    assert found[:3] == pytest.approx([0.0, 0.0, 0.0], abs=1e-24)


def test_a_row_too_long_is_caught(gpu: EmulatedGpu) -> None:
    gate_up = random(1, 128, dtype=torch.float32)
    with pytest.raises(EmulatorError, match="out of bounds"):
        gpu.launch(
            kernel("float", "silu", 4),
            *(torch.empty(1, 64), gate_up, 68),
            grid=(1,),
            block=(THREADS,),
        )
