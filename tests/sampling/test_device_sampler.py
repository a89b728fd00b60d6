"""The choice on a device, emulated, against the choice on a CPU: the same tokens for the same logits, step by step."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.emu.emulated_device import EmulatedDevice
from tests.emu.works import make_device
from trioserve.core.sampling import EarlyStop, SamplingParams
from trioserve.kernels.staging import Region
from trioserve.sampling.device_sampler import Choice, DeviceSampler, records
from trioserve.sampling.sampler import Sampler

VOCAB_SIZE = 700
PROMPT = np.array([5, 9, 9, 31, 650], np.int32)


def params(**values: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 50, "temperature": 0.0} | values)  # type: ignore[arg-type] # as they are


HOT = {"temperature": 0.9, "top_p": 0.95, "top_k": 60, "seed": 11}
WISHES = {
    "greedy": params(),
    "seeded": params(**HOT),
    "seed of 64 bits": params(temperature=1.3, seed=2**64 - 3, min_p=0.01),
    "penalties": params(repetition_penalty=1.4, frequency_penalty=0.5, presence_penalty=0.3),
    "penalties, seeded": params(frequency_penalty=1.0, **HOT),
    "bias": params(logit_bias=((3, 4.0), (3, 5.0), (699, 4.5), (9000, 3.0))),
    "allowed": params(allowed_token_ids=(7, 8, 690, 4000), **HOT),
    "none of the allowed is there": params(allowed_token_ids=(4000,)),
    "stops come late": params(min_tokens=3, stop_token_ids=(0, 1, 2), logit_bias=((1, 50.0),)),
    "bad words": params(bad_words=((400,), (5000,), ()), logit_bias=((400, 50.0), (401, 40.0))),
    "bad runs": params(bad_words=((650, 12), (12, 12), (1, 2, 3)), logit_bias=((12, 50.0), (13, 45.0))),
    "log probabilities": params(logprobs=4, **HOT),
    "of the chosen alone": params(logprobs=0, logit_bias=((3, 60.0),)),
    "of the temperature": params(logprobs=2, temp_scaled_logprobs=True, temperature=0.5, seed=1),
    "of top-p": params(logprobs=2, top_p_normalized_logprobs=True, temperature=0.8, top_p=0.6, seed=2),
    "certain": params(early_stop=EarlyStop(5, 0.02)),
    "certain, with scope": params(
        early_stop=EarlyStop(5, 0.02), logprobs=1, temp_scaled_logprobs=True, temperature=0.3, seed=3
    ),
}
UNUSUAL = {
    "many alternatives": params(logprobs=33),
    "many bans": params(min_tokens=2, stop_token_ids=tuple(range(400)), **HOT),
    "many biases": params(logit_bias=tuple((i, 30.0 - i / 100) for i in range(500))),
}


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDevice:
    return make_device(tmp_path_factory.mktemp("kernels"), "bf16")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def logits_of(step: int, num_rows: int) -> Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(step)) * 2


def bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16)


class Both:
    """A device's sampler and a CPU's, with the same sequences."""

    def __init__(self, device: EmulatedDevice, wishes: dict[str, SamplingParams]) -> None:
        num_seqs = len(wishes)
        self.device = device
        self.on_device = DeviceSampler(device, num_seqs, VOCAB_SIZE, num_seqs + 3)
        self.on_cpu = Sampler(num_seqs, VOCAB_SIZE)
        self.slots = np.arange(num_seqs)[::-1].copy()
        self.known = len(PROMPT)
        self.region = Region(device)
        for slot, wish in enumerate(wishes.values()):
            self.admit(slot, wish)
        self.on_device.send(self.region)

    def admit(self, slot: int, wish: SamplingParams) -> None:
        self.on_device.admit(slot, wish, PROMPT, 4, self.region)
        self.on_cpu.admit(slot, wish, PROMPT, 4)

    def check_step(self, logits: Tensor) -> None:
        """Choose from ``logits``, on both, and compare."""
        positions = np.full(len(self.slots), self.known)
        expected = self.on_cpu.sample(logits, self.slots, positions)
        sampler, choice = self.on_device, self.on_device.choice_of(self.slots)
        follow = sampler.constrain(self.slots, self.region) if sampler.binds(self.slots) else []
        sampler.choose(logits, torch.from_numpy(self.slots).int(), torch.from_numpy(positions), choice)
        readout = sampler.read(len(self.slots), choice, self.region)
        token_ids = readout.token_ids.numpy()
        sampler.take(self.slots, positions, token_ids, follow)
        sampler.unconstrain(len(self.slots))
        found, is_certain = records(readout, sampler.wanted(self.slots))
        assert token_ids.tolist() == expected.token_ids.tolist()
        assert is_certain.tolist() == expected.is_certain.tolist()
        for own, theirs in zip(found, expected.logprobs, strict=True):
            assert (own is None) == (theirs is None)
            if own is not None and theirs is not None:
                assert own.top_ids == theirs.top_ids
                assert own.logprob == pytest.approx(theirs.logprob, abs=1e-5)
                assert own.top_logprobs == pytest.approx(theirs.top_logprobs, abs=1e-5)
        self.known += 1


def test_every_parameter_gives_the_tokens_of_the_cpu(device: EmulatedDevice) -> None:
    both = Both(device, WISHES)
    assert both.on_device.choice_of(both.slots) is Choice.SCORED
    for step in range(5):
        both.check_step(bf16(logits_of(step, len(WISHES))))


def test_more_than_the_usual_room_takes_gives_them_too(device: EmulatedDevice) -> None:
    both = Both(device, WISHES | UNUSUAL)
    assert both.on_device.choice_of(both.slots) is Choice.UNUSUAL
    for step in range(3):
        both.check_step(logits_of(step, len(both.slots)))


def test_a_slot_keeps_nothing_of_the_sequence_before(device: EmulatedDevice) -> None:
    both = Both(device, WISHES | UNUSUAL)
    both.check_step(logits_of(0, len(both.slots)))
    for slot in range(len(both.slots)):
        both.on_device.release(slot)
        both.on_cpu.release(slot)
        both.admit(slot, params(logprobs=1) if slot % 2 else params())
    both.on_device.send(both.region)
    both.known = len(PROMPT)
    assert both.on_device.choice_of(both.slots) is Choice.SCORED
    for step in range(2):
        both.check_step(logits_of(step, len(both.slots)))


@pytest.mark.parametrize(
    ("names", "choice"),
    [
        (("greedy", "seeded", "none of the allowed is there"), Choice.PLAIN),
        (("greedy", "bias", "penalties", "bad runs"), Choice.EDITED),
        (("greedy", "certain", "penalties"), Choice.SCORED),
    ],
)
def test_a_graph_chooses_for_slots_that_came_after_it(
    device: EmulatedDevice, names: tuple[str, ...], choice: Choice
) -> None:
    """And for other rows and positions: nothing of the host's is frozen in it."""
    both = Both(device, {name: WISHES[name] for name in names})
    count = len(names)
    logits, slots = torch.zeros(count, VOCAB_SIZE), torch.zeros(count, dtype=torch.int32)
    positions = torch.zeros(count, dtype=torch.int64)
    sampler = both.on_device
    assert sampler.choice_of(both.slots) is choice
    sampler.choose(logits, slots, positions, choice)
    graph = device.capture(lambda: sampler.choose(logits, slots, positions, choice))
    both = Both(device, {name: WISHES[name] for name in reversed(names)})
    both.on_device = sampler
    for slot, name in enumerate(reversed(names)):
        sampler.admit(slot, WISHES[name], PROMPT, 4, both.region)
    sampler.send(both.region)

    def replay(given: Tensor, rows: Tensor, at: Tensor, wanted: Choice) -> Tensor:
        assert wanted is choice
        logits.copy_(given)
        slots.copy_(rows)
        positions.copy_(at)
        graph.replay()
        return logits

    sampler.choose = replay  # type: ignore[method-assign, assignment] # the same choice, by the graph
    for step in range(4):
        both.check_step(logits_of(step + 7, count))
