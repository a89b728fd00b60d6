"""The sampler against float64 references, exactly where it can be and by chi-square where it draws."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.sampling.reference import distribution, edited
from trioserve.core.sampling import EarlyStop, SamplingParams
from trioserve.sampling.logprobs import score
from trioserve.sampling.sampler import Sampler, Samples

VOCAB_SIZE = 300
PROMPT, OUTPUT = [5, 6, 7, 7, 8], [9, 9, 9, 5, 11]
RNG = np.random.default_rng(1)
LOGITS = torch.from_numpy(RNG.normal(size=(VOCAB_SIZE,)) * 3).float()
LOGITS[[5, 9, 11]] += 6.0


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**({"max_tokens": 50} | fields))


def sampler_with(*several: SamplingParams, token_ids: list[int] = PROMPT + OUTPUT) -> Sampler:
    """The i-th parameters in slot i, each with the same tokens so far."""
    sampler = Sampler(len(several), VOCAB_SIZE)
    for slot, one in enumerate(several):
        sampler.admit(slot, one, np.array(token_ids, np.int32), len(PROMPT))
    return sampler


def sample(sampler: Sampler, logits: torch.Tensor, slots: list[int], positions: list[int]) -> Samples:
    return sampler.sample(logits, np.array(slots), np.array(positions))


def draws(one: SamplingParams, count: int, logits: torch.Tensor = LOGITS) -> NDArray[np.int64]:
    """``count`` draws with seeds 0, 1, 2, ... at one position."""
    token_ids = []
    for start in range(0, count, 500):
        batch = [
            SamplingParams(
                **{name: getattr(one, name) for name in one.__struct_fields__} | {"seed": start + i}
            )
            for i in range(500)
        ]
        found = sample(sampler_with(*batch), logits.expand(500, -1), list(range(500)), [10] * 500)
        token_ids.append(found.token_ids)
    return np.concatenate(token_ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_is_the_argmax_of_the_untouched_logits(dtype: torch.dtype) -> None:
    logits = torch.randn(8, VOCAB_SIZE).to(dtype)
    kept = logits.clone()
    greedy = params(temperature=0.0)
    found = sample(sampler_with(*[greedy] * 8), logits, list(range(8)), [10] * 8)
    assert found.token_ids.tolist() == logits.argmax(-1).tolist()
    assert found.logprobs == [None] * 8
    assert torch.equal(logits, kept)


CASES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7, "top_k": 12},
    {"top_p": 0.8},
    {"top_p": 0.999},
    {"min_p": 0.1, "temperature": 1.5},
    {"top_k": 30, "top_p": 0.7, "min_p": 0.02, "temperature": 1.3},
    {"repetition_penalty": 1.6, "frequency_penalty": 0.7, "presence_penalty": 0.4},
    {"frequency_penalty": -0.5, "top_k": 20},
    {"logit_bias": ((3, 9.0), (9, -100.0), (5, 1.5))},
    {"min_tokens": 6, "stop_token_ids": (9, 11)},
    {"min_tokens": 5, "stop_token_ids": (9, 11)},
    {"allowed_token_ids": (3, 9, 11, 40, 41, 299)},
    {"allowed_token_ids": (3, 9, 11, 40), "min_tokens": 6, "stop_token_ids": (9, 11), "top_p": 0.9},
    {"bad_words": ((9,), (9, 5, 11, 40), (5, 11, 5), (11, 11), (8, 9), (11, 3), (11, 299))},
    {"bad_words": ((9, 9, 5, 11, 5), (9, 9, 9, 5, 11, 11)), "repetition_penalty": 1.2, "top_k": 50},
    {"allowed_token_ids": (9, 11), "bad_words": ((9,), (5, 11, 11)), "logit_bias": ((11, 2.0),)},
    {"allowed_token_ids": (11, 9), "min_tokens": 6, "stop_token_ids": (9, 11), "bad_words": ((11,),)},
]


def follows(token_ids: NDArray[np.int64], expected: NDArray[np.float64]) -> bool:
    """Chi-square; ids expected less than 8 times share a bin; the bound has about one chance in 10,000."""
    observed = np.bincount(token_ids, minlength=VOCAB_SIZE).astype(float)
    rare = expected < 8
    bins = np.append(expected[~rare], expected[rare].sum())
    found = np.append(observed[~rare], observed[rare].sum())
    freedom = (bins > 0).sum() - 1
    chi_square = ((found - bins)[bins > 0] ** 2 / bins[bins > 0]).sum()
    return bool(
        observed[expected == 0].sum() == 0 and chi_square < freedom + 3.72 * np.sqrt(2 * freedom) + 10
    )


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_draws_follow_the_reference_distribution(fields: dict[str, Any]) -> None:
    count = 4000
    one = params(**fields)
    expected = distribution(edited(LOGITS.double().numpy(), one, PROMPT + OUTPUT, len(PROMPT)), one) * count
    assert follows(draws(one, count), expected)


def test_a_wrong_temperature_is_seen() -> None:
    """The test above can fail."""
    expected = distribution(LOGITS.double().numpy(), params()) * 4000
    assert follows(draws(params(), 4000), expected)
    assert not follows(draws(params(), 4000, LOGITS / 1.1), expected)


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_edits_alone_decide_a_greedy_choice(fields: dict[str, Any]) -> None:
    one = params(**fields | {"temperature": 0.0})
    for seed in range(5):
        logits = torch.from_numpy(np.random.default_rng(seed).normal(size=VOCAB_SIZE) * 2).float()
        logits[[5, 9, 11]] += 5
        found = sample(sampler_with(one), logits[None], [0], [10]).token_ids
        assert found.tolist() == [edited(logits.double().numpy(), one, PROMPT + OUTPUT, len(PROMPT)).argmax()]


def test_counts_grow_with_what_is_sampled() -> None:
    one = params(temperature=0.0, frequency_penalty=0.9, presence_penalty=0.3, repetition_penalty=1.2)
    sampler = sampler_with(one)
    token_ids = PROMPT + OUTPUT
    rng = np.random.default_rng(3)
    for _ in range(200):
        logits = rng.normal(size=VOCAB_SIZE)
        (token_id,) = sample(sampler, torch.from_numpy(logits).float()[None], [0], [len(token_ids)]).token_ids
        assert token_id == edited(logits, one, token_ids, len(PROMPT)).argmax()
        token_ids.append(int(token_id))


def test_a_choice_does_not_depend_on_the_batch_around_it() -> None:
    kinds = [params(seed=index, logprobs=index % 4, **fields) for index, fields in enumerate(CASES)]
    kinds += [params(temperature=0.0), params(temperature=0.0, logprobs=20)]
    logits = torch.randn(len(kinds), VOCAB_SIZE) * 2
    positions = [10 + index for index in range(len(kinds))]
    together = sample(sampler_with(*kinds), logits, list(range(len(kinds))), positions)
    order = list(reversed(range(len(kinds))))
    backwards = sample(sampler_with(*kinds), logits[order], order, [positions[slot] for slot in order])
    assert together.token_ids.tolist() == backwards.token_ids.tolist()[::-1]
    for slot, one in enumerate(kinds):
        alone = sample(sampler_with(one), logits[slot : slot + 1], [0], [positions[slot]])
        assert alone.token_ids[0] == together.token_ids[slot]
        assert alone.logprobs[0] == together.logprobs[slot]


def test_rows_of_one_slot_are_chosen_as_in_steps_of_their_own() -> None:
    kinds = [params(seed=5), params(seed=6, top_k=20, top_p=0.9, logprobs=2), params(temperature=0.0)]
    logits = torch.randn(3 * len(kinds), VOCAB_SIZE) * 2
    slots, positions = [0, 0, 0, 1, 1, 1, 2, 2, 2], [10, 11, 12] * 3
    together = sample(sampler_with(*kinds), logits, slots, positions)
    alone = sampler_with(*kinds)
    for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
        found = sample(alone, logits[row : row + 1], [slot], [position])
        assert found.token_ids[0] == together.token_ids[row]
        assert found.logprobs[0] == together.logprobs[row]


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_logits_are_afterwards_what_they_were(fields: dict[str, Any]) -> None:
    logits = torch.randn(1, VOCAB_SIZE)
    logits[0, [3, 9, 11]] = torch.tensor([torch.nan, -torch.inf, torch.inf])
    kept = logits.numpy().tobytes()
    sample(sampler_with(params(**fields, logprobs=3)), logits, [0], [10])
    assert logits.numpy().tobytes() == kept


def test_the_same_seed_draws_the_same_and_another_position_another() -> None:
    flat = torch.zeros(4, VOCAB_SIZE)
    sampler = sampler_with(*[params(seed=3)] * 3, params(seed=4))
    first, second, later, other = sample(sampler, flat, [0, 1, 2, 3], [10, 10, 11, 10]).token_ids
    assert first == second
    assert len({first, later, other}) == 3


def test_seeds_of_any_size_are_taken() -> None:
    sampler = sampler_with(*(params(seed=seed) for seed in (-1, 2**64 - 1, 2**70 + 5, 5)))
    token_ids = sample(sampler, torch.zeros(4, VOCAB_SIZE), [0, 1, 2, 3], [10] * 4).token_ids
    assert token_ids[0] == token_ids[1]
    assert token_ids[2] == token_ids[3]


def test_ties_at_the_border_are_all_kept() -> None:
    logits = torch.full((VOCAB_SIZE,), -10.0)
    logits[[2, 50, 299]] = 5.0
    for fields in ({"top_k": 2}, {"top_p": 0.5}):
        assert set(draws(params(**fields), 500, logits)) == {2, 50, 299}


def test_a_flat_distribution_larger_than_the_candidates_of_top_p() -> None:
    size = 2000
    sampler = Sampler(1, size)
    sampler.admit(0, params(top_p=0.9), np.array([1], np.int32), 1)
    logits = torch.linspace(1, 0, size)
    expected = distribution(logits.double().numpy(), params(top_p=0.9))
    numbers = np.arange(400) + 1
    found = [
        sampler.sample(logits[None], np.array([0]), np.array([number])).token_ids[0] for number in numbers
    ]
    assert expected[found].all()
    assert max(found) > 1500


def test_extreme_temperatures_neither_overflow_nor_divide_by_zero() -> None:
    likeliest = LOGITS.argmax().item()
    assert set(draws(params(temperature=1e-6), 500)) == {likeliest}
    assert set(draws(params(temperature=2e-5), 500, LOGITS * 50)) == {likeliest}
    assert len(set(draws(params(temperature=100.0), 500))) > 200


def test_logprobs_are_of_the_raw_distribution() -> None:
    one = params(temperature=0.4, top_k=3, logit_bias=((17, 30.0),), logprobs=5)
    (record,) = sample(sampler_with(one), LOGITS[None], [0], [10]).logprobs
    expected = LOGITS.double().log_softmax(-1)
    assert record is not None
    assert record.logprob == pytest.approx(expected[17].item(), abs=1e-5)
    assert record.top_ids == expected.topk(5).indices.tolist()
    assert record.top_logprobs == pytest.approx(expected.topk(5).values.tolist(), abs=1e-5)


SCOPES: list[dict[str, Any]] = [
    {"temp_scaled_logprobs": True},
    {"top_p_normalized_logprobs": True},
    {"temp_scaled_logprobs": True, "top_p_normalized_logprobs": True},
]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("fields", SCOPES, ids=str)
def test_logprobs_are_of_the_distribution_asked_for(fields: dict[str, Any], temperature: float) -> None:
    """Edits move the choice, and so which token has its log probability told, but not the distribution."""
    one = params(temperature=temperature, top_p=0.7, logit_bias=((17, 90.0),), logprobs=20, **fields)
    (record,) = sample(sampler_with(one), LOGITS[None], [0], [10]).logprobs
    assert record is not None
    scaled = LOGITS.double().numpy()
    if one.temp_scaled_logprobs:
        scaled = scaled / temperature
    p = np.exp(scaled - scaled.max()) / np.exp(scaled - scaled.max()).sum()
    if one.top_p_normalized_logprobs:
        p = distribution(np.log(p), params(top_p=0.7))
    order = np.argsort(-LOGITS.numpy(), kind="stable")[:20]
    with np.errstate(divide="ignore"):
        expected = np.maximum(np.log(p), -9999.0)
    assert record.top_ids == order.tolist()
    assert record.top_logprobs == pytest.approx(expected[order].tolist(), abs=2e-5)
    assert record.logprob == pytest.approx(expected[17], abs=2e-5)
    if one.top_p_normalized_logprobs:
        assert record.logprob == -9999.0
        assert np.exp(np.array(record.top_logprobs)).sum() == pytest.approx(
            1.0 if p[order].sum() > 0.999 else p[order].sum()
        )


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.0}])
def test_greedy_leaves_one_token_after_temperature_or_top_p(fields: dict[str, Any]) -> None:
    one = params(logprobs=3, temp_scaled_logprobs=True, top_p_normalized_logprobs=True, **fields)
    (record,) = sample(sampler_with(one), LOGITS[None], [0], [10]).logprobs
    assert record is not None
    assert (record.logprob, record.top_logprobs) == (0.0, [0.0, -9999.0, -9999.0])


def test_a_top_p_of_nothing_keeps_all_that_are_equally_likely() -> None:
    one = params(top_p=0.0, logprobs=2, top_p_normalized_logprobs=True)
    (record,) = sample(sampler_with(one), torch.zeros(1, VOCAB_SIZE), [0], [10]).logprobs
    assert record is not None
    assert [record.logprob, *record.top_logprobs] == pytest.approx([-np.log(VOCAB_SIZE)] * 3)


def test_rows_with_other_scopes_and_counts_share_a_step() -> None:
    kinds = [params(temperature=0.5 + 0.1 * i, logprobs=i % 5, **SCOPES[i % 3]) for i in range(9)]
    kinds += [params(logprobs=None), params(logprobs=20)]
    logits = torch.randn(len(kinds), VOCAB_SIZE).bfloat16()  # with ties
    together = sample(sampler_with(*kinds), logits, list(range(len(kinds))), [10] * len(kinds)).logprobs
    for slot, one in enumerate(kinds):
        assert sample(sampler_with(one), logits[slot : slot + 1], [0], [10]).logprobs[0] == together[slot]
        assert together[slot] is None or len(together[slot].top_ids) == one.logprobs  # type: ignore[union-attr]


def test_ties_among_the_likeliest_go_by_id() -> None:
    logits = np.zeros(1000, np.float32)
    assert score(logits, 0, 4).top_ids.tolist() == [0, 1, 2, 3]
    logits[[900, 30, 500]] = 2
    assert score(logits, 0, 4).top_ids.tolist() == [30, 500, 900, 0]
    logits[:] = -np.inf
    logits[999] = 1
    assert score(logits, 0, 4).top_ids.tolist() == [999, 0, 1, 2]
    assert len(score(logits, 0, 2000).top_ids) == 1000
    assert len(score(logits, 0, 0).top_ids) == 0


def test_logits_that_are_no_numbers_do_not_end_the_rank() -> None:
    logits = np.full(50, np.nan, np.float32)
    broken = score(logits, 4, 5)
    assert len(broken.top_ids) == 5
    logits[[0, 2]] = [1, 3]
    damaged = score(logits, 4, 5)
    assert damaged.top_ids.tolist()[:2] == [2, 0]
    for scores in (broken, damaged):
        assert scores.logprob >= -9999.0
        assert (scores.top_logprobs >= -9999.0).all()


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, True), (0.6, True), (0.72, False), (0.99, False)])
def test_a_token_is_certain_where_the_model_itself_gives_it_more_than_the_threshold(
    threshold: float, expected: bool
) -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 3] = np.log(0.7 / (0.3 / (VOCAB_SIZE - 1)))  # probability 0.7
    one = params(temperature=0.0, early_stop=EarlyStop(5, threshold))
    found = sample(sampler_with(one, params(temperature=0.0)), logits.expand(2, -1), [0, 1], [10, 10])
    assert found.is_certain.tolist() == [expected, False]
    unlikely = params(temperature=0.0, early_stop=EarlyStop(5, threshold), logit_bias=((5, 99.0),))
    assert sample(sampler_with(unlikely), logits, [0], [10]).is_certain.tolist() == [threshold == 0.0]


def test_zero_alternatives_and_impossible_tokens_have_numbers_too() -> None:
    logits = LOGITS.clone()
    logits[3:] = -torch.inf
    several = params(temperature=0.0, logprobs=0), params(temperature=0.0, logprobs=20)
    none, all_of_them = sample(sampler_with(*several), logits.expand(2, -1), [0, 1], [10, 10]).logprobs
    assert none is not None
    assert all_of_them is not None
    assert none.top_ids == []
    assert none.logprob == all_of_them.logprob == all_of_them.top_logprobs[0]
    assert all_of_them.top_logprobs[3:] == [-9999.0] * 17


def test_ids_beyond_the_vocabulary_are_passed_over() -> None:
    one = params(
        temperature=0.0, logit_bias=((VOCAB_SIZE, 5.0), (4, 99.0)), min_tokens=9, stop_token_ids=(10**6, 4)
    )
    assert sample(sampler_with(one), LOGITS[None], [0], [10]).token_ids[0] != 4


def test_a_bad_word_is_found_across_what_is_sampled_and_what_was_there_before() -> None:
    """Greedy over logits that want 1, 2, 3, 1, 2, 3 ... and, where that is banned, 7."""
    one = params(temperature=0.0, bad_words=((3, 1, 2), (2, 2), (8, 1, 2, 7)))
    sampler = sampler_with(one, token_ids=PROMPT)
    found = []
    for position in range(len(PROMPT), len(PROMPT) + 9):
        logits = torch.zeros(1, VOCAB_SIZE)
        logits[0, 7] = 1.0
        logits[0, [1, 2, 3][(position - len(PROMPT)) % 3]] = 2.0
        found += sample(sampler, logits, [0], [position]).token_ids.tolist()
    # 8 is the prompt's last, so "8 1 2" is not followed by 7; and after "3 1" comes no 2
    assert found == [1, 2, 3, 1, 7, 3, 1, 7, 3]


def test_greedy_by_top_p_ignores_the_temperature_of_the_choice() -> None:
    likeliest = LOGITS.argmax().item()
    assert set(draws(params(temperature=50.0, top_p=0.0), 500)) == {likeliest}


def test_a_released_slot_keeps_nothing() -> None:
    sampler = sampler_with(params(temperature=0.0, logit_bias=((17, 99.0),), logprobs=1))
    assert sample(sampler, LOGITS[None], [0], [10]).token_ids[0] == 17
    sampler.release(0)
    sampler.admit(0, params(temperature=0.0), np.array([1], np.int32), 1)
    found = sample(sampler, LOGITS[None], [0], [1])
    assert found.token_ids[0] == LOGITS.argmax()
    assert found.logprobs == [None]
