"""How long a GPU is idle between two decode steps, with plans that come as the front sends them.

    python -m benchmarks.gpu.gap [--sequences 64] [--steps 300] --model FOLDER [--dtype bfloat16]

A step ends when its tokens are on their way to the host. The time from one end to the next, less the time that the same
graphs take when they are replayed one behind the other, is what the device waited for somebody, or did for the inputs.
FOLDER needs no weights: they are random. Needs a GPU; never run on one yet.
"""

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from trioserve.core.sampling import SamplingParams
from trioserve.core.step import Admission, SlotWork, StepPlan, StepResult, WorkerConfig
from trioserve.worker.answers import AnswerThread
from trioserve.worker.device_load import CUDA, Machine
from trioserve.worker.device_step_runner import DeviceStepRunner
from trioserve.worker.load import load_runner

_IN_FLIGHT = 2
"""Plans that the front sends ahead."""
_PROMPT = 100
SETTLING = 20
"""Steps before those that count."""


class Gap(NamedTuple):
    """Medians, in microseconds."""

    period_us: float
    """From the end of a step to the end of the next."""
    alone_us: float
    """Of the same graphs, one behind the other."""

    @property
    def gap_us(self) -> float:
        return self.period_us - self.alone_us


def measure_gap(
    runner: DeviceStepRunner, block_size: int, num_seqs: int, num_steps: int, *, prompt: int = _PROMPT
) -> Gap:
    """Decode ``num_seqs`` sequences for so many steps behind prompts of so many tokens; slots and blocks are taken from
    0 on, and are free again at the end."""
    steps = plans(block_size, num_seqs, num_steps + SETTLING, prompt=prompt)
    runner.timeline = []
    done = SimpleQueue[StepResult]()
    with AnswerThread(runner, done.put, lambda: None) as answers:
        for number, plan in enumerate(steps):
            answers.start(plan)
            if number >= _IN_FLIGHT - 1:
                done.get()
    ends, runner.timeline = runner.timeline, None
    periods = [after.end.seconds_since(before.end) for before, after in pairwise(ends[-num_steps:])]
    found = Gap(statistics.median(periods) * 1e6, runner.decode_again(num_seqs, num_steps) * 1e6)
    runner.run(StepPlan(-1, list(range(num_seqs)), [], []))
    return found


def plans(block_size: int, num_seqs: int, num_steps: int, *, prompt: int = _PROMPT) -> list[StepPlan]:
    """Prompts, one a step, and then decodes of all, greedy and seeded in turn."""
    per_seq = -(-(prompt + num_steps + 1) // block_size)
    found = []
    for slot in range(num_seqs):
        params = SamplingParams(max_tokens=1 << 20, temperature=float(slot % 2), top_p=0.95, seed=slot)
        blocks = list(range(slot * per_seq, (slot + 1) * per_seq))
        admission = Admission(slot, slot, [slot + 1] * prompt, prompt, 0, blocks, params)
        found.append(StepPlan(slot, [], [admission], [SlotWork(slot, prompt, [])]))
    work = [SlotWork(slot, 1, []) for slot in range(num_seqs)]
    return [*found, *(StepPlan(num_seqs + step, [], [], work) for step in range(num_steps))]


def load(
    folder: Path, dtype: str, num_seqs: int, num_steps: int, machine: Machine = CUDA
) -> DeviceStepRunner:
    """A runner with random weights and room for the measurement."""
    config = WorkerConfig(
        model_path=str(folder),
        device="cuda",
        dtype=dtype,
        tp_rank=0,
        tp_size=1,
        block_size=16,
        max_num_seqs=num_seqs,
        max_num_batched_tokens=max(num_seqs, _PROMPT),
        max_model_len=_PROMPT + num_steps + SETTLING + 1,
        num_blocks=num_seqs * -(-(_PROMPT + num_steps + SETTLING + 1) // 16),
        kv_cache_bytes=0,
        num_threads=1,
        load_format="dummy",
    )
    runner, ready = load_runner(config, lambda progress: None, time.monotonic(), machine=machine)
    assert isinstance(runner, DeviceStepRunner)
    print(f"{ready.device}, {ready.decoder}")
    return runner


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.gap", description=__doc__)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--model", type=Path, required=True, help="a folder with config.json")
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    runner = load(options.model, options.dtype, options.sequences, options.steps)
    gap = measure_gap(runner, 16, options.sequences, options.steps)
    print(f"step {gap.period_us:.1f} us, alone {gap.alone_us:.1f} us, idle between two {gap.gap_us:.1f} us")


if __name__ == "__main__":
    main()
