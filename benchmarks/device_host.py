"""What a step on a GPU costs the host: tables, inputs and results of a decode step, with a GPU that does nothing.

    python -m benchmarks.device_host [--sequences 1 64 256] [--steps 400]

Kernels and graphs are not run and events are done at once, so what is left is what our own code takes of the thread
that starts steps, and of the one that makes their results. Calls into the driver, some microseconds each, come on top:
a copy to the device, two graphs, a copy back, an event.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.gap import load, plans
from benchmarks.gpu.steps import llama
from trioserve.kernels.device import Event, Graph, MemoryInfo
from trioserve.kernels.gpu import Gpu
from trioserve.kernels.source import Kernel
from trioserve.worker.device_load import Machine, meet_over_nccl
from trioserve.worker.device_step_runner import DeviceStepRunner


class IdleGpu:
    """Launches nothing."""

    num_multiprocessors = 132
    architecture = "sm_80"

    def launch(self, kernel: Kernel, *arguments: Tensor | float, **_: object) -> None:
        """Do nothing, but that chosen tokens are tokens."""
        if kernel.base == "choose_tokens" and isinstance(arguments[0], Tensor):
            arguments[0].zero_()


class Idle:
    """An event that has come, and a graph without anything in it."""

    is_done = True

    def wait(self) -> None:
        """Return at once."""

    def seconds_since(self, earlier: Event) -> float:
        """No time passes."""
        return 0.0

    def replay(self) -> None:
        """Nothing is done anew."""


class IdleDevice:
    """A ``Device`` that computes nothing, on tensors of the host."""

    torch_device = torch.device("cpu")
    name = "nothing"

    def __init__(self) -> None:
        self.gpu: Gpu = IdleGpu()

    def memory(self) -> MemoryInfo:
        """Enough."""
        return MemoryInfo(1 << 36, 1 << 36)

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Nothing, after ``work``."""
        work()
        return 0

    def kept_bytes(self, work: Callable[[], object]) -> int:
        """Nothing, after ``work``."""
        work()
        return 0

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory like any other."""
        return torch.empty(shape, dtype=dtype)

    def record(self, *, timed: bool = False) -> Event:
        """It has come."""
        return Idle()

    def capture(self, work: Callable[[], object]) -> Graph:
        """``work`` runs once, for what it makes."""
        work()
        return Idle()


def measure(runner: DeviceStepRunner, num_seqs: int, num_steps: int) -> tuple[float, float]:
    """Medians in microseconds: to start a decode step, and to make its result."""
    starts, results = [], []
    for number, plan in enumerate(plans(16, num_seqs, num_steps)):
        began = time.perf_counter()
        pending = runner.launch(plan)
        started = time.perf_counter()
        pending.result()
        if number >= num_seqs:
            starts.append(started - began)
            results.append(time.perf_counter() - started)
    return statistics.median(starts) * 1e6, statistics.median(results) * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device_host")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = Machine(lambda config: IdleDevice(), meet_over_nccl)
    config = llama(1, 64, 1, 1, 64, 1024) | {"head_dim": 64}
    for num_seqs in options.sequences:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
            runner = load(Path(folder), "bfloat16", num_seqs, options.steps, machine)
        start_us, result_us = measure(runner, num_seqs, options.steps)
        print(f"{num_seqs} sequences: {start_us:.0f} us to start a step, {result_us:.0f} us for its result")


if __name__ == "__main__":
    main()
