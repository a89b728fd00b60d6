"""What runs the kernels' tests on a real GPU, tried out with the emulator as its device."""

import pytest
import torch

from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.emu.mirrored import MirroredGpu
from tests.emu.tensors import random
from trioserve.kernels import rope
from trioserve.kernels.rms_norm import (
    add_rms_norm_gpu,
    add_rms_norm_ref,
    instances,
    rms_norm_gpu,
    rms_norm_ref,
)

EPS = 1e-5


@pytest.fixture(scope="module")
def device(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu([*instances(), *rope.instances()])


@pytest.fixture
def gpu(device: EmulatedGpu) -> MirroredGpu:
    return MirroredGpu(device, torch.device("cpu"), lambda: None)


def test_outputs_and_what_is_changed_in_place_come_back(gpu: MirroredGpu) -> None:
    x, before = random(3, 80, dtype=torch.bfloat16), random(3, 80, dtype=torch.bfloat16, seed=1)
    weight, residual = random(80, dtype=torch.bfloat16, seed=2), before.clone()
    found = add_rms_norm_gpu(gpu, x, residual, weight, eps=EPS)
    expected, total = add_rms_norm_ref(x, before, weight, eps=EPS)
    assert torch.equal(residual, total)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_slices_lie_there_as_they_do_here(gpu: MirroredGpu) -> None:
    heads, weight = random(3, 8, 64, dtype=torch.bfloat16)[:, 2:5], random(64, dtype=torch.bfloat16)
    found = rms_norm_gpu(gpu, heads, weight, eps=EPS)
    torch.testing.assert_close(found, rms_norm_ref(heads, weight, eps=EPS), rtol=1e-2, atol=1e-2)


def test_tensors_of_one_memory_share_it_there(gpu: MirroredGpu) -> None:
    """Queries and keys are slices of one projection: what one launch makes of both comes back, and nothing else."""
    both = random(2, 5, 64, dtype=torch.bfloat16)
    before, (q, k, rest) = both.clone(), torch.split(both, [2, 1, 2], dim=1)
    table = torch.stack((torch.zeros(4, 32), torch.ones(4, 32)), dim=1)  # a quarter turn
    rope.apply_rope_gpu(gpu, q, k, torch.tensor([1, 3]), table, interleaved=False)
    expected = before.clone()
    expected[:, :3, :32], expected[:, :3, 32:] = -before[:, :3, 32:], before[:, :3, :32]
    assert torch.equal(both, expected)
    assert torch.equal(rest, before[:, 3:])
