"""What guessing tokens costs on this machine with this model, measured when it is loaded."""

import math
import time
from itertools import takewhile
from typing import Final, Protocol

import numpy as np

from trioserve.core.sampling import SamplingParams
from trioserve.core.step import Admission, SlotWork, Speculation, StepPlan, StepResult, WorkerConfig
from trioserve.model.ranks import Ranks
from trioserve.worker.drafts import Drafter, Price

_NUM_SEQS: Final = (1, 4, 16, 32)
"""Sequences of the steps that are measured. With more of them a step is bound by arithmetic, and a guess costs about
what a token does."""
_DEAREST: Final = 0.8
"""Tokens that a guess may cost at most: nearly all would have to be right."""
_CHEAPEST: Final = 0.01
_NOTHING: Final = Price(0.0, 1e-9)
"""While prices are measured, or the first guess might be the last."""
_CONTEXT: Final = 48
"""Tokens of each sequence; with more of them a guess costs less beside them."""
_LEAST_ROUNDS: Final = 3
_MOST_ROUNDS: Final = 30
_ENOUGH_S: Final = 0.1
"""Time after which a number of sequences has no more rounds than the least."""


class Guesses(Protocol):
    """A runner that may guess."""

    drafter: Drafter | None

    def run(self, plan: StepPlan) -> StepResult:
        """Carry out ``plan``."""
        ...


def measure_prices(
    runner: Guesses, ranks: Ranks, config: WorkerConfig, speculation: Speculation, vocab_size: int
) -> list[Price]:
    """The price of guesses by the number of sequences in a step less one, as far as guesses may pay.

    All ranks run the same steps; what counts is how long they took on rank 0, which has the drafter.

    Steps are run without guesses, with one and with as many as there may be, in turn; the fastest of each counts.
    """
    if config.max_model_len < _CONTEXT + speculation.num_tokens + 2 or vocab_size < _CONTEXT:
        return []  # there is nothing to look up in so few
    bench = _Bench(runner, ranks, config, speculation)
    measured = [num_seqs for num_seqs in _NUM_SEQS if num_seqs <= config.max_num_seqs]
    if runner.drafter is not None:
        runner.drafter.prices = [_NOTHING] * measured[-1]
    found = np.array([bench.price(num_seqs) for num_seqs in measured])
    numbers = np.arange(1, measured[-1] + 1)
    for_any, for_each = (np.interp(numbers, measured, prices).tolist() for prices in found.T)
    return list(takewhile(lambda price: price.each <= _DEAREST, map(Price, for_any, for_each)))


class _Bench:
    """Runs one sequence as many, in the same blocks: they write and read the same."""

    def __init__(self, runner: Guesses, ranks: Ranks, config: WorkerConfig, speculation: Speculation) -> None:
        self._runner = runner
        self._ranks = ranks
        self._num_guesses = speculation.num_tokens
        self._params = SamplingParams(max_tokens=speculation.num_tokens + 2, temperature=0.0)
        self._block_ids = list(range(-(-(_CONTEXT + speculation.num_tokens + 2) // config.block_size)))
        runner.run(
            StepPlan(-1, [], [self._admission(0, repeats=True, num_computed=0)], [SlotWork(0, _CONTEXT, [])])
        )
        runner.run(StepPlan(-1, [0], [], []))

    def price(self, num_seqs: int) -> Price:
        """Of guesses in a step of so many sequences, in tokens."""
        began = time.perf_counter()
        kinds = ((0, 0), (1, 1), (num_seqs, self._num_guesses))
        plain_s, one_s, all_s = (math.inf,) * 3
        for number in range(_MOST_ROUNDS):
            if number >= _LEAST_ROUNDS and self._is_enough(time.perf_counter() - began):
                break
            seconds = [self._step_s(num_seqs, num_guessing, count) for num_guessing, count in kinds]
            plain_s, one_s, all_s = map(min, (plain_s, one_s, all_s), seconds)
        token_s = plain_s / num_seqs
        each = max((all_s - one_s) / max(num_seqs * self._num_guesses - 1, 1) / token_s, _CHEAPEST)
        return Price(max((one_s - plain_s) / token_s - each, 0.0), each)

    def _is_enough(self, seconds: float) -> bool:
        """Whether rank 0 has measured for long enough."""
        answer = np.array([seconds > _ENOUGH_S], np.int64)
        self._ranks.share(answer)
        return bool(answer[0])

    def _step_s(self, num_seqs: int, num_guessing: int, num_guesses: int) -> float:
        """Seconds of a step in which the first so many sequences have so many guesses each."""
        slots = list(range(num_seqs))
        admitted = [
            self._admission(slot, repeats=slot < num_guessing, num_computed=_CONTEXT - 1) for slot in slots
        ]
        self._runner.run(StepPlan(-1, [], admitted, []))
        result = self._runner.run(
            StepPlan(-1, [], [], [SlotWork(slot, 1, []) for slot in slots], num_guesses)
        )
        assert result.num_drafted == [num_guessing] * num_guesses, "other guesses were made"
        self._runner.run(StepPlan(-1, slots, [], []))
        return result.step_s

    def _admission(self, slot: int, *, repeats: bool, num_computed: int) -> Admission:
        token_ids = [0] * _CONTEXT if repeats else list(range(_CONTEXT))
        return Admission(slot, slot, token_ids, _CONTEXT, num_computed, self._block_ids, self._params)
