"""Step plans on an emulated device: the tokens are those of torch's layers on the CPU, however steps are started."""

from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from msgspec import structs

import trioserve.builtin
from tests.emu.emulated_device import EmulatedDevice
from tests.model.checkpoints import Checkpoints, prompt_of
from tests.worker.device_front import SMALL, device_front
from tests.worker.driver import GREEDY, Front
from tests.worker.test_grammars import PERSON, PROMPT, ids_of, json_grammar
from tests.worker.test_grammars import SETTINGS as GRAMMARS
from tests.worker.test_grammars import params as grammar_params
from tests.worker.test_scoring import Scores
from tests.worker.test_scoring import run as score_step
from trioserve.core.sampling import SamplingParams, ThinkingBudget
from trioserve.core.step import Admission, SlotWork, StepPlan

MODEL = "qwen3-tied"
BUILTIN = Path(trioserve.builtin.__file__).parent / "model"


@pytest.fixture(scope="module")
def folder(wide_checkpoints: Checkpoints) -> Path:
    return wide_checkpoints.folder(MODEL, dtype=torch.float16)


def params(**values: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 60, "temperature": 0.0} | values)  # type: ignore[arg-type] # as they are


def thinking(max_tokens: int) -> ThinkingBudget:
    return ThinkingBudget(
        begins=(),
        ends=("</think>",),
        is_open=True,
        max_tokens=max_tokens,
        forced_end=tuple(ids_of("\n</think>\n\n")),
    )


def both(folder: Path, device: EmulatedDevice, **changes: Any) -> tuple[Front, Front]:
    """A front over the device, and one over the CPU."""
    torch.set_num_threads(1)
    return device_front(folder, device, **changes)[0], Front.of(
        folder, **cast("dict[str, Any]", SMALL | changes)
    )


def test_greedy_tokens_are_those_of_the_cpu_in_every_way_to_compute_them(
    folder: Path, device: EmulatedDevice
) -> None:
    """One piece, chunks, a prefix hit, a preemption, and all of them in each other's company."""
    prompt = prompt_of(40, seed=5)
    outputs = []
    for front in both(folder, device):
        front.admit(0, prompt)
        front.step(s0=40)
        front.admit(1, prompt)
        assert [token.slot for token in front.step(s1=7, s0=1)] == [0]
        assert [token.slot for token in front.step(s0=1, s1=32)] == [0]
        front.admit(2, prompt, shared=[0, 1])
        assert [token.slot for token in front.step(s0=1, s1=1, s2=8)] == [0, 1, 2]
        front.decode(4, 0, 1, 2)
        front.release(0)
        front.admit(0, prompt + front.outputs[0], num_prompt_tokens=len(prompt), shared=[8])
        front.step(s1=1, s0=20)
        front.step(s0=len(prompt) + len(front.outputs[0]) - 36, s2=1)
        front.decode(5, 2, 0, 1)
        outputs.append(dict(front.outputs))
    assert outputs[0] == outputs[1]


WISHES = {
    "greedy": params(),
    "seeded": params(temperature=0.8, top_p=0.9, seed=4),
    "penalties": params(repetition_penalty=1.2, frequency_penalty=0.6, temperature=0.9, top_k=20, seed=5),
    "bad runs": params(bad_words=((3, 7), (12, 30, 12)), logit_bias=((3, 6.0), (7, 5.0), (12, 4.0))),
    "scored": params(logprobs=3, temperature=1.1, seed=6, min_tokens=4, stop_token_ids=(2,)),
    "allowed": params(allowed_token_ids=tuple(range(0, 160, 3)), temperature=1.0, seed=8),
}


def run_all(front: Front, wishes: list[SamplingParams], num_steps: int = 7) -> dict[int, list[int]]:
    """Let all run side by side, each with a prompt of its own."""
    for slot, wish in enumerate(wishes):
        front.admit(slot, prompt_of(12 + slot, seed=30 + slot), wish)
        front.step(**{f"s{each}": 1 for each in range(slot)}, **{f"s{slot}": 12 + slot})
    front.decode(num_steps, *range(len(wishes)))
    return front.outputs


