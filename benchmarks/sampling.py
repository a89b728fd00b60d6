"""What choosing a token costs, against the same in numpy a row after the other and against torch's usual way.

    python -m benchmarks.sampling [--rounds 7] [--vocab 4096 49152 151936] [--rows 1 8 32] [--threads 1] [--json FILE]

The three ways take turns on the same logits; medians. Rows are what a model gives: normal with a deviation of 2.5, and
50 tokens that stand out by 8 to 14. `top-p 0.95, flat` is the hardest case for a filter: a deviation of 1 and nothing
that stands out, so that most of the vocabulary stays. torch's way is for the whole batch: softmax and a draw by
exponential noise, a sort of the vocabulary and running sums for top-k and top-p, dense counts for penalties,
log_softmax and topk for log probabilities.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.numpy_sampler import NumpySampler
from trioserve.core.sampling import SamplingParams
from trioserve.sampling.sampler import Sampler

NUM_PROMPT_TOKENS: Final = 512
NUM_TOKENS: Final = 640
_TURN_S: Final = 0.02
"""Seconds that each way runs in a round, at least once."""


class Kind(NamedTuple):
    """What the rows of a step ask for."""

    name: str
    fields: dict[str, Any]
    is_flat: bool = False


_BOTH: Final = {"temperature": 0.8, "top_k": 50, "top_p": 0.95}
KINDS: Final = (
    Kind("greedy", {"temperature": 0.0}),
    Kind("temperature", {"temperature": 0.8}),
    Kind("top-k 50", {"temperature": 0.8, "top_k": 50}),
    Kind("top-p 0.95", {"temperature": 0.8, "top_p": 0.95}),
    Kind("top-p 0.95, flat", {"temperature": 1.0, "top_p": 0.95}, is_flat=True),
    Kind("top-k and top-p", _BOTH),
    Kind("both and min-p 0.05", _BOTH | {"min_p": 0.05}),
    Kind(
        "both and penalties",
        _BOTH | {"repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.1},
    ),
    Kind("greedy, logprobs 0", {"temperature": 0.0, "logprobs": 0}),
    Kind("greedy, logprobs 5", {"temperature": 0.0, "logprobs": 5}),
    Kind("greedy, logprobs 20", {"temperature": 0.0, "logprobs": 20}),
)


class Case:
    """One kind of step, ready to be taken in each way."""

    def __init__(self, kind: Kind, vocab_size: int, num_rows: int) -> None:
        rng = np.random.default_rng(vocab_size + num_rows)
        deviation = 1.0 if kind.is_flat else 2.5
        self.logits = rng.normal(scale=deviation, size=(num_rows, vocab_size)).astype(np.float32)
        if not kind.is_flat:
            for row in self.logits:
                row[rng.choice(vocab_size, 50, replace=False)] += np.linspace(8, 14, 50, dtype=np.float32)
        self.params = SamplingParams(max_tokens=1, seed=7, **kind.fields)
        self.token_ids = rng.integers(0, vocab_size, (num_rows, NUM_TOKENS)).astype(np.int32)
        self.slots, self.positions = np.arange(num_rows), np.full(num_rows, NUM_TOKENS)

    def ways(self) -> dict[str, Callable[[], object]]:
        """A call of each takes a step."""
        native = Sampler(len(self.slots), self.logits.shape[1])
        in_numpy = NumpySampler(len(self.slots), self.logits.shape[1])
        for slot in self.slots.tolist():
            native.admit(slot, self.params, self.token_ids[slot], NUM_PROMPT_TOKENS)
            in_numpy.admit(slot, self.params, self.token_ids[slot], NUM_PROMPT_TOKENS)
        logits = torch.from_numpy(self.logits)
        in_torch = TorchWay(self.params, self.token_ids, self.logits.shape[1])
        return {
            "native": lambda: native.sample(logits, self.slots, self.positions),
            "numpy": lambda: in_numpy.sample(self.logits, self.slots, self.positions),
            "torch": lambda: in_torch.sample(logits),
        }


class TorchWay:
    """The batch as torch's operations take it, all rows with one set of parameters."""

    def __init__(self, params: SamplingParams, token_ids: NDArray[np.int32], vocab_size: int) -> None:
        self._params = params
        ids = torch.from_numpy(token_ids.astype(np.int64))
        self._seen, self._counts = counted(ids, vocab_size), counted(ids[:, NUM_PROMPT_TOKENS:], vocab_size)
        self._generator = torch.Generator().manual_seed(7)

    def sample(self, logits: Tensor) -> tuple[Tensor, tuple[list[Any], ...] | None]:
        """Chosen ids, and log probabilities where they are asked for."""
        chosen = self._choose(logits)
        if self._params.logprobs is None:
            return chosen, None
        logprobs = logits.log_softmax(-1)
        values, ids = logprobs.topk(self._params.logprobs, -1)
        own = logprobs.gather(-1, chosen[:, None])
        return chosen, (own.tolist(), values.tolist(), ids.tolist())

    def _choose(self, logits: Tensor) -> Tensor:
        params = self._params
        if params.is_greedy:
            return logits.argmax(-1)
        if params.frequency_penalty:
            logits = self._penalized(logits)
        logits = logits / params.temperature
        if params.min_p > 0:
            probabilities = logits.softmax(-1)
            border = probabilities.amax(-1, keepdim=True) * params.min_p
            logits = logits.masked_fill(probabilities < border, -torch.inf)
        if params.top_k or params.top_p < 1:
            logits = self._filtered(logits)
        noise = torch.empty_like(logits).exponential_(generator=self._generator)
        return logits.softmax(-1).div_(noise).argmax(-1)

    def _penalized(self, logits: Tensor) -> Tensor:
        params = self._params
        penalty = torch.where(self._seen > 0, params.repetition_penalty, 1.0)
        logits = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits -= params.frequency_penalty * self._counts
        return logits - params.presence_penalty * (self._counts > 0)

    def _filtered(self, logits: Tensor) -> Tensor:
        ordered, places = logits.sort(-1)
        if self._params.top_k:
            ordered.masked_fill_(ordered < ordered[:, -self._params.top_k, None], -torch.inf)
        if self._params.top_p < 1:
            below = ordered.softmax(-1).cumsum(-1) <= 1 - self._params.top_p
            below[:, -1] = False
            ordered.masked_fill_(below, -torch.inf)
        return torch.empty_like(ordered).scatter_(-1, places, ordered)


