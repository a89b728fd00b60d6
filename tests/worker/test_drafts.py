"""Guesses of a rank: right ones save steps, wrong ones cost no more than a sequence may lose, no token changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.checkpoints import Checkpoints, prompt_of
from tests.worker.driver import GREEDY, Front, worker_config
from trioserve.core.sampling import SamplingParams, ThinkingBudget
from trioserve.core.step import Admission, SlotWork, Speculation, StepPlan
from trioserve.model.ranks import ALONE
from trioserve.worker.drafts import Drafter, Price
from trioserve.worker.load import load_cpu_runner
from trioserve.worker.prices import measure_prices
from trioserve.worker.slots import SlotTable

BUDGET = ThinkingBudget(begins=(), ends=(), is_open=True, max_tokens=1, forced_end=())
MAX_LEN = 4096
REPEATING = [1, 2, 3, 4, 5] * 4


class Text:
    """A sequence alone with a drafter: its text is known beforehand."""

    def __init__(self, text: list[int], price: float, *, for_any: float = 0.0, most: int = 4) -> None:
        self.text, self.most, self.price = text, most, price
        self.table = SlotTable(1, MAX_LEN, 16, MAX_LEN // 16, 1 << 16)
        self.drafter = Drafter(Speculation(most, 2, 4), self.table)
        self.drafter.prices = [Price(for_any, price)]
        self.for_any = for_any
        params = SamplingParams(max_tokens=MAX_LEN)
        self.table.admit(Admission(0, 1, text[:1], 1, 0, list(range(MAX_LEN // 16)), params))
        self.drafter.admit(0, params)
        self.num_steps = self.num_guessing_steps = self.num_guessed = self.num_right = 0

    @property
    def num_known(self) -> int:
        return int(self.table.num_tokens[0])

    @property
    def spent(self) -> float:
        """Tokens' time, for all that there are."""
        return self.num_steps + self.num_guessing_steps * self.for_any + self.num_guessed * self.price

    def step(self) -> int:
        """Returns how many were guessed."""
        slots = np.array([0])
        counts = self.drafter.guess(slots, np.array([True]), self.most)
        num_guessed = 0 if counts is None else int(counts[0])
        coming = self.text[self.num_known :]
        guesses = self.table.behind(slots, self.most)[0].tolist()[:num_guessed]
        num_right = next((at for at, guess in enumerate(guesses) if guess != coming[at]), num_guessed)
        for token_id in coming[: num_right + 1]:
            self.table.append(slots, np.array([token_id]))
        if counts is not None:
            self.drafter.learn(slots, counts, np.array([num_right]))
        self.num_steps += 1
        self.num_guessing_steps += num_guessed > 0
        self.num_guessed += num_guessed
        self.num_right += num_right
        return num_guessed

    def run(self, num_tokens: int) -> None:
        while self.num_known < num_tokens:
            self.step()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    price=st.sampled_from([0.02, 0.07, 0.2, 0.45, 0.79]),
    for_any=st.sampled_from([0.0, 0.1, 0.7]),
    alphabet=st.sampled_from([2, 4, 20, 1000]),
    loops=st.lists(st.integers(1, 9), max_size=3),
)
def test_guessing_costs_a_sequence_half_a_token_and_a_two_hundredth_of_each_at_most(
    seed: int, price: float, for_any: float, alphabet: int, loops: list[int]
) -> None:
    """Noise that matches by chance, with stretches that repeat themselves in it."""
    rng = np.random.default_rng(seed)
    text = rng.integers(0, alphabet, 300).tolist()
    for size in loops:
        text += rng.integers(0, 1000, size).tolist() * 20
        text += rng.integers(0, alphabet, 300).tolist()
    one = Text([*text, *range(2000, 2020)], price, for_any=for_any)
    one.run(len(text))
    num_tokens = one.num_known - 1
    assert one.num_steps + one.num_right == num_tokens
    assert one.spent <= num_tokens + 0.5 + 0.005 * num_tokens + 1e-6


@pytest.mark.parametrize(("price", "speedup"), [(0.07, 3.0), (0.3, 1.7), (0.6, 1.15)])
def test_a_text_that_repeats_itself_takes_less_time(price: float, speedup: float) -> None:
    rng = np.random.default_rng(4)
    one = Text(rng.integers(0, 1000, 40).tolist() * 30, price)
    one.run(1000)
    assert 1000 / one.spent > speedup


