"""Fields that choose, end and score texts, obeyed by the real server."""

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import tokenizers
import trio

from tests.e2e.harness import TRIOSERVE, Server, running_server
from trioserve.builtin import MODEL_DIR
from trioserve.core.delta import OutputDelta, merge
from trioserve.core.sampling import SamplingParams
from trioserve.core.sequence import Sequence
from trioserve.engine.checkpoint import open_model
from trioserve.engine.engine import Engine
from trioserve.engine.lifecycle import Lifecycle, ServerState
from trioserve.engine.supervisor import supervise
from trioserve.engine.works import Works
from trioserve.output.vocabulary import load_vocabulary
from trioserve.settings import Settings

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me a short story."}]
TOKENIZER = tokenizers.Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
EOS_IDS = (0, 2)
BY_PIECE = {
    TOKENIZER.decode([token_id], skip_special_tokens=False): token_id
    for token_id in range(TOKENIZER.get_vocab_size())
}
"""Ids of tokens that are whole characters, by their text."""


def ids(text: str) -> list[int]:
    encoded: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    return encoded


def chat(client: openai.OpenAI, messages: Any = CAPITAL, **fields: Any) -> Any:
    """One choice of a chat completion; fields that OpenAI does not have go into ``extra``."""
    extra = fields.pop("extra", {})
    asked: Any = {"model": "builtin", "messages": messages, "temperature": 0, "max_tokens": 60, **fields}
    return client.chat.completions.create(**asked, extra_body=extra).choices[0]


def text(client: openai.OpenAI, messages: Any = CAPITAL, **fields: Any) -> str:
    content: str = chat(client, messages, **fields).message.content
    return content


def chosen_ids(client: openai.OpenAI, **extra: Any) -> list[int]:
    """The tokens of a greedy answer."""
    content = chat(client, logprobs=True, extra=extra).logprobs.content
    return [BY_PIECE[entry.token] for entry in content]


def refused(client: openai.OpenAI, **extra: Any) -> str:
    """The field that a 400 names."""
    with pytest.raises(openai.BadRequestError) as info:
        chat(client, extra=extra)
    return str(info.value.param)


# --- which tokens ---


def test_bad_words_never_appear(client: openai.OpenAI) -> None:
    assert "Paris" in text(client)
    for words in (["Paris"], [" Paris"], ["London", "Paris"]):
        assert "Paris" not in text(client, extra={"bad_words": words})
    for seed in range(3):
        assert "Paris" not in text(client, extra={"bad_words": ["Paris"]}, temperature=1.2, seed=seed)
    assert "Paris" in text(client, extra={"bad_words": ["London"]})


def test_a_bad_word_of_several_tokens_bans_the_run_and_not_its_parts(client: openai.OpenAI) -> None:
    plain = chosen_ids(client)
    run = plain[-5:-2]
    assert len(set(run)) == 3
    banned = chosen_ids(client, bad_words_token_ids=[run])
    at = len(plain) - 3
    assert banned[:at] == plain[:at], "nothing is banned before the run would end"
    assert banned[at] != plain[at]
    assert run not in [banned[start : start + 3] for start in range(len(banned))]
    reordered = [run[1], run[0], run[2]]
    assert chosen_ids(client, bad_words_token_ids=[reordered]) == plain


def test_bad_words_in_ids_are_those_in_text(client: openai.OpenAI) -> None:
    lists = [ids("Paris"), ids(" Paris")]
    assert text(client, extra={"bad_words_token_ids": lists}) == text(client, extra={"bad_words": ["Paris"]})
    ends = [token_ids[-1] for token_ids in lists]
    assert "Paris" not in text(client, extra={"bad_words_token_ids": ends})


def test_only_allowed_ids_are_chosen(client: openai.OpenAI) -> None:
    allowed = [*ids(" Paris"), *ids(" London"), *EOS_IDS]
    allowed_bytes = {
        bytes(TOKENIZER.decode([token_id], skip_special_tokens=False), "utf-8") for token_id in allowed
    }
    for temperature in (0, 1.5):
        choice = chat(
            client,
            extra={"allowed_token_ids": allowed, "skip_special_tokens": False, "ignore_eos": True},
            temperature=temperature,
            max_tokens=20,
            logprobs=True,
        )
        tokens = {bytes(entry.bytes) for entry in choice.logprobs.content}
        assert tokens <= allowed_bytes
        assert len(choice.logprobs.content) == 20


