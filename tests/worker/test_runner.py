"""Step plans through the runner: greedy tokens are transformers' however the work is cut and mixed."""

import pytest

from tests.model.checkpoints import MODELS, Checkpoints, prompt_of
from tests.worker.driver import GREEDY, Front
from trioserve.core.sampling import SamplingParams
from trioserve.core.step import Admission, SlotWork, StepPlan

FAMILIES = [
    name for name in MODELS if name not in ("llama-biased", "llama-odd-width", "llama-linear", "mistral")
]


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_are_those_of_transformers_in_every_way_to_compute_them(
    checkpoints: Checkpoints, name: str
) -> None:
    """One piece, chunks, a prefix hit, a preemption, and all of them in each other's company."""
    prompt = prompt_of(40, seed=5)
    expected = checkpoints.greedy(name, prompt, 12)
    front = Front.of(checkpoints.folder(name))

    front.admit(0, prompt)
    front.step(s0=40)
    front.admit(1, prompt)
    assert [token.slot for token in front.step(s1=7, s0=1)] == [0]  # an inner chunk samples nothing
    assert [token.slot for token in front.step(s0=1, s1=32)] == [0]
    front.admit(2, prompt, shared=[0, 1])
    assert [token.slot for token in front.step(s0=1, s1=1, s2=8)] == [0, 1, 2]
    front.decode(4, 0, 1, 2)

    front.release(0)
    front.admit(0, prompt + front.outputs[0], num_prompt_tokens=len(prompt), shared=[8])
    front.step(s1=1, s0=20)
    front.step(s0=len(prompt) + len(front.outputs[0]) - 36, s2=1)
    front.decode(5, 0, 1, 2)
    for slot in (0, 1, 2):
        assert front.outputs[slot][:10] == expected[:10], f"slot {slot}"


def test_plans_may_be_made_before_results_are_known(checkpoints: Checkpoints) -> None:
    """The rank feeds its own samples: nothing in a plan depends on the result before it."""
    prompt = prompt_of(10, seed=6)
    front = Front.of(checkpoints.folder("llama"))
    front.admit(3, prompt)
    plans = [front.plan(s3=10), *(front.plan(s3=1) for _ in range(7))]
    for plan in plans:
        front.take(front.execute(plan))
    assert front.outputs[3] == checkpoints.greedy("llama", prompt, 8)


def test_a_step_of_inner_chunks_alone_samples_nothing(checkpoints: Checkpoints) -> None:
    prompt = prompt_of(30, seed=12)
    front = Front.of(checkpoints.folder("llama"))
    front.admit(0, prompt)
    assert front.step(s0=10) == []
    front.admit(1, prompt)
    assert front.step(s0=19, s1=29) == []
    assert [token.slot for token in front.step(s0=1, s1=1)] == [0, 1]
    assert front.outputs[0] == front.outputs[1] == checkpoints.greedy("llama", prompt, 1)


def test_results_carry_the_step_and_the_time(checkpoints: Checkpoints) -> None:
    front = Front.of(checkpoints.folder("llama"))
    result = front.execute(StepPlan(41, [], [], []))
    assert (result.step_id, result.sampled) == (41, [])
    assert 0 <= result.step_s < 1


def test_a_slot_is_free_for_another_sequence_in_the_step_that_releases_it(checkpoints: Checkpoints) -> None:
    first, second = prompt_of(9, seed=7), prompt_of(12, seed=8)
    front = Front.of(checkpoints.folder("llama"))
    front.admit(0, first)
    front.step(s0=9)
    front.release(0)
    front.admit(0, second)
    front.step(s0=12)
    front.decode(3, 0)
    assert front.outputs[0] == checkpoints.greedy("llama", second, 4)


def test_a_sequence_may_fill_the_context_to_the_last_token(checkpoints: Checkpoints) -> None:
    prompt = prompt_of(60, seed=9)
    front = Front.of(checkpoints.folder("llama"), max_model_len=64)
    front.admit(0, prompt)
    front.step(s0=60)
    front.decode(3, 0)
    assert front.outputs[0] == checkpoints.greedy("llama", prompt, 4)
    assert front.step(s0=1) == [], "it has all that it may have"


def test_penalties_count_output_from_before_a_preemption(checkpoints: Checkpoints) -> None:
    prompt = prompt_of(20, seed=10)
    params = SamplingParams(max_tokens=40, temperature=0.0, frequency_penalty=-1.0, presence_penalty=-1.0)
    front = Front.of(checkpoints.folder("llama"))
    front.admit(0, prompt, params)
    front.step(s0=20)
    front.decode(14, 0)
    front.admit(1, prompt + front.outputs[0][:8], params, num_prompt_tokens=20)
    front.step(s1=28)
    front.decode(6, 1)
    assert front.outputs[1] == front.outputs[0]
    front.admit(2, prompt + front.outputs[0][:8], params, num_prompt_tokens=28)
    front.step(s2=28)
    front.decode(6, 2)
    assert front.outputs[2] != front.outputs[0][8:], (
        "the counts made no difference, so the test shows nothing"
    )


def test_random_draws_do_not_depend_on_the_neighbours(checkpoints: Checkpoints) -> None:
    prompt = prompt_of(20, seed=11)
    params = SamplingParams(max_tokens=40, temperature=1.2, top_p=0.95, seed=77)
    front = Front.of(checkpoints.folder("llama"))
    front.admit(5, prompt, params)
    front.step(s5=20)
    front.decode(9, 5)
    front.release(5)
    for slot in range(4):
        front.admit(slot, prompt, params if slot == 2 else SamplingParams(max_tokens=40, top_k=9, seed=slot))
    front.step(s0=20, s1=20, s2=20, s3=20)
    front.decode(9, 3, 2, 1, 0)
    assert front.outputs[2] == front.outputs[5]


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (StepPlan(0, [], [], [SlotWork(0, 1, [])]), "free slot"),
        (StepPlan(0, [0], [], []), "free already"),
        (StepPlan(0, [], [Admission(0, 1, [1, 2], 2, 0, [64], GREEDY)], []), "block 64 of 64"),
        (StepPlan(0, [], [Admission(0, 1, [1, 2], 2, 0, [0], GREEDY)], [SlotWork(0, 3, [])]), "tokens known"),
        (
            StepPlan(0, [], [Admission(0, 1, [1] * 20, 2, 0, [0], GREEDY)], [SlotWork(0, 17, [])]),
            "blocks given",
        ),
        (StepPlan(0, [], [Admission(0, 1, [1, 999], 2, 0, [0], GREEDY)], []), "token id 999"),
    ],
)
def test_a_plan_that_would_reach_into_other_memory_is_refused(
    checkpoints: Checkpoints, plan: StepPlan, complaint: str
) -> None:
    front = Front.of(checkpoints.folder("llama"))
    with pytest.raises(AssertionError, match=complaint):
        front.execute(plan)
