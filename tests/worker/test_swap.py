"""Prompts that were driven out of an emulated GPU's KV cache come back from the host and go on with the same tokens."""

from collections import deque
from pathlib import Path

import pytest
import torch
from msgspec import structs

from tests.emu.emulated_device import EmulatedDevice
from tests.emu.works import make_device
from tests.model.checkpoints import Checkpoints, prompt_of
from tests.worker.device_front import load_on
from tests.worker.driver import BLOCK_SIZE, worker_config
from trioserve.core.sampling import SamplingParams
from trioserve.core.sequence import Sequence
from trioserve.core.step import StepPlan, WorkerConfig, WorkerReady
from trioserve.scheduler.limits import SchedulerLimits
from trioserve.scheduler.scheduler import Scheduler
from trioserve.worker.device_runner import DeviceRunner
from trioserve.worker.pending import Pending

NUM_BLOCKS = 10
STEPS_IN_FLIGHT = 2


class Engine:
    """A scheduler and a runner, whose steps overlap on the device."""

    def __init__(self, runner: DeviceRunner, ready: WorkerReady, config: WorkerConfig) -> None:
        limits = SchedulerLimits(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=config.max_model_len,
            max_num_queued_reqs=100,
            max_num_queued_tokens=10_000,
            max_moved_blocks=3,
        )
        self.scheduler = Scheduler(
            limits,
            num_blocks=ready.num_blocks,
            block_size=config.block_size,
            num_host_blocks=ready.num_host_blocks,
        )
        self._runner = runner
        self._in_flight: deque[tuple[StepPlan, Pending]] = deque()

    def run(self, *prompts: list[int]) -> list[Sequence]:
        """Sequences of these prompts, to their ends."""
        seqs = [Sequence(prompt, SamplingParams(max_tokens=9, temperature=0.0)) for prompt in prompts]
        for seq in seqs:
            self.scheduler.add(seq)
        while self._step():
            pass
        return seqs

    def _step(self) -> bool:
        while len(self._in_flight) < STEPS_IN_FLIGHT and (plan := self.scheduler.plan_step()) is not None:
            self._in_flight.append((plan, self._runner.launch(plan)))
        if not self._in_flight:
            return False
        _, pending = self._in_flight.popleft()
        deque(self.scheduler.commit(pending.result()), maxlen=0)
        self.scheduler.check_integrity()
        return True


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDevice:
    torch.set_num_threads(1)
    return make_device(tmp_path_factory.mktemp("kernels"), "fp16")


def test_a_prompt_that_is_found_at_the_host_gets_the_tokens_that_it_had_got(
    device: EmulatedDevice, wide_checkpoints: Checkpoints
) -> None:
    folder = wide_checkpoints.folder("qwen3-tied", dtype=torch.float16)
    found = {}
    for swap_bytes in (0, 8 << 20):
        engine = make_engine(folder, device, swap_bytes)
        prompts = [prompt_of(70, seed=seed) for seed in (1, 2, 3)]
        with torch.inference_mode(), device.deferring():
            outputs = [engine.run(prompt)[0] for prompt in (*prompts, prompts[0])]
            outputs += engine.run(*prompts)
        found[swap_bytes] = [seq.token_ids.tolist() for seq in outputs]
        again, statistics = outputs[3], engine.scheduler.statistics()
        if swap_bytes:
            assert again.num_cached_tokens == 70 // BLOCK_SIZE * BLOCK_SIZE
            assert statistics.num_swapped_in >= 70 // BLOCK_SIZE
        else:
            assert again.num_cached_tokens < 2 * BLOCK_SIZE
        assert statistics.num_free_blocks == NUM_BLOCKS
    assert found[0] == found[8 << 20]
    assert found[0][0] == found[0][3]


def make_engine(folder: Path, device: EmulatedDevice, swap_bytes: int) -> Engine:
    config = worker_config(
        folder, device="cuda", max_num_seqs=2, max_num_batched_tokens=40, num_blocks=NUM_BLOCKS
    )
    config = structs.replace(config, swap_bytes=swap_bytes, enforce_eager=True, dtype="float16")
    runner, ready = load_on(device, config)
    assert bool(ready.num_host_blocks) == bool(swap_bytes)
    return Engine(runner, ready, config)
