"""A rank on an emulated device, on its socket: results in order, and what goes wrong is told."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.emu.emulated_device import EmulatedDevice
from tests.model.checkpoints import Checkpoints, prompt_of
from tests.worker.device_front import SMALL, on
from tests.worker.driver import Front, worker_config
from tests.worker.wire import DEADLINE_S, Wire
from trioserve.core.step import (
    LoadProgress,
    Speculation,
    StepPlan,
    WorkerConfig,
    WorkerError,
    WorkerReady,
)
from trioserve.errors import KernelError
from trioserve.worker.loop import serve


@pytest.fixture(scope="module")
def config(wide_checkpoints: Checkpoints) -> WorkerConfig:
    folder = wide_checkpoints.folder("qwen3-tied", dtype=torch.float16)
    return worker_config(folder, **SMALL | {"device": "cuda"})


@contextmanager
def served(device: EmulatedDevice) -> Iterator[tuple[Wire, list[int]]]:
    """A rank in a thread; its exit code once the block is left."""
    ours, theirs = socket.socketpair()
    exit_codes: list[int] = []

    def run() -> None:
        with theirs:
            exit_codes.append(serve(theirs, time.monotonic(), machine=on(device)))

    thread = threading.Thread(target=run)
    thread.start()
    with ours:
        yield Wire(ours), exit_codes
    thread.join(DEADLINE_S)


def test_results_come_in_the_order_of_plans_that_lie_in_the_socket(
    device: EmulatedDevice, config: WorkerConfig
) -> None:
    with served(device) as (wire, exit_codes):
        *progress, ready = wire.start(config)
        assert isinstance(ready, WorkerReady)
        assert (ready.device, ready.num_graphs, ready.num_blocks) == ("emulated GPU", 16, 64)
        assert list(ready.phases_s)[1:] == [
            *("device", "weights", "kernels", "KV cache", "graphs", "warm-up", "tokenizer")
        ]
        assert progress[-1] == LoadProgress(ready.weights_bytes, ready.weights_bytes, 4, 4)
        front = Front(wire.execute)
        front.admit(0, prompt_of(10, seed=1))
        plans = [front.plan(s0=10), *(front.plan(s0=1) for _ in range(6)), StepPlan(7, [0], [], [])]
        for plan in plans:
            wire.send(plan)
        results = [wire.result() for _ in plans]
        assert [result.step_id for result in results] == list(range(8))
        assert [len(result.sampled) for result in results] == [1] * 7 + [0]
        assert all(0 < result.step_s < DEADLINE_S for result in results)
    assert exit_codes == [0]


def test_a_device_that_fails_is_told_and_ends_the_rank(
    device: EmulatedDevice,
    config: WorkerConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It shows where somebody waits for the step, which is in another thread than the one that started it."""

    class Broken:
        def wait(self) -> None:
            raise KernelError("the GPU failed: an illegal address")

    with served(device) as (wire, exit_codes):
        wire.start(config)
        monkeypatch.setattr(device, "record", lambda timed=False: Broken())
        front = Front(wire.execute)
        front.admit(0, prompt_of(10, seed=1))
        wire.send(front.plan(s0=10))
        assert wire.receive() == WorkerError("internal", "KernelError: the GPU failed: an illegal address")
        assert wire.receive() is None
    assert exit_codes == [1]
    assert "KernelError" in capfd.readouterr().err


def test_a_step_that_cannot_be_started_is_told_too(device: EmulatedDevice, config: WorkerConfig) -> None:
    with served(device) as (wire, exit_codes):
        wire.start(config)
        wire.send(StepPlan(0, [3], [], []))
        assert wire.receive() == WorkerError("internal", "AssertionError: slot 3 is free already")
    assert exit_codes == [1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"speculation": Speculation(4, 2, 4), "tp_size": 2},
            "speculative_config cannot be obeyed on 2 GPUs",
        ),
        ({"dtype": "float32"}, "a GPU cannot run this model: weights are float32"),
        ({"num_blocks": 3}, "raise num_kv_blocks to 8"),
    ],
)
def test_what_a_gpu_cannot_do_is_one_sentence(
    device: EmulatedDevice, config: WorkerConfig, changes: dict[str, object], sentence: str
) -> None:
    with served(device) as (wire, exit_codes):
        error = wire.start(worker_config(Path(config.model_path), **SMALL | {"device": "cuda"} | changes))[-1]
        assert isinstance(error, WorkerError)
        assert error.kind == "model"
        assert sentence in error.message
    assert exit_codes == [1]
