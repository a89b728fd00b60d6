"""A front in miniature over a runner on an emulated device."""

from pathlib import Path

from tests.emu.emulated_device import EmulatedDevice
from tests.worker.driver import Front, worker_config
from trioserve.core.step import WorkerConfig, WorkerReady
from trioserve.worker.device_load import Machine, meet_over_nccl
from trioserve.worker.device_runner import DeviceRunner
from trioserve.worker.load import load_runner

SMALL = {"max_num_seqs": 6, "num_blocks": 64, "dtype": "float16"}


def on(device: EmulatedDevice) -> Machine:
    """A machine with this device."""
    return Machine(lambda config: device, meet_over_nccl)


def load_on(device: EmulatedDevice, config: WorkerConfig) -> tuple[DeviceRunner, WorkerReady]:
    runner, ready = load_runner(config, lambda progress: None, 0.0, machine=on(device))
    assert isinstance(runner, DeviceRunner)
    return runner, ready


def device_front(folder: Path, device: EmulatedDevice, **changes: object) -> tuple[Front, DeviceRunner]:
    """A front that waits for each step, and the runner."""
    runner, _ = load_on(device, worker_config(folder, **SMALL | {"device": "cuda"} | changes))
    return Front(runner.run), runner
