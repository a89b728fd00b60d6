"""The steps that a rank computes before it says that it is ready."""

from pathlib import Path
from typing import Any

import pytest

from tests.model.checkpoints import Checkpoints, prompt_of
from tests.worker.driver import Front, worker_config
from trioserve.core.step import StepPlan, StepResult
from trioserve.worker.load import _warm_up


class Recorder:
    """Keeps plans instead of carrying them out."""

    def __init__(self) -> None:
        self.plans: list[StepPlan] = []

    def run(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        return StepResult(plan.step_id, [], 0.0)


def steps(num_blocks: int = 1000, *, makes_kernels: bool = True, **changes: object) -> list[tuple[int, int]]:
    """Sequences and tokens of each step of a warm-up that computes something; its blocks are looked at."""
    recorder = Recorder()
    config = worker_config(Path(), **changes)
    _warm_up(recorder, config, num_blocks, makes_kernels=makes_kernels)  # type: ignore[arg-type] # all it uses is run
    for plan in recorder.plans:
        blocks = [block for admission in plan.admitted for block in admission.block_table]
        assert len(set(blocks)) == len(blocks)
        assert all(block < num_blocks for block in blocks)
    admitted = sorted(admission.slot for plan in recorder.plans for admission in plan.admitted)
    assert admitted == sorted(slot for plan in recorder.plans for slot in plan.released)
    return [
        (len(plan.work), sum(work.num_tokens for work in plan.work)) for plan in recorder.plans if plan.work
    ]


def test_a_short_prompt_and_a_decode_are_always_computed() -> None:
    assert steps(use_warmup=False) == [(1, 16), (1, 1)]


def test_a_full_warm_up_decodes_at_every_batch_size_and_fills_a_step() -> None:
    found = steps(use_warmup=True, max_num_seqs=3, max_num_batched_tokens=512, max_model_len=1000)
    every = [(3, 3), (3, 3), (2, 2), (2, 2), (1, 1), (1, 1)]
    assert found == [(1, 16), (1, 1), (3, 510), (3, 3), (1, 512), (1, 1), *every]


def test_where_no_kernels_are_made_a_full_warm_up_is_the_largest_steps_only() -> None:
    found = steps(
        makes_kernels=False, use_warmup=True, max_num_seqs=3, max_num_batched_tokens=512, max_model_len=1000
    )
    assert found == [(1, 16), (1, 1), (3, 510), (3, 3), (1, 512), (1, 1)]


def test_a_full_warm_up_has_an_end() -> None:
    found = steps(num_blocks=4000, use_warmup=True, max_num_seqs=1000, max_num_batched_tokens=2000)
    assert sorted({num_seqs for num_seqs, _ in found}) == [*range(1, 65), 1000]


@pytest.mark.parametrize(
    ("changes", "longest"),
    [({"max_model_len": 2}, 8), ({"max_model_len": 1}, 0), ({"num_blocks": 8}, 8 * 127)],
)
def test_a_warm_up_keeps_within_the_blocks_and_the_context(changes: dict[str, int], longest: int) -> None:
    settings: dict[str, Any] = {"num_blocks": 64, "use_warmup": True, "max_num_batched_tokens": 4096}
    found = steps(**settings | changes)
    assert max([tokens for _, tokens in found], default=0) <= longest


def test_a_warm_up_leaves_the_rank_as_it_was(checkpoints: Checkpoints) -> None:
    """Slots are free again, and what the cache holds is no one's."""
    prompt = prompt_of(40, seed=5)
    outputs = []
    for use_warmup in (False, True):
        front = Front.of(checkpoints.folder("llama"), use_warmup=use_warmup)
        front.admit(0, prompt)
        front.step(s0=40)
        front.decode(8, 0)
        outputs.append(front.outputs[0])
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 9