def counted(token_ids: Tensor, vocab_size: int) -> Tensor:
    """[num_rows, vocab_size], how often each row has each id."""
    counts = torch.zeros(len(token_ids), vocab_size)
    return counts.scatter_add_(-1, token_ids, torch.ones(token_ids.shape))


def time_case(case: Case, rounds: int) -> dict[str, float]:
    """The median microseconds a row of each way, which take turns."""
    ways = case.ways()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            start, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - start < _TURN_S:
                way()
                count += 1
            taken[name].append((time.perf_counter() - start) / count / len(case.slots) * 1e6)
    return {name: statistics.median(each) for name, each in taken.items()}


def show(costs: dict[tuple[str, int, int], dict[str, float]], vocab_size: int, rows: list[int]) -> Table:
    table = Table(title=f"us a row, vocabulary of {vocab_size:,}; times as fast as numpy and torch")
    table.add_column("rows")
    for num_rows in rows:
        for heading in (f"{num_rows}", "numpy", "torch"):
            table.add_column(heading, justify="right")
    for kind in KINDS:
        cells = []
        for num_rows in rows:
            found = costs[kind.name, vocab_size, num_rows]
            ratios = (f"{found[way] / found['native']:.1f}x" for way in ("numpy", "torch"))
            cells += [f"{found['native']:.1f}", *ratios]
        table.add_row(kind.name, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="alternating runs of which the median counts")
    parser.add_argument("--vocab", type=int, nargs="+", default=[4096, 49152, 151936])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console, costs = Console(), dict[tuple[str, int, int], dict[str, float]]()
    for vocab_size in arguments.vocab:
        for num_rows in arguments.rows:
            for kind in KINDS:
                case = Case(kind, vocab_size, num_rows)
                costs[kind.name, vocab_size, num_rows] = time_case(case, arguments.rounds)
        console.print(show(costs, vocab_size, arguments.rows))
    if arguments.json:
        named = {f"{kind}, {size} x {rows}": found for (kind, size, rows), found in costs.items()}
        arguments.json.write_text(json.dumps(named, indent=2) + "\n")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
