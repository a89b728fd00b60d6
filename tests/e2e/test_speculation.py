"""A server that guesses tokens gives the answers of one that does not, to the letter, and counts its guesses."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.harness import Server, running_server

CONFIG = '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}'
SETTINGS = {"max_model_len": 512, "max_num_seqs": 16}
LIST = "red, green, blue, red, green, blue, red, green, blue, red, green,"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("plain") / "log", settings=SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def guessing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = SETTINGS | {"speculative_config": CONFIG}
    with running_server(tmp_path_factory.mktemp("guessing") / "log", settings=settings) as server:
        yield server


def ask(server: Server, **fields: object) -> dict[str, Any]:
    body = {"prompt": LIST, "temperature": 0, "max_tokens": 80, "ignore_eos": True, **fields}
    answer = httpx.post(server.url + "/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def counts(server: Server) -> dict[str, float]:
    """Of guesses, by the end of the name."""
    text = httpx.get(server.url + "/metrics", timeout=10).text
    lines = [line for line in text.splitlines() if line.startswith("vllm:spec_decode_")]
    return {line.split("{")[0].removeprefix("vllm:spec_decode_"): float(line.split()[-1]) for line in lines}


def told(answer: dict[str, Any]) -> Any:
    """All of an answer that is not its own."""
    choices = [{key: value for key, value in choice.items() if key != "id"} for choice in answer["choices"]]
    return choices, answer["usage"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": "Once upon a time"},
        {"logprobs": 3, "max_tokens": 40},
        {"temperature": 0.7, "seed": 4, "n": 4},
        {"temperature": 1.3, "top_p": 0.9, "seed": 5, "n": 2, "logprobs": 1},
        {"frequency_penalty": 0.2, "presence_penalty": 0.1},
        {"repetition_penalty": 1.1, "logit_bias": {"20": 3}},
        {"stop": ["red, green", "xyz"], "max_tokens": 60},
        {"min_tokens": 20, "stop": "blue", "ignore_eos": False},
        {"ignore_eos": False, "max_tokens": 300},
        {"prompt": [LIST, "one two one two one two", "a b c d"], "temperature": 0.5, "seed": 6},
        *({"max_tokens": count} for count in range(1, 12)),
    ],
    ids=str,
)
def test_answers_are_those_without_guesses(
    plain: Server, guessing: Server, fields: dict[str, object]
) -> None:
    assert told(ask(guessing, **fields)) == told(ask(plain, **fields))


def test_guesses_of_a_text_that_repeats_itself_are_right_and_counted(guessing: Server) -> None:
    """How many there are is a matter of what they cost, which depends on what else wants the cores."""
    before = counts(guessing)
    for _ in range(10):
        ask(guessing, max_tokens=200)
        after = counts(guessing)
        grown = {name: after[name] - before.get(name, 0) for name in after}
        if grown["num_accepted_tokens_total"] > 50:
            break
    assert grown["num_draft_tokens_total"] >= grown["num_accepted_tokens_total"] > 50
    assert grown["num_accepted_tokens_total"] > 0.8 * grown["num_draft_tokens_total"]
    assert grown["num_drafts_total"] >= grown["num_draft_tokens_total"] / 4


def test_a_server_that_is_not_told_to_guess_shows_no_counts_of_guesses(plain: Server) -> None:
    assert counts(plain) == {}


@pytest.mark.parametrize(
    "fields", [{}, {"stop": ["green, blue, red, green, blue, red"]}, {"temperature": 0.8, "seed": 9}]
)
def test_a_stream_tells_every_token_once(plain: Server, guessing: Server, fields: dict[str, object]) -> None:
    body = {"prompt": LIST, "temperature": 0, "max_tokens": 80, "ignore_eos": True, **fields}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    texts, usage = [], None
    with httpx.stream("POST", guessing.url + "/v1/completions", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                texts += [choice["text"] for choice in event["choices"]]
                usage = event.get("usage") or usage
    whole = ask(plain, **fields)
    assert "".join(texts) == whole["choices"][0]["text"]
    assert usage is not None
    assert usage["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_a_client_that_leaves_amid_guesses_leaves_nothing_behind(guessing: Server) -> None:
    body = {"prompt": LIST, "temperature": 0, "max_tokens": 400, "ignore_eos": True, "stream": True}
    for _ in range(5):
        with httpx.stream("POST", guessing.url + "/v1/completions", json=body, timeout=60) as answer:
            for number, _ in enumerate(answer.iter_lines()):
                if number > 6:
                    break
    guessing.wait_idle()
    assert counts(guessing)["num_drafts_total"] > 0


def test_preemption_prefix_hits_and_company_change_no_token(tmp_path_factory: pytest.TempPathFactory) -> None:
    """24 sequences in a cache for 5, one asked again: texts are those of a server with room and without guesses."""
    prompts = [f"{number} {LIST}" for number in range(24)]
    asked = {"prompt": prompts, "max_tokens": 60}
    with running_server(tmp_path_factory.mktemp("roomy") / "log", settings=SETTINGS) as server:
        expected = told(ask(server, **asked))[0]
    crowded = SETTINGS | {"max_model_len": 256, "num_kv_blocks": 24, "speculative_config": CONFIG}
    with running_server(tmp_path_factory.mktemp("crowded") / "log", settings=crowded) as server:
        first = told(ask(server, **asked))[0]
        again = [ask(server, prompt=prompts[0], max_tokens=60) for _ in range(2)]
        health, found = server.health(), counts(server)
        server.wait_idle()
    assert first == expected
    assert [answer["choices"][0]["text"] for answer in again] == [expected[0]["text"]] * 2
    assert health["num_preemptions"] > 0
    assert found["num_accepted_tokens_total"] > 0
    assert again[1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
