"""Guessing tokens against not guessing: tokens per second of one rank, alternating.

    python -m benchmarks.cpu.speculation [--rounds 7] [--batches 1 8 32] [--kinds copy loop story noise] [--json FILE]

The scheduler and a rank run in one process, two plans ahead as in the server, with the prices that the rank measures at
its start. A run is the time from the first token of all sequences to the last one's end. Kinds of text:

    copy    the built-in model, greedy, goes on with a list that goes round: it repeats what it has read
    loop    random weights of the S shape, greedy: they soon go in circles, which is all that they can
    story   the built-in model at temperature 1: little to look up
    noise   random weights of the S shape at temperature 1: nothing to look up

The tokens of both are compared: they must be the same.
"""

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.cpu.decoder import SHAPES
from trioserve._speedups.ngrams import NgramIndex
from trioserve.builtin import MODEL_DIR
from trioserve.core.sampling import SamplingParams
from trioserve.core.sequence import Sequence
from trioserve.core.step import Speculation, StepPlan, WorkerConfig
from trioserve.prompt.tokenizer import load_tokenizer
from trioserve.scheduler.limits import SchedulerLimits
from trioserve.scheduler.scheduler import Scheduler
from trioserve.worker.drafts import Price
from trioserve.worker.load import load_cpu_runner

BLOCK_SIZE: Final = 16
MAX_NUM_SEQS: Final = 32
MAX_MODEL_LEN: Final = 512
NUM_BLOCKS: Final = MAX_NUM_SEQS * MAX_MODEL_LEN // BLOCK_SIZE
CONFIG: Final = {
    **SHAPES["S"],
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}
SPECULATION: Final = Speculation(4, 2, 4)
LIST: Final = "red, green, blue, " * 6
STORY: Final = "Once upon a time there was a"


class Kind(NamedTuple):
    """What is generated."""

    model: str
    temperature: float
    prompt: str
    """Of the built-in model; the others have 32 tokens at random."""
    num_tokens: int


KINDS: Final = {
    "copy": Kind("builtin", 0.0, LIST, 128),
    "loop": Kind("S", 0.0, "", 128),
    "story": Kind("builtin", 1.0, STORY, 256),
    "noise": Kind("S", 1.0, "", 96),
}


class Rank:
    """A model that guesses or does not, and its scheduler."""

    def __init__(self, model: str, folder: Path, speculation: Speculation | None) -> None:
        config = WorkerConfig(
            model_path=str(MODEL_DIR if model == "builtin" else folder),
            device="cpu",
            dtype="auto",
            tp_rank=0,
            tp_size=1,
            block_size=BLOCK_SIZE,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=512,
            max_model_len=MAX_MODEL_LEN,
            num_blocks=NUM_BLOCKS,
            kv_cache_bytes=0,
            num_threads=0,
            load_format="auto" if model == "builtin" else "dummy",
            speculation=speculation,
        )
        self.runner, ready = load_cpu_runner(config, lambda progress: None, 0.0)
        limits = SchedulerLimits(
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=512,
            max_model_len=MAX_MODEL_LEN,
            max_num_queued_reqs=MAX_NUM_SEQS,
            max_num_queued_tokens=1 << 20,
            enable_prefix_caching=False,
            num_drafts=0 if speculation is None else speculation.num_tokens,
            max_drafting_seqs=ready.max_drafting_seqs,
        )
        self.scheduler = Scheduler(limits, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)

    def price(self, num_seqs: int) -> Price:
        """Of guesses in a step of so many sequences, in tokens; infinite where none is made."""
        prices = [] if self.runner.drafter is None else self.runner.drafter.prices
        return prices[num_seqs - 1] if num_seqs <= len(prices) else Price(math.inf, math.inf)


class Run(NamedTuple):
    """One run of a batch."""

    tokens_per_s: float
    outputs: list[list[int]]
    num_guessed: int
    num_right: int


def run(rank: Rank, sequences: list[Sequence]) -> Run:
    """Let all sequences come to their end."""
    scheduler, plans = rank.scheduler, deque[StepPlan]()
    for seq in sequences:
        scheduler.add(seq)
    began, num_before, num_guessed, num_right = 0.0, 0, 0, 0
    while True:
        while len(plans) < 2 and (plan := scheduler.plan_step()) is not None:
            plans.append(plan)
        if not plans:
            break
        result = rank.runner.run(plans.popleft())
        for _ in scheduler.commit(result):
            pass
        num_guessed += sum(result.num_drafted)
        num_right += sum(map(len, result.more))
        if not began and all(seq.num_output_tokens for seq in sequences):
            began, num_before = time.perf_counter(), sum(seq.num_output_tokens for seq in sequences)
    took = time.perf_counter() - began
    outputs = [seq.token_ids[seq.num_prompt_tokens :].tolist() for seq in sequences]
    return Run((sum(map(len, outputs)) - num_before) / took, outputs, num_guessed, num_right)