def test_an_allowed_id_wins_over_the_bans_that_leave_nothing_else(client: openai.OpenAI) -> None:
    (token_id,) = ids("a")
    extra = {"allowed_token_ids": [token_id], "bad_words_token_ids": [token_id]}
    assert text(client, extra=extra, max_tokens=5) == "aaaaa"


def test_what_cannot_be_chosen_from_is_refused(client: openai.OpenAI) -> None:
    assert refused(client, allowed_token_ids=[]) == "allowed_token_ids"
    assert refused(client, allowed_token_ids=[10**6]) == "allowed_token_ids"
    assert refused(client, bad_words=[""]) == "bad_words"
    assert refused(client, bad_words_token_ids=[[1, 10**6]]) == "bad_words_token_ids"
    for name in ("use_beam_search", "length_penalty", "early_stopping", "logits_processors"):
        assert refused(client, **{name: 2}) == name


# --- how many tokens ---


@pytest.mark.parametrize(
    "extra", [{"min_tokens": 25}, {"min_new_tokens": 25}, {"metadata": {"min_tokens": 25}}], ids=str
)
def test_nothing_ends_a_text_before_its_least_length(client: openai.OpenAI, extra: dict[str, Any]) -> None:
    assert chat(client).finish_reason == "stop"
    asked: Any = {"model": "builtin", "messages": CAPITAL, "temperature": 0, "max_tokens": 40}
    answer = client.chat.completions.create(**asked, extra_body=extra)
    assert answer.usage.completion_tokens >= 25
    assert client.chat.completions.create(**asked).usage.completion_tokens < 25


def test_greedy_by_any_name_is_the_same(client: openai.OpenAI) -> None:
    greedy = text(client, STORY, max_tokens=30)
    assert text(client, STORY, max_tokens=30, temperature=1.3, top_p=0, seed=1) == greedy
    assert text(client, STORY, max_tokens=30, temperature=1.3, extra={"top_k": 1}, seed=2) == greedy
    assert text(client, STORY, max_tokens=30, temperature=1e-9, seed=3) == greedy
    for off in (0, -1):
        assert text(client, STORY, max_tokens=30, extra={"top_k": off}) == greedy
        drawn = [
            text(client, STORY, max_tokens=30, temperature=1.3, extra={"top_k": k}, seed=4)
            for k in (off, 10**6)
        ]
        assert drawn[0] == drawn[1]


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**63 - 1])
def test_any_seed_of_64_bits_repeats_itself(client: openai.OpenAI, seed: int) -> None:
    first, second = (text(client, STORY, max_tokens=20, temperature=1.0, seed=seed) for _ in range(2))
    assert first == second


def test_a_circle_that_the_request_describes_ends_its_text(client: openai.OpenAI) -> None:
    (token_id,) = ids("a")
    extra = {"allowed_token_ids": [token_id], "repetition_detection": {"max_pattern_size": 4, "min_count": 6}}
    choice = chat(client, extra=extra, max_tokens=100)
    assert (choice.message.content, choice.finish_reason) == ("aaaaaa", "repetition")
    assert choice.stop_reason == "repetition_detected"
    extra["repetition_detection"] = {"max_pattern_size": 4, "min_pattern_size": 3, "min_count": 6}
    assert chat(client, extra=extra, max_tokens=100).message.content == "a" * 18
    assert chat(client, extra={**extra, "min_tokens": 30}, max_tokens=100).message.content == "a" * 30
    assert refused(client, repetition_detection={"max_pattern_size": 4}) == "repetition_detection.min_count"


# --- what their probabilities were ---


