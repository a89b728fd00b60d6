"""Ranks that share a model, each on an emulated device, in threads of this process."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray
from torch import Tensor

from tests.emu.emulated_device import EmulatedDevice
from tests.worker.device_front import SMALL
from tests.worker.driver import Front, worker_config
from tests.worker.wire import DEADLINE_S
from trioserve.core.step import StepPlan, StepResult, WorkerConfig
from trioserve.model.nccl import DeviceSums
from trioserve.model.ranks import Ranks
from trioserve.worker.device_load import Machine
from trioserve.worker.device_step_runner import DeviceStepRunner
from trioserve.worker.load import load_runner

T = TypeVar("T")


class Meeting:
    """Where each rank leaves something and takes what all have left."""

    def __init__(self, tp_size: int) -> None:
        self._barrier = threading.Barrier(tp_size)
        self._left: list[Any] = [None] * tp_size

    def meet(self, tp_rank: int, thing: T) -> list[T]:
        self._left[tp_rank] = thing
        self._barrier.wait(DEADLINE_S)
        found = list(self._left)
        self._barrier.wait(DEADLINE_S)
        return found


class MeetingRanks:
    """``Ranks`` of threads."""

    def __init__(self, meeting: Meeting, tp_rank: int, tp_size: int) -> None:
        self._meeting, self.tp_rank, self.tp_size = meeting, tp_rank, tp_size

    def share(self, numbers: NDArray[np.int64]) -> None:
        numbers[:] = self._meeting.meet(self.tp_rank, numbers.copy())[0]

    def least(self, number: int) -> int:
        return min(self._meeting.meet(self.tp_rank, number))


class MeetingSums:
    """``DeviceSums`` of threads: what devices do, and graphs hold."""

    description = "sums of threads"

    def __init__(self, meeting: Meeting, device: EmulatedDevice, tp_rank: int) -> None:
        self._meeting, self._device, self._tp_rank = meeting, device, tp_rank

    def sum(self, x: Tensor) -> Tensor:
        total = torch.empty_like(x)
        self._device.do(lambda: self._add(x, total))
        return total

    def join(self, columns: Tensor, sizes: list[int]) -> Tensor:
        joined = torch.empty(len(columns), sum(sizes), dtype=columns.dtype)
        self._device.do(lambda: self._join(columns, joined))
        return joined

    def share_tokens(self, token_ids: Tensor) -> None:
        self._device.do(lambda: self._take(token_ids))

    def _add(self, x: Tensor, total: Tensor) -> None:
        total.copy_(torch.stack(self._all(x)).float().sum(0))

    def _join(self, columns: Tensor, joined: Tensor) -> None:
        joined.copy_(torch.cat(self._all(columns), dim=1))

    def _take(self, token_ids: Tensor) -> None:
        token_ids.copy_(self._all(token_ids)[0])

    def _all(self, x: Tensor) -> list[Tensor]:
        return self._meeting.meet(self._tp_rank, x.clone())


class DeviceCompany:
    """Carries out each plan on every rank at once, and sees to it that all know the same afterwards."""

    def __init__(self, runners: list[DeviceStepRunner], threads: ThreadPoolExecutor) -> None:
        self.runners = runners
        self._threads = threads

    def run(self, plan: StepPlan) -> StepResult:
        first: StepResult
        first, *others = self._threads.map(lambda runner: runner.run(plan), self.runners, timeout=DEADLINE_S)
        assert all(other.sampled == [] for other in others)
        own = self.runners[0]
        taken = own._slots.seq_ids >= 0
        for runner in self.runners[1:]:
            for name in ("seq_ids", "num_tokens", "num_computed", "_most_tokens", "_has_sampled"):
                ours, theirs = getattr(own._slots, name), getattr(runner._slots, name)
                assert np.array_equal(ours[taken], theirs[taken]), name
            last = runner._there.last_tokens[:-1][torch.from_numpy(taken)]
            assert torch.equal(own._there.last_tokens[:-1][torch.from_numpy(taken)], last)
        return first


@contextmanager
def device_company(
    folder: Path, device: EmulatedDevice, tp_size: int, **changes: object
) -> Iterator[tuple[Front, DeviceCompany]]:
    """A front over ranks on devices like this one."""
    meeting = Meeting(tp_size)
    config = worker_config(folder, **SMALL | {"device": "cuda", "tp_size": tp_size} | changes)
    devices = [EmulatedDevice(device.emulator) for _ in range(tp_size)]

    def open_device(config: WorkerConfig) -> EmulatedDevice:
        return devices[config.tp_rank]

    def meet(config: WorkerConfig, device: object, dtype: torch.dtype) -> tuple[Ranks, DeviceSums]:
        sums = MeetingSums(meeting, devices[config.tp_rank], config.tp_rank)
        return MeetingRanks(meeting, config.tp_rank, tp_size), cast("DeviceSums", sums)

    def load(tp_rank: int) -> DeviceStepRunner:
        own = structs.replace(config, tp_rank=tp_rank)
        runner, _ = load_runner(own, lambda progress: None, 0.0, machine=Machine(open_device, meet))
        assert isinstance(runner, DeviceStepRunner)
        return runner

    with ThreadPoolExecutor(tp_size) as threads:
        runners = list(threads.map(load, range(tp_size), timeout=DEADLINE_S))
        company = DeviceCompany(runners, threads)
        yield Front(company.run), company
