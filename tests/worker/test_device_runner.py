"""Step plans on an emulated device: the tokens are those of torch's layers on the CPU, however steps are started."""

from pathlib import Path

import pytest
import torch

from tests.emu.emulated_device import EmulatedDevice
from tests.emu.works import make_device
from tests.model.checkpoints import Checkpoints, prompt_of
from tests.worker.device_front import SMALL, device_front
from tests.worker.driver import Front
from trioserve.core.sampling import SamplingParams

MODEL = "qwen3-tied"


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDevice:
    torch.set_num_threads(1)
    return make_device(tmp_path_factory.mktemp("kernels"), "fp16")


@pytest.fixture(scope="module")
def folder(wide_checkpoints: Checkpoints) -> Path:
    return wide_checkpoints.folder(MODEL, dtype=torch.float16)


def params(**values: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 60, "temperature": 0.0} | values)  # type: ignore[arg-type] # as they are


def both(folder: Path, device: EmulatedDevice, **changes: object) -> tuple[Front, Front]:
    """A front over the device, and one over the CPU."""
    torch.set_num_threads(1)
    return device_front(folder, device, **changes)[0], Front.of(folder, **SMALL | changes)


def test_greedy_tokens_are_those_of_the_cpu_in_every_way_to_compute_them(
    folder: Path, device: EmulatedDevice
) -> None:
    """One piece, chunks, a prefix hit, a preemption, and all of them in each other's company."""
    prompt = prompt_of(40, seed=5)
    outputs = []
    for front in both(folder, device):
        front.admit(0, prompt)
        front.step(s0=40)
        front.admit(1, prompt)
        assert [token.slot for token in front.step(s1=7, s0=1)] == [0]
        assert [token.slot for token in front.step(s0=1, s1=32)] == [0]
        front.admit(2, prompt, shared=[0, 1])
        assert [token.slot for token in front.step(s0=1, s1=1, s2=8)] == [0, 1, 2]
        front.decode(4, 0, 1, 2)
        front.release(0)
        front.admit(0, prompt + front.outputs[0], num_prompt_tokens=len(prompt), shared=[8])
        front.step(s1=1, s0=20)
        front.step(s0=len(prompt) + len(front.outputs[0]) - 36, s2=1)
        front.decode(5, 2, 0, 1)
        outputs.append(dict(front.outputs))
    assert outputs[0] == outputs[1]