def whole_and_streamed(client: openai.OpenAI, **fields: Any) -> list[Any]:
    """The logprobs of an answer, and those of the same answer streamed, which are to be the same."""
    extra = fields.pop("extra")
    asked: Any = {"model": "builtin", "messages": STORY, "max_tokens": 25, "logprobs": True, **fields}
    whole = client.chat.completions.create(**asked, extra_body=extra).choices[0].logprobs.content
    streamed = [
        entry
        for chunk in client.chat.completions.create(**asked, stream=True, extra_body=extra)
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    assert streamed == whole
    assert len(whole) == 25
    return list(whole)


def test_temp_scaled_logprobs_are_the_models_own_divided_by_the_temperature(client: openai.OpenAI) -> None:
    fields = {"temperature": 0.5, "seed": 3, "top_logprobs": 20}
    own = whole_and_streamed(client, **fields, extra={})
    scaled = whole_and_streamed(client, **fields, extra={"temp_scaled_logprobs": True})
    assert [entry.token for entry in own] == [entry.token for entry in scaled]
    for before, after in zip(own, scaled, strict=True):
        first, second = before.top_logprobs[:2], after.top_logprobs[:2]
        gap = (first[0].logprob - first[1].logprob) / 0.5
        assert second[0].logprob - second[1].logprob == pytest.approx(gap, abs=1e-3)
        assert sum(math.exp(top.logprob) for top in after.top_logprobs) <= 1.0001


def test_top_p_normalized_logprobs_sum_to_one_over_what_is_kept(client: openai.OpenAI) -> None:
    fields = {"temperature": 1.0, "top_p": 0.6, "seed": 3, "top_logprobs": 20}
    own = whole_and_streamed(client, **fields, extra={})
    kept = whole_and_streamed(client, **fields, extra={"top_p_normalized_logprobs": True})
    num_complete = 0
    for before, after in zip(own, kept, strict=True):
        assert after.logprob >= before.logprob, "what is drawn is kept, and has more of the rest"
        tops = [top.logprob for top in after.top_logprobs]
        assert min(tops) >= -9999.0
        if tops[-1] == -9999.0:
            num_complete += 1
            assert sum(map(math.exp, tops)) == pytest.approx(1.0, abs=1e-4)
    assert num_complete > 5


def test_greedy_has_all_of_the_probability_after_its_temperature(client: openai.OpenAI) -> None:
    extra = {"temp_scaled_logprobs": True, "top_p_normalized_logprobs": True}
    entries = whole_and_streamed(client, temperature=0, top_logprobs=2, extra=extra)
    for entry in entries:
        first, second = entry.top_logprobs
        assert entry.logprob == first.logprob
        # the model computes in bfloat16, so now and then two tokens are equally likely, and share it
        tied = pytest.approx(-math.log(2)), pytest.approx(-math.log(2))
        assert (first.logprob, second.logprob) in ((0.0, -9999.0), tied)
    assert sum(entry.logprob == 0.0 for entry in entries) > 20


@pytest.mark.parametrize("spaces", [True, False])
def test_special_tokens_stand_in_the_text_as_the_tokenizer_decodes_them(server: Server, spaces: bool) -> None:
    token_ids = [2, 2, *ids(" Paris")[:1], 2, 0]
    body = {
        "prompt": "Hi",
        "temperature": 0,
        "max_tokens": 30,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": spaces,
        "allowed_token_ids": token_ids,
        "frequency_penalty": 2,
        "logprobs": 0,
    }
    choice = httpx.post(server.url + "/v1/completions", json=body, timeout=60).json()["choices"][0]
    by_piece = {TOKENIZER.decode([token_id], skip_special_tokens=False): token_id for token_id in token_ids}
    chosen = [by_piece[piece] for piece in choice["logprobs"]["tokens"]]
    assert len(set(chosen)) > 1
    assert choice["text"] == TOKENIZER.decode(chosen, skip_special_tokens=False)


# --- what the operator says ---


@pytest.fixture(scope="module")
def strict_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    settings = {
        "enable_logprob": "false",
        "override_generation_config": '{"temperature": 0, "max_new_tokens": 12}',
        "early_stop_config": '{"enable_early_stop": true, "window_size": 8, "threshold": 0.0}',
        "max_bad_words": 1,
    }
    with running_server(tmp_path_factory.mktemp("strict") / "log", settings=settings) as server:
        yield openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def test_an_operator_may_give_no_logprobs(strict_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="this server gives no log probabilities") as info:
        chat(strict_client, logprobs=True)
    assert info.value.param == "logprobs"
    assert refused(strict_client, prompt_logprobs=1) == "prompt_logprobs"
    assert refused(strict_client, bad_words=["a", "b"]) == "bad_words"


def test_an_operators_defaults_win_over_the_models(strict_client: openai.OpenAI) -> None:
    """The model's own are temperature 0.7 and top_p 0.95."""
    asked: Any = {"model": "builtin", "messages": STORY}
    first, second = (strict_client.chat.completions.create(**asked).choices[0] for _ in range(2))
    assert first.message.content == second.message.content
    longer = strict_client.completions.create(
        model="builtin", prompt="Once", max_tokens=50, extra_body={"min_tokens": 50}
    )
    assert longer.usage is not None
    assert longer.usage.completion_tokens == 12


def test_a_sequence_that_is_certain_for_too_long_is_ended(strict_client: openai.OpenAI) -> None:
    """Every token is certain here: each has more probability than none."""
    choice = chat(strict_client, STORY)
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "repetition_detected")
    answer = strict_client.completions.create(model="builtin", prompt="Once upon", max_tokens=11)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"override_generation_config": '{"temprature": 1}'},
            "temprature is not one of temperature, top_p",
        ),
        (
            {"early_stop_config": '{"threshold": 2}'},
            "threshold = 2: input should be less than 1",
        ),
    ],
)
def test_a_wrong_object_stops_the_start_with_one_sentence(
    tmp_path: Path, settings: dict[str, str], sentence: str
) -> None:
    with running_server(tmp_path / "log", settings=settings, wait_ready=False, command=TRIOSERVE) as server:
        assert server.wait(30) == 78
        assert sentence in server.log
        assert server.log.count("\n") == 1