def make_sequences(kind: Kind, num_seqs: int) -> list[Sequence]:
    """The same at every call."""
    tokenizer, sequences = load_tokenizer(MODEL_DIR), []
    for number in range(num_seqs):
        if kind.model == "builtin":
            prompt = tokenizer.encode(f"{number} {kind.prompt}", add_special_tokens=False)
        else:
            prompt = random.Random(number).sample(range(40_000), 32)
        params = SamplingParams(max_tokens=kind.num_tokens, temperature=kind.temperature, seed=number)
        sequences.append(Sequence(prompt, params))
    return sequences


class Cell(NamedTuple):
    """A kind of text at one batch size: every round's tokens per second, and the guesses of one run."""

    plain: list[float]
    guessing: list[float]
    num_tokens: int
    num_guessed: int
    num_right: int
    price: Price

    @property
    def ratios(self) -> list[float]:
        """Of each round, with guesses over without."""
        return [b / a for a, b in zip(self.plain, self.guessing, strict=True)]


def compare(plain: Rank, guessing: Rank, kind: Kind, num_seqs: int, rounds: int) -> Cell:
    """Run both in turn.

    Raises:
        SystemExit: They do not give the same tokens.
    """
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        first, second = (
            run(plain, make_sequences(kind, num_seqs)),
            run(guessing, make_sequences(kind, num_seqs)),
        )
        if first.outputs != second.outputs:
            raise SystemExit(f"{kind}: {num_seqs} sequences get other tokens with guesses")
        if number:  # the first round warms up
            found[0].append(first.tokens_per_s)
            found[1].append(second.tokens_per_s)
    num_tokens = sum(map(len, second.outputs))
    return Cell(*found, num_tokens, second.num_guessed, second.num_right, guessing.price(num_seqs))


def lookup_us(context: int, num_slots: int = 32, num_tokens: int = 200) -> tuple[float, float]:
    """Microseconds of a token: while ``context`` tokens are entered at once, and step by step behind them."""
    text = (
        np.random.default_rng(1).integers(0, 40_000, (num_slots, context + 8 * num_tokens)).astype(np.int32)
    )
    counts, limits = np.full(num_slots, context), np.full(num_slots, text.shape[1])
    wakes_at, found = np.zeros((2, num_slots), np.int64)
    index = NgramIndex(text, counts, limits, wakes_at, shortest=2, longest=4)
    slots, is_whole = np.arange(num_slots), np.ones(num_slots, np.uint8)
    times = []
    for _ in range(num_tokens + 1):
        wakes_at[:] = 0
        began = time.perf_counter()
        index.draft(slots, is_whole, 4, found)
        times.append((time.perf_counter() - began) / num_slots * 1e6)
        counts += 1
    return times[0] / context, statistics.median(times[1:])


def show(cells: dict[tuple[str, int], Cell]) -> None:
    table = Table()
    for heading in ("text", "batch", "without, tokens/s", "with", "ratio", "guessed", "right", "price"):
        table.add_column(heading, justify="left" if heading == "text" else "right")
    for (name, num_seqs), cell in cells.items():
        ratios = cell.ratios
        table.add_row(
            name,
            str(num_seqs),
            f"{statistics.median(cell.plain):.0f}",
            f"{statistics.median(cell.guessing):.0f}",
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})",
            f"{cell.num_guessed / cell.num_tokens:.3f}",
            f"{cell.num_right / cell.num_tokens:.3f}",
            f"{cell.price.any:.2f} + {cell.price.each:.2f}",
        )
    Console().print(table)
    Console().print(
        "guessed, right: of each token of the answers; price: of any guesses in a step and of each, in tokens"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=7, help="alternating runs of which the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    options = parser.parse_args()
    cells: dict[tuple[str, int], Cell] = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        for model in sorted({KINDS[name].model for name in options.kinds}):
            plain, guessing = (Rank(model, Path(folder), given) for given in (None, SPECULATION))
            for name in options.kinds:
                if KINDS[name].model == model:
                    for num_seqs in options.batches:
                        cells[name, num_seqs] = compare(
                            plain, guessing, KINDS[name], num_seqs, options.rounds
                        )
    show(cells)
    for context in (128, 4096, 32_768):
        entered_us, step_us = lookup_us(context)
        print(f"n-grams of 2 to 4 in {context} tokens: {entered_us:.3f} us a token, {step_us:.3f} us a step")
    if options.json:
        numbers = {f"{name} {num_seqs}": cell._asdict() for (name, num_seqs), cell in cells.items()}
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
