"""A step on a device that was started, and its result once it is done."""

import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from trioserve.core.step import PromptLogprobs, SampledToken, StepResult
from trioserve.kernels.device import Event
from trioserve.kernels.staging import Region, Staging
from trioserve.sampling.constraint import Turn
from trioserve.sampling.device_sampler import Readout, Wanted, records


class StepTimes(NamedTuple):
    """When a step had its inputs and when its results were on their way, on the device's clock.

    What comes to an idle device is as early as its launch: where the host is late, ``start`` is by that of the layers,
    some microseconds. The time between two ends has all of it.
    """

    start: Event
    end: Event


class Finish:
    """Ends steps, in whatever thread their results are made: gives back what they held, and times them."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._finishing = threading.Lock()
        self._finished_s = 0.0

    def __call__(self, region: Region, started_s: float) -> float:
        """A step that started then, by ``time.perf_counter()``, is done and read.

        Returns:
            Seconds since then, or since the step before was done: that it had the device for itself or waited for us.
        """
        self._staging.give_back(region)
        with self._finishing:
            now, before = time.perf_counter(), self._finished_s
            self._finished_s = now
        return now - max(started_s, before)


@dataclass(slots=True)
class Chosen:
    """What a step will have chosen, for a result that is made when others may have the slots."""

    slots: NDArray[np.int64]
    seq_ids: NDArray[np.int64]
    """[num_rows]"""
    readout: Readout
    wanted: Wanted
    turns: dict[int, Turn] = field(default_factory=dict)
    """By row."""

    def sampled(self) -> list[SampledToken]:
        """The tokens, when they are there."""
        logprobs, is_certain = records(self.readout, self.wanted)
        token_ids: NDArray[np.int32] = self.readout.token_ids.numpy()
        rows = zip(
            self.slots.tolist(),
            self.seq_ids.tolist(),
            token_ids.tolist(),
            logprobs,
            is_certain.tolist(),
            strict=True,
        )
        return self.turned([SampledToken(*row) for row in rows], self.turns)

    @staticmethod
    def turned(sampled: list[SampledToken], turns: dict[int, Turn]) -> list[SampledToken]:
        """``sampled``, with what they have led to, by row."""
        for row, turn in turns.items():
            sampled[row] = structs.replace(sampled[row], forced=turn.forced, failure=turn.failure)
        return sampled


class Rounds(NamedTuple):
    """What a step with guesses has chosen."""

    rounds: list[list[SampledToken]]
    num_drafted: list[int]
    """How many sequences had one guess or more, two or more, and so on."""


class Pending:
    """A step that was started."""

    def __init__(
        self,
        finish: Finish,
        step_id: int,
        region: Region,
        started_s: float,
        chosen: Chosen | Rounds | None,
        scored: list[PromptLogprobs],
        event: Event,
    ) -> None:
        self.event = event
        """When all of it is done."""
        self._finish = finish
        self._step_id = step_id
        self._region = region
        self._started_s = started_s
        self._chosen = chosen
        self._scored = scored

    def result(self) -> StepResult:
        """Wait for it; once, in the order of steps, by whatever thread.

        Raises:
            KernelError: The device failed.
        """
        self.event.wait()
        chosen = self._chosen
        sampled = chosen.sampled() if isinstance(chosen, Chosen) else []
        step_s = self._finish(self._region, self._started_s)
        result = StepResult(self._step_id, sampled, step_s, self._scored)
        if not isinstance(chosen, Rounds):
            return result
        first, *more = chosen.rounds
        return structs.replace(result, sampled=first, more=more, num_drafted=chosen.num_drafted)