def test_all_that_a_sequence_may_want_gives_the_tokens_of_the_cpu(
    folder: Path, device: EmulatedDevice
) -> None:
    """Each sequence alone in its wish, and all in one batch; also with more alternatives than graphs have room for."""
    unusual = params(logprobs=30, temperature=0.7, seed=9)
    fronts = both(folder, device, max_num_seqs=8)
    on_device, on_cpu = (run_all(front, [*WISHES.values(), unusual]) for front in fronts)
    assert on_device == on_cpu
    scored = list(WISHES).index("scored")
    for slot, count in ((scored, 3), (len(WISHES), 30)):
        for own, theirs in zip(fronts[0].samples[slot], fronts[1].samples[slot], strict=True):
            assert own.logprobs is not None and theirs.logprobs is not None
            assert len(own.logprobs.top_ids) == count
            assert own.logprobs.logprob == pytest.approx(theirs.logprobs.logprob, abs=0.02)
            assert own.logprobs.top_logprobs == pytest.approx(theirs.logprobs.top_logprobs, abs=0.02)


def test_graphs_give_the_bits_that_kernels_give_one_by_one(folder: Path, device: EmulatedDevice) -> None:
    """With keys in several splits, beside short sequences and rows that only fill the batch."""
    samples = []
    for enforce_eager in (False, True):
        front, runner = device_front(folder, device, max_model_len=400, enforce_eager=enforce_eager)
        assert bool(runner.num_graphs) is not enforce_eager
        replays = device.num_replays
        front.admit(0, prompt_of(290, seed=1), params(logprobs=5))
        front.step(s0=256)
        front.step(s0=34)
        front.admit(5, prompt_of(3, seed=2), params(logprobs=5, temperature=1.0, seed=3))
        front.step(s0=1, s5=3)
        front.decode(6, 5, 0)
        front.admit(4, prompt_of(3, seed=3), params(logprobs=0))
        front.step(s4=3)
        front.decode(2, 0, 4, 5)
        assert (device.num_replays - replays > 0) is not enforce_eager
        samples.append(front.samples)
    assert samples[0] == samples[1]


def test_steps_that_are_started_before_others_are_done_give_the_same_tokens(
    folder: Path, device: EmulatedDevice
) -> None:
    """The device does nothing until somebody waits: all plans are carried out on the host before the first is computed.
    Slots change hands meanwhile, and prompts come in chunks beside decodes."""
    outputs, waits = [], []
    for is_late in (False, True):
        front, runner = device_front(folder, device)
        plans = []
        for slot, wish in enumerate((WISHES["greedy"], WISHES["penalties"], WISHES["scored"])):
            front.admit(slot, prompt_of(20 + slot, seed=slot), wish)
            plans += [front.plan(**{f"s{each}": 1 for each in range(slot)}, **{f"s{slot}": 19})]
            plans += [front.plan(**{f"s{each}": 1 for each in range(slot)}, **{f"s{slot}": 1 + slot})]
        plans += [front.plan(s0=1, s1=1, s2=1) for _ in range(5)]
        front.release(1)
        plans += [front.plan(s2=1, s0=1)]
        kept = front.outputs[1]
        front.admit(1, prompt_of(9, seed=7), WISHES["seeded"])
        plans += [front.plan(s0=1, s1=9), *(front.plan(s0=1, s1=1, s2=1) for _ in range(3))]
        before = device.num_waits
        if is_late:
            with device.deferring():
                started = [runner.launch(plan) for plan in plans]
                assert device.num_waits == before, "somebody has waited for the device"
                results = [pending.result() for pending in started]
        else:
            results = [runner.launch(plan).result() for plan in plans]
        released = [sample for result in results[:11] for sample in result.sampled if sample.slot == 1]
        for result in results:
            front.take(result)
        outputs.append((front.outputs, [sample.token_id for sample in released], kept))
        waits.append(device.num_waits - before)
    assert outputs[0] == outputs[1]
    assert waits == [0, len(plans)]