def test_a_sequence_whose_guesses_are_wrong_sleeps_and_wakes_when_it_repeats_itself() -> None:
    rng = np.random.default_rng(5)
    numbers = rng.permutation(1000)[:300].reshape(-1, 2).tolist()
    misleading = [token for pair in numbers for token in (1001, 1002, *pair)]
    text = misleading + [2003, 2004, 2005, 2006, 2007] * 200
    one = Text(text, 0.07)
    one.run(len(misleading))
    assert one.num_right == 0
    assert 0 < one.num_guessed <= (0.5 + 0.005 * len(misleading)) / 0.07
    one.run(len(text) - 300)
    before = one.num_steps
    one.run(len(text) - 50)
    assert one.num_steps - before < 250 / 4


def test_the_dearer_a_guess_the_fewer_are_made_until_they_prove_right() -> None:
    firsts = {}
    for price in (0.02, 0.2, 0.45):
        one = Text([1, 2, 3, 4, 5, 6] * 30, price)
        guessed = [one.step() for _ in range(20)]
        firsts[price] = next(count for count in guessed if count)
        assert guessed[-1] == 4
    assert list(firsts.values()) == [4, 2, 1]


def test_guesses_become_dearer_where_steps_with_them_take_longer_than_was_measured_and_cheaper_again() -> (
    None
):
    one = Text([1, 2, 3, 4, 5, 6] * 600, 0.1)
    one.run(100)

    def timed(num_steps: int, guessing_s: float) -> list[int]:
        guessed = []
        for _ in range(num_steps):
            guessed.append(one.step())
            one.drafter.time(1, guessed[-1], guessing_s if guessed[-1] else 1.0)
        return guessed

    one.drafter.time(1, 0, 1.0)
    assert timed(30, 1.4) == [4] * 30, "as they were measured"
    assert sum(timed(60, 9.0)) < 30, "eight tokens' time for four guesses"
    assert timed(300, 1.4)[-5:] == [4] * 5


def test_nothing_is_guessed_for_sequences_whose_tokens_may_be_forced_nor_beside_too_many() -> None:
    table = SlotTable(2, MAX_LEN, 16, 16, 100)
    drafter = Drafter(Speculation(4, 2, 4), table)
    for slot, params in enumerate((GREEDY, SamplingParams(max_tokens=100, thinking=BUDGET))):
        admission = Admission(slot, slot, REPEATING, len(REPEATING), 0, [0, 1, 2], params)
        table.admit(admission)
        drafter.admit(slot, params)
    both, whole = np.array([0, 1]), np.array([True, True])
    drafter.prices = [Price(0.0, 0.05)] * 2
    counts = drafter.guess(both, whole, 4)
    assert counts is not None and counts.tolist() == [4, 0]
    assert drafter.guess(both[1:], whole[1:], 4) is None
    assert drafter.guess(both, ~whole, 4) is None
    drafter.prices = [Price(0.0, 0.05)]
    assert drafter.guess(both, whole, 4) is None


@pytest.mark.parametrize(
    ("num_blocks", "max_tokens", "expected"),
    [(2, 100, 4), (2, 4, 3), (2, 2, 1), (2, 1, None), (1, 100, None)],
)
def test_guesses_leave_room_for_the_token_behind_them(
    num_blocks: int, max_tokens: int, expected: int | None
) -> None:
    table = SlotTable(1, MAX_LEN, 16, 4, 100)
    drafter = Drafter(Speculation(4, 2, 4), table)
    prompt = [1, 2, 3] * 5
    params = SamplingParams(max_tokens=max_tokens)
    table.admit(Admission(0, 1, prompt, len(prompt), 0, list(range(num_blocks)), params))
    drafter.admit(0, params)
    drafter.prices = [Price(0.0, 0.02)]
    counts = drafter.guess(np.array([0]), np.array([True]), 4)
    assert (None if counts is None else int(counts[0])) == expected


def run(front: Front, prompts: list[list[int]], several: list[SamplingParams], num_tokens: int) -> int:
    """Let all come to so many tokens; returns the steps of that, their prompts' aside."""
    for slot, (prompt, one) in enumerate(zip(prompts, several, strict=True)):
        front.admit(slot, prompt, one)
        front.step(**{f"s{slot}": len(prompt)})
    num_steps = 0
    while min(len(front.outputs[slot]) for slot in range(len(prompts))) < num_tokens:
        going_on = [slot for slot in range(len(prompts)) if len(front.outputs[slot]) < num_tokens]
        front.decode(1, *going_on)
        num_steps += 1
    return num_steps