# --- prompts, scored by a real rank ---


@asynccontextmanager
async def real_engine(**settings: Any) -> AsyncIterator[Engine]:
    """The engine over a rank process with the built-in model."""
    chosen = Settings(num_threads=1, **settings)
    model, lifecycle = open_model(chosen), Lifecycle()
    engine = Engine(chosen, model, load_vocabulary(TOKENIZER), lifecycle)
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await supervise(engine, Works(chosen, model, lifecycle).start, lifecycle, max_restarts=0)

        nursery.start_soon(run)
        while lifecycle.state is ServerState.STARTING:
            await lifecycle.wait_changed()
        yield engine
        nursery.cancel_scope.cancel()


async def deltas_of(engine: Engine, *sequences: Sequence) -> list[OutputDelta]:
    found: list[list[OutputDelta]] = [[] for _ in sequences]
    with engine.stream(list(sequences)) as mailbox:
        while not mailbox.is_done:
            for index, delta in await mailbox.receive():
                found[index].append(delta)
    return [merge(parts) for parts in found]


async def test_a_prompts_logprobs_are_those_with_which_the_same_text_was_generated() -> None:
    prompt = ids("Once upon a time")
    async with real_engine(
        max_num_seqs=8, max_num_batched_tokens=16, num_kv_blocks=6, max_model_len=96
    ) as engine:
        params = SamplingParams(max_tokens=40, temperature=0.9, seed=5, logprobs=4)
        (generated,) = await deltas_of(engine, Sequence(prompt, params))
        whole = [*prompt, *generated.token_ids]
        scored = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=4)
        # three at once in chunks of 16 and too few blocks, beside one that finds all of it in the cache
        others = [Sequence(whole, scored) for _ in range(3)]
        *found, plain = await deltas_of(engine, *others, Sequence(whole, SamplingParams(max_tokens=1)))
    assert plain.prompt_logprobs == ()
    for delta in found:
        assert len(delta.prompt_logprobs) == len(whole)
        assert delta.prompt_logprobs[0] is None
        assert [score.token_id for score in delta.prompt_logprobs if score] == whole[1:]
        tail = delta.prompt_logprobs[len(prompt) :]
        for score, chosen in zip(tail, generated.logprobs, strict=True):
            assert score is not None
            assert score.logprob == pytest.approx(chosen.logprob, abs=1e-3)
            assert [top.token_id for top in score.top] == [top.token_id for top in chosen.top]
        total = sum(score.logprob for score in tail if score)
        assert total == pytest.approx(sum(chosen.logprob for chosen in generated.logprobs), abs=1e-2)
