"""What ``use_warmup`` is worth: the first step of a shape in a rank that was warmed up, and in one that was not.

The built-in model on one thread. Times are of the process's CPU, so that others on the machine disturb little; each
kind of rank is a process of its own, started ``--starts`` times in turn with the other.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trioserve.builtin import MODEL_DIR
from trioserve.core.sampling import SamplingParams
from trioserve.core.step import Admission, SlotWork, StepPlan, WorkerConfig
from trioserve.worker.load import load_cpu_runner

_NUM_BLOCKS = 4000
_BATCH_SIZES = (2, 8, 32, 64)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=5, help="processes of each kind [5]")
    parser.add_argument("--rank", choices=("cold", "warm"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        print(json.dumps(measure(use_warmup=options.rank == "warm")))
        return 0
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(options.starts):
        for rank, times in found.items():
            output = subprocess.run(
                [sys.executable, __file__, "--rank", rank], capture_output=True, check=True
            )
            times.append(json.loads(output.stdout))
    table = Table("CPU time, ms, median (least to most)", "without warm-up", "with")
    for name in found["cold"][0]:
        table.add_row(name, *(_spread([times[name] for times in found[rank]]) for rank in found))
    Console().print(table)
    return 0


def measure(*, use_warmup: bool) -> dict[str, float]:
    """CPU milliseconds by what was done."""
    config = WorkerConfig(
        model_path=str(MODEL_DIR),
        device="cpu",
        dtype="auto",
        tp_rank=0,
        tp_size=1,
        block_size=16,
        max_num_seqs=128,
        max_num_batched_tokens=512,
        max_model_len=2048,
        num_blocks=_NUM_BLOCKS,
        kv_cache_bytes=0,
        num_threads=1,
        use_warmup=use_warmup,
    )
    started = time.process_time()
    runner, _ = load_cpu_runner(config, lambda progress: None, 0.0)
    times = {"load and warm up": (time.process_time() - started) * 1e3}

    def run(name: str, plan: StepPlan) -> None:
        started = time.process_time()
        runner.run(plan)
        times[name] = (time.process_time() - started) * 1e3

    run("prompt of 512 tokens, the first", _prefill(0, 512))
    run("prompt of 512 tokens, the second", _prefill(1, 512))
    for slot in range(2, max(_BATCH_SIZES)):
        runner.run(_prefill(slot, 7))
    for size in _BATCH_SIZES:
        for which in ("first", "second"):
            run(
                f"decode of {size} sequences, the {which}",
                StepPlan(0, [], [], [SlotWork(s, 1, []) for s in range(size)]),
            )
    return times


def _prefill(slot: int, num_tokens: int) -> StepPlan:
    token_ids = [300 + slot + i for i in range(num_tokens)]
    blocks = list(range(slot * 33, slot * 33 + 33))
    admission = Admission(
        slot, slot, token_ids, num_tokens, 0, blocks, SamplingParams(max_tokens=99, temperature=0.0)
    )
    return StepPlan(0, [], [admission], [SlotWork(slot, num_tokens, [])])


def _spread(times: list[float]) -> str:
    return f"{statistics.median(times):.1f} ({min(times):.1f}-{max(times):.1f})"


if __name__ == "__main__":
    sys.exit(main())
