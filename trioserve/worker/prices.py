"""What guessing tokens costs on this machine with this model, measured when it is loaded."""

import math
import time
from typing import Final

import numpy as np

from trioserve.core.sampling import SamplingParams
from trioserve.core.step import Admission, SlotWork, Speculation, StepPlan, WorkerConfig
from trioserve.worker.drafts import Drafter
from trioserve.worker.runner import ModelRunner

_NUM_SEQS: Final = (1, 4, 16, 32)
"""Sequences of the steps that are measured. With more of them a step is bound by arithmetic, and a guess costs about
what a token does."""
_DEAREST: Final = 0.8
"""Tokens that a guess may cost at most: nearly all would have to be right."""
_CHEAPEST: Final = 0.01
_CONTEXT: Final = 48
"""Tokens of each sequence; with more of them a guess costs less beside them."""
_LEAST_ROUNDS: Final = 3
_MOST_ROUNDS: Final = 30
_ENOUGH_S: Final = 0.1
"""Time after which a number of sequences has no more rounds than the least."""


def measure_prices(
    runner: ModelRunner, drafter: Drafter, config: WorkerConfig, speculation: Speculation
) -> list[float]:
    """The price of a guess in tokens, by the number of sequences in a step less one; as far as guesses may pay.

    Steps are run without guesses and with as many as there may be, in turn; the fastest of each counts.
    """
    if config.max_model_len < _CONTEXT + speculation.num_tokens + 2:
        return []  # there is nothing to look up in so few
    bench = _Bench(runner, config, speculation)
    measured = [num_seqs for num_seqs in _NUM_SEQS if num_seqs <= config.max_num_seqs]
    drafter.prices = [1e-9] * measured[-1]  # nearly nothing, or the first guess would be the last
    found = [bench.price(num_seqs) for num_seqs in measured]
    prices = np.interp(np.arange(1, measured[-1] + 1), measured, found)
    return [float(price) for price in prices[: np.argmax([*(prices > _DEAREST), True])]]


class _Bench:
    """Runs one sequence as many, in the same blocks: they write and read the same."""

    def __init__(self, runner: ModelRunner, config: WorkerConfig, speculation: Speculation) -> None:
        self._runner = runner
        self._num_guesses = speculation.num_tokens
        self._params = SamplingParams(max_tokens=speculation.num_tokens + 2, temperature=0.0)
        self._block_ids = list(range(-(-(_CONTEXT + speculation.num_tokens + 2) // config.block_size)))
        runner.run(StepPlan(-1, [], [self._admission(0, 0)], [SlotWork(0, _CONTEXT, [])]))
        runner.run(StepPlan(-1, [0], [], []))

    def price(self, num_seqs: int) -> float:
        """Of a guess in a step of so many sequences, in tokens."""
        began, plain_s, guessing_s = time.perf_counter(), math.inf, math.inf
        for number in range(_MOST_ROUNDS):
            if number >= _LEAST_ROUNDS and time.perf_counter() - began > _ENOUGH_S:
                break
            plain_s = min(plain_s, self._step_s(num_seqs, 0))
            guessing_s = min(guessing_s, self._step_s(num_seqs, self._num_guesses))
        return max((guessing_s - plain_s) / (self._num_guesses * plain_s), _CHEAPEST)

    def _step_s(self, num_seqs: int, num_drafts: int) -> float:
        slots = list(range(num_seqs))
        admitted = [self._admission(slot, _CONTEXT - 1) for slot in slots]
        self._runner.run(StepPlan(-1, [], admitted, []))
        result = self._runner.run(StepPlan(-1, [], [], [SlotWork(slot, 1, []) for slot in slots], num_drafts))
        assert result.num_drafted == [num_seqs] * num_drafts, "a guess was not made"
        self._runner.run(StepPlan(-1, slots, [], []))
        return result.step_s

    def _admission(self, slot: int, num_computed: int) -> Admission:
        return Admission(slot, slot, [0] * _CONTEXT, _CONTEXT, num_computed, self._block_ids, self._params)
