"""Ranks that share a model, driven as a front drives them: the tokens are those of one rank."""

import numpy as np
import pytest
import torch

from tests.model.checkpoints import Checkpoints, prompt_of
from tests.worker.company import company, front_of
from tests.worker.driver import BLOCK_SIZE, Front
from tests.worker.test_grammars import FOLDER, PERSON, SETTINGS, budget, front, json_grammar, params
from tests.worker.test_grammars import run as answer
from tests.worker.test_schedules import Requests
from tests.worker.test_scoring import SCORED, Scores, check, reference, run
from trioserve.errors import ModelError
from trioserve.worker.machine import Cores

REPEATING = [7, 8, 9, 10, 11] * 5


@pytest.mark.parametrize(
    ("name", "tp_size"), [("llama", 2), ("mistral-sliding", 4), ("llama-odd-heads-tied", 3)]
)
def test_greedy_tokens_are_those_of_transformers(checkpoints: Checkpoints, name: str, tp_size: int) -> None:
    prompt = prompt_of(30, seed=20)
    with front_of(checkpoints.folder(name), tp_size) as front:
        front.admit(0, prompt)
        front.step(s0=17)
        front.step(s0=13)
        front.decode(9, 0)
    assert front.outputs[0] == checkpoints.greedy(name, prompt, 10)


@pytest.mark.parametrize("num_drafts", [0, 3])
def test_any_schedule_on_torchs_layers_gives_the_tokens_of_one_rank(
    checkpoints: Checkpoints, num_drafts: int
) -> None:
    requests, folder = Requests(1), checkpoints.folder("qwen3")
    expected = requests.alone(Front.of(folder))
    with front_of(folder, 2, num_drafts=num_drafts) as front:
        assert requests.in_any_order(front) == expected
    assert (front.num_guessed > 0) == (num_drafts > 0)


@pytest.mark.parametrize("num_drafts", [0, 3])
@pytest.mark.parametrize("seed", range(2))
def test_any_schedule_on_native_layers_gives_the_tokens_of_each_sequence_alone(
    checkpoints: Checkpoints, seed: int, num_drafts: int
) -> None:
    requests, folder = Requests(seed), checkpoints.folder("llama", dtype=torch.bfloat16)
    with company(folder, 4, num_drafts=num_drafts) as ranks:
        assert ranks.readies[0].decoder.startswith("native")
        front = Front(ranks.run)
        expected = requests.alone(front)
        front.num_drafts = num_drafts
        assert requests.in_any_order(front) == expected
    assert (front.num_guessed > 0) == (num_drafts > 0)


def test_a_prefix_hit_gives_the_tokens_of_a_whole_prompt(checkpoints: Checkpoints) -> None:
    prompt = prompt_of(40, seed=5)
    with front_of(checkpoints.folder("qwen2"), 2) as front:
        front.admit(0, prompt)
        front.step(s0=40)
        front.decode(5, 0)
        front.admit(3, prompt, shared=[0, 1])
        front.step(s3=40 - 2 * BLOCK_SIZE)
        front.decode(5, 0, 3)
    assert front.outputs[3] == front.outputs[0][:6] == checkpoints.greedy("qwen2", prompt, 6)


def test_grammars_and_forced_tokens_reach_ranks_that_know_no_grammar() -> None:
    asked = [
        params(grammar=json_grammar(PERSON)),
        params(grammar=json_grammar(PERSON), temperature=0.8, seed=3),
        params(thinking=budget(3), max_tokens=20),
    ]
    alone = front()
    expected = [answer(alone, number, one) for number, one in enumerate(asked)]
    with front_of(FOLDER, 2, **SETTINGS) as shared:
        found = [answer(shared, number, one) for number, one in enumerate(asked)]
    assert found == expected
    assert all(any(sample.forced for sample in shared.samples[slot]) for slot in range(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prompts_are_scored_alike(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Logits are made five tokens at a time, on all ranks."""
    monkeypatch.setattr("trioserve.worker.scoring._PIECE_VALUES", 5 * 160)
    prompt, scores = prompt_of(40, seed=27), Scores()
    with front_of(checkpoints.folder("llama", dtype=dtype), 2) as front:
        front.admit(0, prompt, SCORED)
        run(front, front.plan(s0=25), scores)
        run(front, front.plan(s0=15), scores)
    expected = reference(checkpoints, "llama", prompt)
    if dtype == torch.float32:
        check(scores.found[100], prompt, expected)
    found = np.array([scores.found[100][at][0] for at in range(1, 40)])
    assert np.abs(found - [expected[at - 1, prompt[at]] for at in range(1, 40)]).max() < 0.1


def test_the_memory_of_the_cache_is_shared_out(checkpoints: Checkpoints) -> None:
    """Each rank has half the KV heads in half the memory, so there are as many blocks as on one."""
    folder, size = checkpoints.folder("llama"), 1 << 20
    with (
        company(folder, 1, num_blocks=None, kv_cache_bytes=size) as one,
        company(folder, 2, num_blocks=None, kv_cache_bytes=size) as two,
    ):
        assert {ready.num_blocks for ready in two.readies} == {one.readies[0].num_blocks}
        assert sum(ready.kv_cache_bytes for ready in two.readies) == one.readies[0].kv_cache_bytes


def test_prices_of_guesses_are_measured_together(checkpoints: Checkpoints) -> None:
    with company(checkpoints.folder("llama"), 2, num_drafts=3) as ranks:
        assert 0 <= ranks.readies[0].max_drafting_seqs <= 8


@pytest.mark.parametrize(
    ("tp_size", "sentence"), [(3, "num_attention_heads 4 is no multiple"), (9, "more than the 8 cores")]
)
def test_what_cannot_be_shared_out_is_refused_before_anyone_waits(
    checkpoints: Checkpoints, tp_size: int, sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        with company(checkpoints.folder("llama"), tp_size):
            pass


def test_cores_are_shared_out_side_by_side() -> None:
    cores = Cores([0, 2, 4, 6, 8], 4)
    assert [cores.share(number, 2) for number in range(2)] == [Cores([0, 2], 2), Cores([4, 6, 8], 2)]
    assert cores.share(0, 1) == cores
