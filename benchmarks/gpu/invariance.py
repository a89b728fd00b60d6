"""What ``--batch-invariant`` gives and costs: a sequence alone and beside others, bit by bit, and the steps of both."""

from typing import Final

import torch

from benchmarks.gpu.report import Report, Row
from benchmarks.gpu.steps import BLOCK_SIZE, MODELS, Model, load, timed
from trioserve.core.sampling import SamplingParams
from trioserve.core.step import Admission, SampledToken, SlotWork, StepPlan
from trioserve.worker.device_step_runner import DeviceStepRunner

_NAME: Final = "Qwen3-0.6B"
_BESIDE: Final = (0, 1, 15, 63)
_LENGTHS: Final = (1, 5, 100, 777)
"""Of the prompts; those beside the one that is looked at take turns."""
_TOKENS: Final = 16
_BATCH: Final = 64


def measure(report: Report) -> None:
    """Add how many tokens and log probabilities were the same, and what a step takes more.

    Raises:
        AssertionError: Some were not.
    """
    model = Model(MODELS[_NAME].config, (_BATCH,))
    usual, _ = load(model)
    usual_us = timed(usual, _BATCH).period_us
    del usual
    torch.cuda.empty_cache()
    runner, _ = load(model, batch_invariant=True)
    step_us = timed(runner, _BATCH).period_us
    alone = answer(runner, 0)
    for others in _BESIDE:
        assert answer(runner, others) == alone, f"beside {others} others a sequence has other numbers"
    what = f"{_NAME}: tokens and log probabilities that are equal beside {_BESIDE[-1]} others"
    report.add(Row("invariance", what, len(alone), "tokens"))
    note = f"a step is {step_us / usual_us:.2f} times as long"
    name = f"{_NAME}, {_BATCH} sequences, batch-invariant"
    report.add(Row("invariance", name, step_us / 1e3, "ms", None, "not so", usual_us / 1e3, None, note))


def answer(runner: DeviceStepRunner, others: int) -> list[tuple[int, object]]:
    """A prompt's tokens with their log probabilities, beside so many other sequences."""
    slots = range(1 + others)
    admitted = [_admission(slot) for slot in slots]
    first = [SlotWork(admission.slot, len(admission.token_ids), []) for admission in admitted]
    plans = [StepPlan(0, [], admitted, first)]
    work = [SlotWork(slot, 1, []) for slot in slots]
    plans += [StepPlan(number, [], [], work) for number in range(1, _TOKENS)]
    found = [runner.run(plan).sampled for plan in plans]
    runner.run(StepPlan(_TOKENS, list(slots), [], []))
    return [_of_first(sampled) for sampled in found]


def _of_first(sampled: list[SampledToken]) -> tuple[int, object]:
    token = next(token for token in sampled if token.slot == 0)
    return token.token_id, token.logprobs


def _admission(slot: int) -> Admission:
    length = _LENGTHS[-1] if slot == 0 else _LENGTHS[slot % len(_LENGTHS)]
    blocks = -(-(max(_LENGTHS) + _TOKENS) // BLOCK_SIZE)
    params = SamplingParams(max_tokens=_TOKENS, temperature=0.8, seed=slot, logprobs=5 if slot == 0 else None)
    return Admission(
        slot=slot,
        seq_id=slot,
        token_ids=[(slot * 31 + place) % 1000 for place in range(length)],
        num_prompt_tokens=length,
        num_computed_tokens=0,
        block_table=list(range(slot * blocks, (slot + 1) * blocks)),
        params=params,
    )
