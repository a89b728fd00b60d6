"""A front in miniature over a runner on an emulated device."""

from pathlib import Path

from tests.emu.emulated_device import EmulatedDevice
from tests.worker.driver import Front, worker_config
from trioserve.core.step import Speculation, WorkerConfig, WorkerReady
from trioserve.worker.device_guessing import GuessingDeviceRunner
from trioserve.worker.device_load import Machine, meet_over_nccl
from trioserve.worker.device_runner import DeviceRunner
from trioserve.worker.drafts import Price
from trioserve.worker.load import load_runner

SMALL = {"max_num_seqs": 6, "num_blocks": 64, "dtype": "float16"}


def on(device: EmulatedDevice) -> Machine:
    """A machine with this device."""
    return Machine(lambda config: device, meet_over_nccl)


def load_on(device: EmulatedDevice, config: WorkerConfig) -> tuple[DeviceRunner, WorkerReady]:
    runner, ready = load_runner(config, lambda progress: None, 0.0, machine=on(device))
    assert isinstance(runner, DeviceRunner)
    return runner, ready


def device_front(
    folder: Path, device: EmulatedDevice, *, num_drafts: int = 0, **changes: object
) -> tuple[Front, DeviceRunner]:
    """A front that waits for each step, and the runner; one that may guess does so whatever the price."""
    speculation = Speculation(num_drafts, 1, 3) if num_drafts else None
    changes = {"device": "cuda", "speculation": speculation} | changes
    runner, ready = load_on(device, worker_config(folder, **SMALL | changes))
    if isinstance(runner, GuessingDeviceRunner) and runner.drafter is not None:
        assert ready.max_drafting_seqs == len(runner.drafter.prices)
        runner.drafter.prices = [Price(0.0, 1e-9)] * 8
    return Front(runner.run, num_drafts=num_drafts), runner
