"""Ranks that share a model, in threads of this process, as a front sees them: one that answers."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from msgspec import structs

from tests.worker.driver import Front, worker_config
from tests.worker.wire import DEADLINE_S
from trioserve.core.step import Speculation, StepPlan, StepResult, WorkerConfig, WorkerReady
from trioserve.worker.drafts import Price
from trioserve.worker.load import load_cpu_runner
from trioserve.worker.machine import Cores
from trioserve.worker.runner import StepRunner

MANY_CORES = Cores(list(range(8)), 8)
"""What the ranks of a test share out, whatever the machine has."""


class Company:
    """Carries out each plan on every rank at once, and sees to it that all know the same afterwards."""

    def __init__(self, config: WorkerConfig, threads: ThreadPoolExecutor) -> None:
        def load_rank(tp_rank: int) -> tuple[StepRunner, WorkerReady]:
            own = structs.replace(config, tp_rank=tp_rank)
            if own.spread is not None and tp_rank:
                own = structs.replace(own, meeting_fd=-1)
            return load_cpu_runner(own, lambda progress: None, 0.0)

        self._threads = threads
        found = list(threads.map(load_rank, range(config.tp_size), timeout=DEADLINE_S))
        self.runners = [runner for runner, _ in found]
        self.readies = [ready for _, ready in found]

    def run(self, plan: StepPlan) -> StepResult:
        first: StepResult
        first, *others = self._threads.map(lambda runner: runner.run(plan), self.runners, timeout=DEADLINE_S)
        assert all(other.sampled == [] and other.more == [] for other in others)
        own = self.runners[0]._slots
        for runner in self.runners[1:]:
            for name in ("seq_ids", "num_tokens", "num_computed", "limits", "_most_tokens", "_has_sampled"):
                assert np.array_equal(getattr(own, name), getattr(runner._slots, name)), name
            for slot, count in enumerate(own.num_tokens.tolist()):
                assert np.array_equal(own.token_ids[slot, :count], runner._slots.token_ids[slot, :count])
        return first


@contextmanager
def company(folder: Path, tp_size: int, *, num_drafts: int = 0, **changes: object) -> Iterator[Company]:
    """Ranks that have loaded what ``folder`` holds."""
    changes["speculation"] = Speculation(num_drafts, 1, 3) if num_drafts else None
    meeting_fd = os.memfd_create("ranks")
    config = worker_config(
        folder, tp_size=tp_size, pin_threads=False, **{"meeting_fd": meeting_fd, **changes}
    )
    try:
        with (
            patch("trioserve.worker.load.usable_cores", lambda: MANY_CORES),
            ThreadPoolExecutor(tp_size) as threads,
        ):
            ranks = Company(config, threads)
            torch.set_num_threads(1)
            if (drafter := ranks.runners[0].drafter) is not None:
                drafter.prices = [Price(0.0, 1e-9)] * config.max_num_seqs
            yield ranks
    finally:
        os.close(meeting_fd)


@contextmanager
def front_of(folder: Path, tp_size: int, *, num_drafts: int = 0, **changes: object) -> Iterator[Front]:
    """A front over such ranks."""
    with company(folder, tp_size, num_drafts=num_drafts, **changes) as ranks:
        yield Front(ranks.run, num_drafts=num_drafts)
