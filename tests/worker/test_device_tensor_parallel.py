"""Ranks on emulated devices that share a model: sums and logits are part of the graphs, over Gloo instead of NCCL."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from msgspec import structs

from tests.emu.emulated_device import EmulatedDevice
from tests.emu.works import make_device
from tests.model.checkpoints import Checkpoints, prompt_of
from tests.worker.device_front import SMALL, device_front
from tests.worker.driver import Front, worker_config
from tests.worker.wire import DEADLINE_S
from trioserve.core.step import StepPlan, StepResult, WorkerConfig
from trioserve.kernels.device import Device
from trioserve.kernels.gpu import Gpu
from trioserve.kernels.source import Kernel
from trioserve.model.nccl import DeviceSums
from trioserve.model.ranks import Ranks, join_gloo
from trioserve.worker.device_load import Machine
from trioserve.worker.device_step_runner import DeviceStepRunner
from trioserve.worker.load import load_runner

MODEL = "qwen3-tied"


class InTurns:
    """One emulator for the devices of several threads: it computes for one at a time."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._turn = threading.Lock()

    @property
    def num_multiprocessors(self) -> int:
        return self._gpu.num_multiprocessors

    @property
    def architecture(self) -> str:
        return self._gpu.architecture

    def launch(
        self,
        kernel: Kernel,
        *arguments: torch.Tensor | float,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared_bytes: int = 0,
    ) -> None:
        with self._turn:
            self._gpu.launch(kernel, *arguments, grid=grid, block=block, shared_bytes=shared_bytes)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDevice:
    torch.set_num_threads(1)
    return make_device(tmp_path_factory.mktemp("kernels"), "fp16")


@pytest.fixture(scope="module")
def folder(wide_checkpoints: Checkpoints) -> Path:
    return wide_checkpoints.folder(MODEL, dtype=torch.float16)


def meet_over_gloo(config: WorkerConfig, device: Device, dtype: torch.dtype) -> tuple[Ranks, DeviceSums]:
    ranks = join_gloo(config.meeting_fd, config.tp_rank, config.tp_size)
    return ranks, DeviceSums(ranks.group, batch_invariant=config.batch_invariant)


@contextmanager
def shared_front(folder: Path, devices: list[EmulatedDevice], **changes: object) -> Iterator[Front]:
    """A front over as many ranks as devices, each in a thread."""
    meeting_fd = os.memfd_create("ranks")
    given = SMALL | {"device": "cuda", "tp_size": len(devices), "meeting_fd": meeting_fd} | changes
    config = worker_config(folder, **given)

    def load_rank(tp_rank: int) -> DeviceStepRunner:
        machine = Machine(lambda config: devices[tp_rank], meet_over_gloo)
        own = structs.replace(config, tp_rank=tp_rank)
        runner, _ = load_runner(own, lambda progress: None, 0.0, machine=machine)
        assert isinstance(runner, DeviceStepRunner)
        return runner

    with ThreadPoolExecutor(len(devices)) as threads:
        runners = list(threads.map(load_rank, range(len(devices)), timeout=DEADLINE_S))

        def run(plan: StepPlan) -> StepResult:
            first: StepResult
            first, *others = threads.map(lambda runner: runner.run(plan), runners, timeout=DEADLINE_S)
            assert all(other.sampled == [] for other in others)
            return first

        yield Front(run)
    os.close(meeting_fd)


def test_two_devices_give_the_tokens_of_one(folder: Path, device: EmulatedDevice) -> None:
    gpu = InTurns(device.gpu)
    devices = [EmulatedDevice(gpu) for _ in range(2)]
    few = {"max_num_seqs": 2, "num_blocks": 16}
    alone, _ = device_front(folder, device, **few)
    with shared_front(folder, devices, **few) as shared:
        for front in (alone, shared):
            front.admit(0, prompt_of(9, seed=5))
            front.step(s0=9)
            front.decode(2, 0)
            front.admit(1, prompt_of(5, seed=6))
            front.step(s0=1, s1=5)
            front.decode(3, 0, 1)
    assert shared.outputs == alone.outputs
    assert all(each.num_replays > 0 for each in devices), "no graph has summed anything"