KINDS = [
    SamplingParams(max_tokens=99, temperature=0.0),
    SamplingParams(max_tokens=99, temperature=0.0, logprobs=2, presence_penalty=0.3),
    SamplingParams(max_tokens=99, temperature=0.4, seed=5),
    SamplingParams(max_tokens=99, temperature=0.8, top_k=5, seed=6, logprobs=0),
]


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "qwen3"])
def test_a_model_gives_the_same_tokens_and_log_probabilities_with_guesses(
    checkpoints: Checkpoints, name: str
) -> None:
    folder = checkpoints.folder(name)
    prompts = [prompt_of(4, seed=number) * 5 for number in range(4)]
    plain, guessing = Front.of(folder), Front.of(folder, num_drafts=4)
    run(plain, prompts, KINDS, 40)
    run(guessing, prompts, KINDS, 40)
    for slot in range(4):
        assert guessing.outputs[slot][:40] == plain.outputs[slot][:40]
        for found, expected in zip(guessing.samples[slot][:40], plain.samples[slot][:40], strict=True):
            assert (found.logprobs is None) == (expected.logprobs is None)
            if found.logprobs is not None and expected.logprobs is not None:
                assert found.logprobs.top_ids == expected.logprobs.top_ids
                assert abs(found.logprobs.logprob - expected.logprobs.logprob) < 1e-4
    assert guessing.num_right > 0


def test_a_greedy_sequence_that_goes_in_circles_takes_fewer_steps(checkpoints: Checkpoints) -> None:
    folder, prompt = checkpoints.folder("qwen3"), [3] * 12
    steps = [run(Front.of(folder, num_drafts=num_drafts), [prompt], [GREEDY], 90) for num_drafts in (0, 4)]
    assert steps[0] == 89
    assert steps[1] < 30


def test_plans_may_be_made_before_guesses_are_known_to_be_right(checkpoints: Checkpoints) -> None:
    """And those of a sequence that has all its tokens mean nothing any more."""
    folder, prompt = checkpoints.folder("qwen3"), [3] * 12
    params = SamplingParams(max_tokens=80, temperature=0.0)
    plain, front = Front.of(folder), Front.of(folder, num_drafts=4)
    run(plain, [prompt], [params], 80)
    front.admit(0, prompt, params)
    plans = [front.plan(s0=12), *(front.plan(s0=1) for _ in range(79))]
    results = [front.execute(plan) for plan in plans]
    for result in results:
        front.take(result)
    assert front.outputs[0] == plain.outputs[0]
    assert [len(result.sampled) for result in results[-3:]] == [0, 0, 0]


def test_results_tell_how_many_were_guessed_and_how_many_of_these_were_right(
    checkpoints: Checkpoints,
) -> None:
    front = Front.of(checkpoints.folder("llama"), num_drafts=4)
    front.admit(0, REPEATING)
    results = [front.execute(front.plan(s0=len(REPEATING)))]
    results += [front.execute(front.plan(s0=1)) for _ in range(30)]
    assert any(result.more for result in results)
    for result in results:
        assert all(tried == 1 for tried in result.num_drafted)
        assert len(result.more) <= len(result.num_drafted) <= 4
        assert all(len(more) == 1 for more in result.more)


def test_a_price_is_measured_for_every_number_of_sequences_with_which_guesses_may_pay(
    checkpoints: Checkpoints,
) -> None:
    speculation = Speculation(3, 2, 4)
    config = worker_config(checkpoints.folder("llama"), max_num_seqs=5, speculation=speculation)
    runner, ready = load_cpu_runner(config, lambda progress: None, 0.0)
    assert runner.drafter is not None
    assert 0 <= ready.max_drafting_seqs <= 4, "of 1 and 4 sequences, and those between"
    assert all(price.any >= 0 and 0.01 <= price.each <= 0.8 for price in runner.drafter.prices)
    short = worker_config(checkpoints.folder("llama"), max_model_len=52, speculation=speculation)
    assert measure_prices(runner, ALONE, short, speculation, 1000) == []
    assert measure_prices(runner, ALONE, config, speculation, 47) == []
    prompt = prompt_of(20, seed=1)  # nothing is left behind that a sequence could stumble over
    front = Front(runner.run)
    front.admit(0, prompt)
    front.step(s0=20)
    front.decode(5, 0)
    assert front.outputs[0] == checkpoints.greedy("llama", prompt, 6)


def test_a_rank_that_is_not_told_to_guess_does_not(checkpoints: Checkpoints) -> None:
    config = worker_config(checkpoints.folder("llama"))
    runner, ready = load_cpu_runner(config, lambda progress: None, 0.0)
    admission = Admission(0, 1, REPEATING, len(REPEATING), 0, [0, 1, 2], GREEDY)
    result = runner.run(StepPlan(0, [], [admission], [SlotWork(0, len(REPEATING), [])], 4))
    assert (ready.max_drafting_seqs, result.num_drafted, result.more) == (0, [], [])
