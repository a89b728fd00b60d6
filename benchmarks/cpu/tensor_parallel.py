"""What it costs that ranks share a model where the memory is one: the steps of one rank and of two.

    python -m benchmarks.cpu.tensor_parallel [--shape M] [--dtype bfloat16] [--ranks 1 2] [--rounds 30]

Ranks are started as a server starts them, each set with all cores; weights are random. The sets take turns, a step
each. Times are what rank 0 says of its step, with the greedy choice of tokens. A decode has 128 tokens in the cache.
"""

import argparse
import json
import statistics
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import trio
from rich.console import Console
from rich.table import Table

from benchmarks.cpu.decoder import SHAPES
from trioserve.core.sampling import SamplingParams
from trioserve.core.step import Admission, LoadProgress, SlotWork, StepPlan, WorkerConfig
from trioserve.executor.executor import ProcessExecutor, run_ranks
from trioserve.executor.rank import launch_ranks

BLOCK_SIZE: Final = 16
CONTEXT: Final = 128
PREFILL: Final = 512
DECODES: Final = (1, 8, 32)
_BLOCKS_EACH: Final = PREFILL // BLOCK_SIZE + 1
_GREEDY: Final = SamplingParams(max_tokens=4, temperature=0.0)


def config_of(folder: Path, dtype: str, tp_size: int) -> WorkerConfig:
    return WorkerConfig(
        model_path=str(folder),
        device="cpu",
        dtype=dtype,
        tp_rank=0,
        tp_size=tp_size,
        block_size=BLOCK_SIZE,
        max_num_seqs=max(DECODES),
        max_num_batched_tokens=PREFILL,
        max_model_len=PREFILL + 1,
        num_blocks=max(DECODES) * _BLOCKS_EACH,
        kv_cache_bytes=0,
        num_threads=0,
        load_format="dummy",
    )


class Bench:
    """One set of ranks."""

    def __init__(self, executor: ProcessExecutor) -> None:
        self.executor = executor
        self.seconds: dict[str, list[float]] = {}

    async def step(self, name: str, num_seqs: int, num_tokens: int, num_computed: int) -> None:
        """A step that computes so many tokens of each sequence, and samples one."""
        slots = range(num_seqs)
        length = num_computed + num_tokens
        admitted = [
            Admission(slot, slot, list(range(length)), length, num_computed, self._blocks(slot), _GREEDY)
            for slot in slots
        ]
        await self._run(StepPlan(0, [], admitted, []))
        seconds = await self._run(StepPlan(0, [], [], [SlotWork(slot, num_tokens, []) for slot in slots]))
        await self._run(StepPlan(0, list(slots), [], []))
        self.seconds.setdefault(name, []).append(seconds)

    async def _run(self, plan: StepPlan) -> float:
        await self.executor.submit(plan)
        return (await self.executor.result()).step_s

    @staticmethod
    def _blocks(slot: int) -> list[int]:
        return list(range(slot * _BLOCKS_EACH, (slot + 1) * _BLOCKS_EACH))


async def measure(options: argparse.Namespace, folder: Path) -> dict[int, Bench]:
    """Steps of every kind, of every set in turn; the first round is not counted."""
    async with AsyncExitStack() as stack:
        benches = {}
        for tp_size in options.ranks:
            ranks = launch_ranks(config_of(folder, options.dtype, tp_size))
            running = run_ranks(ranks, start_timeout_s=300, on_progress=_ignore)
            benches[tp_size] = Bench(await stack.enter_async_context(running))
        for number in range(1 + options.rounds):
            for bench in benches.values():
                for num_seqs in DECODES:
                    await bench.step(f"decode {num_seqs}", num_seqs, 1, CONTEXT)
                if number % 4 == 0:
                    await bench.step(f"prefill {PREFILL}", 1, PREFILL, 0)
                if number == 0:
                    bench.seconds.clear()
        return benches


def _ignore(progress: LoadProgress) -> None:
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="M")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        common = {"tie_word_embeddings": True, "max_position_embeddings": 2048, "torch_dtype": "bfloat16"}
        text = json.dumps({**SHAPES[options.shape], **common})
        (Path(name) / "config.json").write_text(text, encoding="utf-8")
        benches = trio.run(measure, options, Path(name))
    table = Table("ranks", "decoder", *next(iter(benches.values())).seconds)
    for tp_size, bench in benches.items():
        cells = []
        for seconds in bench.seconds.values():
            low, middle, high = (statistics.quantiles(seconds, n=10)[at] * 1000 for at in (0, 4, 8))
            cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
        table.add_row(str(tp_size), bench.executor.ready.decoder, *cells)
    print(f"{options.shape} {options.dtype}, ms a step, in brackets the 10th and 90th percentile")
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
