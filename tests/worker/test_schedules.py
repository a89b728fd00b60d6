"""Any order of work that a scheduler could choose gives each sequence the tokens it would have alone."""

import numpy as np
import pytest

from tests.model.checkpoints import Checkpoints, prompt_of
from tests.worker.driver import Front
from trioserve.core.sampling import SamplingParams

NUM_TOKENS = 8


def kinds(seed: int) -> list[SamplingParams]:
    """One greedy, one plain, one filtered, one penalised."""
    return [
        SamplingParams(max_tokens=99, seed=seed, temperature=0.0),
        SamplingParams(max_tokens=99, seed=seed, temperature=0.9, logprobs=3),
        SamplingParams(max_tokens=99, seed=seed, temperature=1.3, top_k=40, top_p=0.9),
        SamplingParams(
            max_tokens=99, seed=seed, temperature=0.7, frequency_penalty=0.4, repetition_penalty=1.2
        ),
    ]


class Requests:
    """Eight prompts with parameters of four kinds."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.prompts = [
            prompt_of(int(self.rng.integers(1, 60)), seed=100 * seed + number) for number in range(8)
        ]
        self.params = [kinds(seed + number)[number % 4] for number in range(8)]

    def alone(self, front: Front) -> list[list[int]]:
        """What each gets when nothing else runs."""
        outputs = []
        for prompt, one in zip(self.prompts, self.params, strict=True):
            front.admit(0, prompt, one)
            front.step(s0=len(prompt))
            front.decode(NUM_TOKENS - 1, 0)
            outputs.append(front.outputs[0])
            front.release(0)
        return outputs

    def in_any_order(self, front: Front) -> list[list[int]]:
        """What each gets among the others: chunks of any size, decodes between them, slots that change hands,
        preemptions at any moment, guesses."""
        rng, prompts = self.rng, self.prompts
        waiting, running, tokens = list(range(8)), dict[int, int](), [list(prompt) for prompt in prompts]
        while waiting or running:
            for slot in set(range(8)) - set(running):
                if waiting and rng.random() < 0.5:
                    number = waiting.pop(int(rng.integers(len(waiting))))
                    num_prompt_tokens = len(prompts[number])
                    front.admit(
                        slot, tokens[number], self.params[number], num_prompt_tokens=num_prompt_tokens
                    )
                    running[slot] = number
            work = {}
            for slot, number in running.items():
                left = len(tokens[number]) - front.computed(slot)
                if rng.random() < 0.7:
                    work[f"s{slot}"] = int(rng.integers(1, left + 1))
            for sample in front.step(**work):
                tokens[running[sample.slot]].append(sample.token_id)
            for slot, number in list(running.items()):
                done = len(tokens[number]) - len(prompts[number]) >= NUM_TOKENS
                if done or rng.random() < 0.1:
                    front.release(slot)
                    del running[slot]
                    if not done:
                        waiting.append(number)
        return [tokens[number][len(prompts[number]) :][:NUM_TOKENS] for number in range(8)]


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "qwen3"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_drafts", [0, 3])
def test_any_schedule_gives_the_same_tokens(
    checkpoints: Checkpoints, name: str, seed: int, num_drafts: int
) -> None:
    requests, folder = Requests(seed), checkpoints.folder(name)
    expected = requests.alone(Front.of(folder))
    front = Front.of(folder, num_drafts=num_drafts)
    assert requests.in_any_order(front) == expected
    assert (front.num_guessed > 0) == (num_drafts > 0)