def test_memory_that_is_written_again_too_early_shows(
    folder: Path, device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: all steps under way share a region."""
    front, runner = device_front(folder, device)
    front.admit(0, prompt_of(12, seed=0))
    front.step(s0=12)
    shared = runner._staging.take()
    monkeypatch.setattr(runner._staging, "take", lambda: shared)
    monkeypatch.setattr(runner._staging, "give_back", lambda region: region.clear())
    monkeypatch.setattr(shared, "clear", lambda: None)
    plans = [front.plan(s0=1) for _ in range(3)]
    with device.deferring():
        started = []
        for plan in plans:
            shared._taken_bytes = 0
            started.append(runner.launch(plan))
        found = [sample.token_id for pending in started for sample in pending.result().sampled]
    expected, _ = device_front(folder, device)
    expected.admit(0, prompt_of(12, seed=0))
    expected.step(s0=12)
    expected.decode(3, 0)
    assert found != expected.outputs[0][1:]


def test_a_decode_that_is_bound_waits_for_its_own_result_alone(folder: Path, device: EmulatedDevice) -> None:
    front, runner = device_front(folder, device)
    front.admit(0, prompt_of(12, seed=0), WISHES["greedy"])
    front.admit(1, prompt_of(12, seed=1), WISHES["bad runs"])
    plans = [front.plan(s0=12, s1=11), front.plan(s0=1, s1=1), front.plan(s0=1), front.plan(s0=1, s1=1)]
    waits = []
    with device.deferring():
        started = []
        for plan in plans:
            before = device.num_waits
            started.append(runner.launch(plan))
            waits.append(device.num_waits - before)
        results = [pending.result() for pending in started]
    assert waits == [0, 1, 0, 1]
    assert [[sample.slot for sample in result.sampled] for result in results] == [[0], [0, 1], [0], [0, 1]]


def test_guesses_change_nothing_but_the_number_of_steps(folder: Path, device: EmulatedDevice) -> None:
    """Beside sequences that guess none, with counts, bans and log probabilities."""
    repeating = [7, 8, 9, 10, 11] * 4
    wishes = [
        params(),
        params(logit_bias=tuple((token_id, 9.0) for token_id in repeating[:5]), frequency_penalty=0.8),
        params(temperature=0.7, seed=3, logprobs=2, logit_bias=((7, 8.0), (8, 8.0))),
        params(bad_words=((7, 8),), logit_bias=((7, 8.0), (8, 8.0), (9, 8.0))),
    ]
    found = []
    for num_drafts in (0, 4):
        front, _ = device_front(folder, device, num_drafts=num_drafts)
        for slot, wish in enumerate(wishes):
            front.admit(slot, repeating, wish)
            front.step(**{f"s{slot}": len(repeating)})
        front.decode(14, *range(len(wishes)))
        found.append(front)
    plain, guessing = found
    assert guessing.num_right > 10
    assert guessing.num_guessed > guessing.num_right
    for slot in range(len(wishes)):
        assert guessing.outputs[slot][:15] == plain.outputs[slot]
    for own, theirs in zip(guessing.samples[2], plain.samples[2], strict=False):
        assert own.logprobs is not None and theirs.logprobs is not None
        assert own.logprobs.logprob == pytest.approx(theirs.logprobs.logprob, abs=0.02)


def test_a_preempted_sequence_goes_on_as_if_nothing_had_been(folder: Path, device: EmulatedDevice) -> None:
    """Counts behind penalties are of all its tokens; it comes back while others decode, in another slot too."""
    wish = params(frequency_penalty=0.9, presence_penalty=0.4, temperature=0.9, seed=2)
    front, _ = device_front(folder, device)
    front.admit(0, prompt_of(20, seed=10), wish)
    front.step(s0=20)
    front.decode(14, 0)
    front.admit(1, prompt_of(20, seed=10) + front.outputs[0][:8], wish, num_prompt_tokens=20)
    front.step(s0=1, s1=28)
    front.decode(6, 1)
    assert front.outputs[1] == front.outputs[0][:15]


def test_a_sequence_may_fill_the_context_to_the_last_token(folder: Path, device: EmulatedDevice) -> None:
    front, _ = device_front(folder, device, max_model_len=64)
    front.admit(0, prompt_of(60, seed=9))
    front.step(s0=60)
    front.decode(3, 0)
    assert len(front.outputs[0]) == 4
    assert front.step(s0=1) == [], "it has all that it may have"
    front.admit(1, prompt_of(6, seed=9), params(max_tokens=2))
    front.step(s1=6, s0=1)
    assert [sample.slot for sample in front.step(s1=1, s0=1)] == [1]
    assert front.step(s1=1, s0=1) == []


def test_prompts_are_scored_as_on_a_cpu(folder: Path, device: EmulatedDevice) -> None:
    found = []
    for front in both(folder, device):
        scores = Scores()
        front.admit(
            0, prompt_of(30, seed=3), SamplingParams(max_tokens=9, temperature=0.0, prompt_logprobs=3)
        )
        front.admit(1, prompt_of(8, seed=4))
        for plan in (front.plan(s0=20, s1=8), front.plan(s0=10, s1=1), front.plan(s0=1, s1=1)):
            score_step(front, plan, scores)
        found.append((scores.found[100], front.outputs))
    (own, outputs), (theirs, expected) = found
    assert outputs == expected
    assert sorted(own) == sorted(theirs) == list(range(1, 30))
    for position, (logprob, _, top_logprobs) in own.items():
        assert logprob == pytest.approx(theirs[position][0], abs=0.02)
        assert top_logprobs == pytest.approx(theirs[position][2], abs=0.02)


def test_answers_are_held_to_grammars_and_budgets(device: EmulatedDevice) -> None:
    """What is forced is appended at once, and the tokens are those of a CPU."""
    free = grammar_params()
    wishes = [
        grammar_params(grammar=json_grammar(PERSON), frequency_penalty=0.1),
        grammar_params(grammar=json_grammar(PERSON), temperature=0.8, seed=1, logprobs=1),
        grammar_params(thinking=thinking(5)),
        free,
    ]
    outputs = []
    for front in both(BUILTIN, device, **GRAMMARS, max_num_batched_tokens=64):
        for slot, wish in enumerate(wishes):
            front.admit(slot, PROMPT, wish)
            front.step(**{f"s{slot}": len(PROMPT)})
        for _ in range(24):
            front.decode(1, *range(len(wishes)))
        outputs.append(front.outputs)
        assert any(sample.forced for sample in front.samples[0])
    assert outputs[0] == outputs[1]


def test_blocks_move_to_the_host_and_come_back(folder: Path, device: EmulatedDevice) -> None:
    """Before anything is written over them: a prompt that has moved out is a prefix hit when it is back."""
    prompt = prompt_of(40, seed=5)
    expected, _ = device_front(folder, device)
    expected.admit(0, prompt)
    expected.step(s0=40)
    expected.decode(4, 0)
    front, runner = device_front(folder, device, swap_bytes=1 << 20)
    front.admit(0, prompt)
    front.step(s0=40)
    front.release(0)
    front.admit(1, prompt_of(32, seed=6), shared=None)
    plan = structs.replace(front.plan(s1=32), swapped_out=[(0, 3), (1, 4)])
    overwriting = [structs.replace(admission, block_table=[]) for admission in plan.admitted]
    work = [SlotWork(1, 32, [0, 1])]
    runner.run(structs.replace(plan, admitted=overwriting, work=work))
    front.release(1)
    front.admit(2, prompt, shared=[40, 41])
    front.take(runner.run(structs.replace(front.plan(s2=8), swapped_in=[(40, 3), (41, 4)])))
    front.decode(4, 2)
    assert front.outputs[2] == expected.outputs[0]


def test_plans_that_would_reach_into_other_memory_are_refused(folder: Path, device: EmulatedDevice) -> None:
    front, _ = device_front(folder, device)
    with pytest.raises(AssertionError, match="block 64 of 64"):
        front.execute(StepPlan(0, [], [Admission(0, 1, [1, 2], 2, 0, [64], GREEDY)], []))
    with pytest.raises(AssertionError, match="free slot"):
        front.execute(StepPlan(0, [], [], [SlotWork(1, 1, [])]))


def test_times_are_of_the_device_for_who_asks(folder: Path, device: EmulatedDevice) -> None:
    front, runner = device_front(folder, device)
    runner.timeline = []
    front.admit(0, prompt_of(5, seed=1))
    front.step(s0=5)
    front.decode(2, 0)
    first, *others = runner.timeline
    assert len(others) == 2
    for before, after in pairwise([first, *others]):
        assert after.start.seconds_since(before.end) > 0
        assert after.end.seconds_since(after.start) > 0
