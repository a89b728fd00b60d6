"""Ranks that share a model, each on an emulated device: the tokens are those of one."""

from pathlib import Path

import torch

import trioserve.builtin
from tests.emu.emulated_device import EmulatedDevice
from tests.model.checkpoints import Checkpoints, prompt_of
from tests.worker.device_company import device_company
from tests.worker.device_front import device_front
from tests.worker.test_grammars import PERSON, PROMPT, SETTINGS, json_grammar
from tests.worker.test_grammars import params as grammar_params
from trioserve.core.sampling import SamplingParams


def test_two_ranks_give_the_tokens_of_one(device: EmulatedDevice, wide_checkpoints: Checkpoints) -> None:
    """Greedy, seeded and with counts behind penalties; a rank that follows has its tokens on the device."""
    folder = wide_checkpoints.folder("glm4", dtype=torch.float16)
    wishes = [
        SamplingParams(max_tokens=50, temperature=0.0),
        SamplingParams(max_tokens=50, temperature=0.9, top_p=0.9, seed=1, logprobs=2),
        SamplingParams(max_tokens=50, temperature=0.0, frequency_penalty=0.5, prompt_logprobs=1),
    ]
    outputs = []
    with device_company(folder, device, 2) as (shared, company):
        assert all(runner.num_graphs for runner in company.runners)
        for front in (shared, device_front(folder, device)[0]):
            for slot, wish in enumerate(wishes):
                front.admit(slot, prompt_of(10 + slot, seed=slot), wish)
            front.step(s0=10, s1=11, s2=5)
            front.step(s0=1, s1=1, s2=7)
            front.decode(6, 0, 1, 2)
            outputs.append(front.outputs)
    assert outputs[0] == outputs[1]


def test_what_a_grammar_forces_reaches_all_ranks(device: EmulatedDevice) -> None:
    folder = Path(trioserve.builtin.__file__).parent / "model"
    wish, free = grammar_params(grammar=json_grammar(PERSON)), grammar_params()
    outputs = []
    with device_company(folder, device, 2, **SETTINGS) as (shared, _):
        for front in (shared, device_front(folder, device, **SETTINGS)[0]):
            front.admit(0, PROMPT, wish)
            front.admit(1, PROMPT, free)
            front.step(s0=len(PROMPT), s1=len(PROMPT))
            front.decode(12, 0, 1)
            outputs.append(front.outputs)
            assert any(sample.forced for sample in front.samples[0])
    assert outputs[0] == outputs[1]
