"""Guesses change no token: those that are verified are those of steps one by one, whatever was guessed."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sampling.reference import distribution
from trioserve.core.sampling import SamplingParams
from trioserve.core.step import TokenLogprobs
from trioserve.sampling.sampler import Sampler
from trioserve.sampling.verify import Guesses, verify

VOCAB_SIZE = 12
"""So small that guesses at random are often right."""
PROMPT = [1, 2, 3]
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.8, "logprobs": 2},
    {"temperature": 1.5, "top_k": 4, "min_p": 0.05},
    {"temperature": 0.9, "repetition_penalty": 1.4, "frequency_penalty": 0.5},
    {"temperature": 0.0, "presence_penalty": 1.5, "logprobs": 0},
    {"temperature": 1.0, "min_tokens": 4, "stop_token_ids": (0, 1, 2, 3, 4), "bad_words": ((5, 6), (7,))},
    {"temperature": 0.8, "logit_bias": ((3, 2.0),), "allowed_token_ids": (1, 3, 5, 7, 9, 11)},
]


def params(kind: int, seed: int) -> SamplingParams:
    return SamplingParams(**({"max_tokens": 99, "seed": seed} | KINDS[kind]))


def model(token_ids: list[int]) -> torch.Tensor:
    """Logits that depend on the last three tokens, as a model's do on all."""
    rng = np.random.default_rng(token_ids[-3:])
    return torch.from_numpy(rng.normal(size=VOCAB_SIZE) * 2).float()


Chosen = list[tuple[int, TokenLogprobs | None]]


def sampler_of(several: list[SamplingParams]) -> Sampler:
    sampler = Sampler(len(several), VOCAB_SIZE)
    for slot, one in enumerate(several):
        sampler.admit(slot, one, np.array(PROMPT, np.int32), len(PROMPT))
    return sampler


def one_by_one(one: SamplingParams, num_tokens: int) -> Chosen:
    sampler, token_ids, chosen = sampler_of([one]), list(PROMPT), list[Any]()
    for _ in range(num_tokens):
        found = sampler.sample(model(token_ids)[None], np.array([0]), np.array([len(token_ids)]))
        token_ids.append(int(found.token_ids[0]))
        chosen.append((token_ids[-1], found.logprobs[0]))
    return chosen


def guessing(several: list[SamplingParams], num_tokens: int, rng: np.random.Generator) -> list[Chosen]:
    """The same in steps with guesses at random, of all sequences together."""
    sampler, chosen = sampler_of(several), [list[Any]() for _ in several]
    sequences = [list(PROMPT) for _ in several]
    while min(map(len, chosen)) < num_tokens:
        counts = rng.integers(0, 4, len(several))
        most = int(counts.max())
        guesses = Guesses(rng.integers(0, VOCAB_SIZE, (len(several), most)).astype(np.int32), counts)
        rows = [
            model(sequences[number] + guesses.token_ids[number, :place].tolist())
            for place in range(most + 1)
            for number in np.flatnonzero(counts >= place).tolist()
        ]
        positions = np.array([len(token_ids) for token_ids in sequences])
        for place, (members, samples) in enumerate(
            verify(sampler, torch.stack(rows), np.arange(len(several)), positions, guesses)
        ):
            for number, token_id, logprobs in zip(
                members.tolist(), samples.token_ids.tolist(), samples.logprobs, strict=True
            ):
                assert len(sequences[number]) == positions[number] + place
                sequences[number].append(token_id)
                chosen[number].append((token_id, logprobs))
    return chosen


@settings(max_examples=60, deadline=None)
@given(kinds=st.lists(st.integers(0, len(KINDS) - 1), min_size=1, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_tokens_and_their_log_probabilities_are_those_of_steps_without_guesses(
    kinds: list[int], seed: int
) -> None:
    several = [params(kind, seed + number) for number, kind in enumerate(kinds)]
    found = guessing(several, 12, np.random.default_rng(seed))
    for one, chosen in zip(several, found, strict=True):
        assert chosen[:12] == one_by_one(one, 12)


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_the_distribution_behind_a_guess_is_the_models_and_so_is_that_of_the_guess(kind: int) -> None:
    """Chi-square over seeds: of the first token, whatever was guessed, and of the second where the guess was right."""
    count, guess = 4000, int(model(PROMPT).argmax())
    several = [params(kind, seed) for seed in range(count)]
    guesses = Guesses(np.full((count, 1), guess, np.int32), np.ones(count, np.int64))
    logits = torch.stack([model(PROMPT)] * count + [model([*PROMPT, guess])] * count)
    first, second = verify(
        sampler_of(several), logits, np.arange(count), np.full(count, len(PROMPT)), guesses
    )
    assert second.members.tolist() == np.flatnonzero(first.samples.token_ids == guess).tolist()
    for token_ids, history in (
        (first.samples.token_ids, PROMPT),
        (second.samples.token_ids, [*PROMPT, guess]),
    ):
        expected = distribution(model(history).numpy(), several[0]) * len(token_ids)
        seen = np.bincount(token_ids, minlength=VOCAB_SIZE)
        possible = expected > 0
        assert seen[~possible].sum() == 0
        statistic = ((seen - expected)[possible] ** 2 / expected[possible]).sum()
        degrees = possible.sum() - 1
        assert statistic < degrees + 4 * np.sqrt(2 * degrees) + 4


def test_rows_are_asked_for_in_rounds() -> None:
    guesses = Guesses(np.zeros((3, 2), np.int32), np.array([2, 0, 1]))
    rows = guesses.rows(np.array([0, 3, 4]))
    assert [row.tolist() for row in rows] == [[0, 3, 4], [1, 5], [2]]
    assert guesses.num_with == [2, 1]
    some = guesses.of(np.array([True, False, True]))
    assert (some.counts.tolist(), some.token_ids.shape) == ([2, 1], (2, 2))
