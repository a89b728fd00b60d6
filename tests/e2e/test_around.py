"""The endpoints around generation, through the real server and the built-in model."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoTokenizer

import trioserve
from tests.e2e.harness import TRIOSERVE, Server, free_port, running_server, wait_until
from trioserve.builtin import MODEL_DIR

MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France? Grüße, 世界!"},
]
PARIS = {"role": "user", "content": "What is the capital of France?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Look it up.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@dataclass(frozen=True)
class Watched:
    """A server with a port for metrics."""

    server: Server
    metrics_port: int

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        answer = httpx.post(self.server.url + path, json=body, timeout=60)
        assert answer.status_code == status, answer.text
        return answer.json()

    def metrics(self) -> dict[str, float]:
        """What the model's names say, labels other than the model's and buckets' left out: ``name{reason}``."""
        text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30).text
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("model_name") == "builtin" and "le" not in sample.labels:
                    reason = sample.labels.get("finished_reason")
                    found[sample.name + (f"{{{reason}}}" if reason else "")] = sample.value
        return {name.removeprefix("vllm:"): value for name, value in found.items()}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    port = free_port()
    settings = {"metrics_port": port, "enable_tokenizer_info_endpoint": True, "max_tokenize_len": 50_000}
    log = tmp_path_factory.mktemp("around") / "log"
    with running_server(log, command=TRIOSERVE, settings=settings) as server:
        yield Watched(server, port)


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoTokenizer.from_pretrained(str(MODEL_DIR))


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_a_conversations_tokens_are_transformers_own(
    watched: Watched, reference: Any, tools: Any, add_generation_prompt: bool
) -> None:
    asked = {"messages": MESSAGES, "tools": tools, "add_generation_prompt": add_generation_prompt}
    answer = watched.post("/tokenize", {**asked, "return_token_strs": True})
    options = {"tools": tools, "add_generation_prompt": add_generation_prompt}
    expected = reference.apply_chat_template(MESSAGES, tokenize=True, return_dict=False, **options)
    assert answer["tokens"] == expected
    assert answer["token_strs"] == reference.convert_ids_to_tokens(expected)
    assert answer["count"] == len(expected)
    text = reference.apply_chat_template(MESSAGES, tokenize=False, **options)
    assert watched.post("/apply-template", asked) == {"prompt": text}
    assert watched.post("/detokenize", {"tokens": expected}) == {"prompt": text, "text": text}


def test_what_is_counted_is_what_is_billed(watched: Watched) -> None:
    tokenized = watched.post("/v1/tokenize", {"messages": MESSAGES})
    (card,) = httpx.get(watched.server.url + "/v1/models").json()["data"]
    assert tokenized["max_model_len"] == card["max_model_len"]
    chat = watched.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1})
    assert chat["usage"]["prompt_tokens"] == tokenized["count"]
    prompt = "Two words"
    counted = watched.post("/v1/encode", {"input": prompt})["length"]
    text = watched.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})
    assert text["usage"]["prompt_tokens"] == counted


def test_a_text_longer_than_the_context_is_counted_up_to_the_limit(watched: Watched, reference: Any) -> None:
    text = "Grüße aus der Ferne. " * 2000
    answer = watched.post("/tokenize", {"prompt": text})
    assert answer["tokens"] == reference.encode(text)
    assert watched.post("/v1/detokenize", {"tokens": answer["tokens"]})["text"] == text
    error = watched.post("/tokenize", {"prompt": "a" * 50_001}, status=400)["error"]
    assert "max_tokenize_len = 50000" in error["message"]


def test_an_id_that_no_token_has_is_refused(watched: Watched, reference: Any) -> None:
    error = watched.post("/detokenize", {"tokens": [1, len(reference)]}, status=400)["error"]
    assert error["param"] == "tokens"
    assert f"not {len(reference)}" in error["message"]


def test_the_tokenizers_own_words(watched: Watched) -> None:
    info = httpx.get(watched.server.url + "/tokenizer_info").json()
    config = json.loads((Path(MODEL_DIR) / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert {name: info[name] for name in config} == config
    assert "messages" in info["chat_template"]


def test_a_known_load_is_counted_exactly(watched: Watched) -> None:
    """Ended by the model, by its limit and by the client; in parallel, whole and streamed, with several choices."""
    watched.server.wait_idle()
    before = watched.metrics()
    bodies: list[dict[str, Any]] = [
        {"messages": [PARIS], "temperature": 0, "max_tokens": 40},
        {"messages": MESSAGES, "temperature": 0, "max_tokens": 3},
        {"messages": [{"role": "user", "content": "Hello " * 40}], "max_tokens": 7, "n": 3, "seed": 1},
        {"messages": MESSAGES, "max_tokens": 12, "ignore_eos": True, "seed": 2},
    ]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: watched.post("/v1/chat/completions", body), bodies * 2))
        streamed = pool.submit(lambda: stream(watched, bodies[3])).result()
    assert streamed["completion_tokens"] == 12
    leave(watched)
    watched.server.wait_idle()
    after = watched.metrics()
    gained = {name: value - before.get(name, 0) for name, value in after.items()}

    reasons = [choice["finish_reason"] for answer in answers for choice in answer["choices"]] + ["length"]
    usages = [answer["usage"] for answer in answers] + [streamed]
    num_output = sum(usage["completion_tokens"] for usage in usages)
    for reason in ("stop", "length"):
        assert gained[f"request_success_total{{{reason}}}"] == reasons.count(reason)
    assert gained["request_success_total{abort}"] == 1
    assert gained["request_success_total{error}"] == 0
    assert reasons.count("stop") > 0
    assert gained["request_generation_tokens_sum"] == num_output
    assert gained["request_generation_tokens_count"] == len(reasons)
    num_prompt = (
        sum(answer["usage"]["prompt_tokens"] * len(answer["choices"]) for answer in answers)
        + streamed["prompt_tokens"]
    )
    assert gained["request_prompt_tokens_sum"] == num_prompt
    left = gained["generation_tokens_total"] - num_output
    assert left >= 2, "the one that left had had tokens"
    assert gained["prompt_tokens_total"] > num_prompt
    assert gained["prefix_cache_queries_total"] == gained["prompt_tokens_total"]
    assert 0 < gained["prefix_cache_hits_total"] < gained["prompt_tokens_total"]
    tokens = gained["time_to_first_token_seconds_count"] + gained["inter_token_latency_seconds_count"]
    assert tokens == gained["generation_tokens_total"]
    assert gained["time_to_first_token_seconds_count"] == len(reasons) + 1
    for name in ("e2e_request_latency", "request_queue_time", "request_prefill_time", "request_decode_time"):
        assert gained[f"{name}_seconds_count"] == len(reasons)
    parts = sum(gained[f"request_{part}_time_seconds_sum"] for part in ("queue", "prefill", "decode"))
    assert parts == pytest.approx(gained["e2e_request_latency_seconds_sum"])
    assert gained["request_max_num_generation_tokens_count"] == len(usages)
    # A step computes at least each prompt token that was not cached and each token but the last of an answer.
    least = gained["prompt_tokens_total"] - gained["prefix_cache_hits_total"] + num_output - len(reasons)
    assert least <= gained["iteration_tokens_total_sum"] <= least + left + 2 * (len(reasons) + 1)
    assert (after["num_requests_running"], after["num_requests_waiting"], after["kv_cache_usage_perc"]) == (
        0,
        0,
        0,
    )


def stream(watched: Watched, body: dict[str, Any]) -> Any:
    """The usage of a streamed answer."""
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    lines = httpx.post(watched.server.url + "/v1/chat/completions", json=asked, timeout=60).text.splitlines()
    assert lines[-2] == "data: [DONE]"
    return json.loads(lines[-4].removeprefix("data: "))["usage"]


def leave(watched: Watched) -> None:
    """Ask for a long answer and leave after its first words."""
    asked = {"messages": MESSAGES, "max_tokens": 7000, "ignore_eos": True, "stream": True}
    url = watched.server.url + "/v1/chat/completions"
    with httpx.stream("POST", url, json=asked, timeout=60) as answer:
        for i, line in enumerate(answer.iter_lines()):
            if i > 4 and line:
                assert watched.metrics()["num_requests_running"] == 1
                assert httpx.get(watched.server.url + "/load").json()["server_load"] == 1
                return


def test_both_ports_say_the_same(watched: Watched) -> None:
    watched.server.wait_idle()
    main = httpx.get(watched.server.url + "/metrics", timeout=30)
    side = httpx.get(f"http://127.0.0.1:{watched.metrics_port}/metrics", timeout=30)
    assert (
        main.headers["content-type"]
        == side.headers["content-type"]
        == "text/plain; version=0.0.4; charset=utf-8"
    )

    def model_lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("vllm:")]

    assert model_lines(main.text) == model_lines(side.text) != []
    refused = httpx.post(f"http://127.0.0.1:{watched.metrics_port}/v1/chat/completions", json={})
    assert refused.status_code == 404


def test_the_operators_pages(watched: Watched) -> None:
    url = watched.server.url
    assert httpx.get(url + "/version").json() == {"version": trioserve.__version__}
    info = httpx.get(url + "/server_info").json()
    assert (info["state"], info["model"]["name"]) == ("ready", "builtin")
    assert info["settings"]["metrics_port"] == watched.metrics_port
    assert info["works"]["attention"].startswith("cpu")
    assert info["statistics"]["num_blocks"] == info["works"]["num_blocks"] > 0
    for ping in (httpx.get(url + "/ping"), httpx.post(url + "/ping")):
        assert (ping.status_code, ping.content) == (200, b"")


def test_sagemakers_way_in(watched: Watched) -> None:
    asked = {"messages": [PARIS], "temperature": 0}
    whole = watched.post("/invocations", asked)
    assert whole["choices"][0]["message"]["content"] == "The capital of France is Paris."
    text = watched.post("/invocations", {"prompt": "The capital of", "max_tokens": 2})
    assert text["object"] == "text_completion"
    with httpx.stream("POST", watched.server.url + "/invocations", json={**asked, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert list(answer.iter_lines())[-2] == "data: [DONE]"


def test_the_log_has_a_line_for_requests_and_none_for_probes(watched: Watched) -> None:
    for path in ("/live", "/metrics", "/load"):
        httpx.get(watched.server.url + path)
    wait_until(lambda: "GET /load 200" in watched.server.log, 5, lambda: watched.server.log)
    for path in ("/live", "/ready", "/health", "/metrics", "/ping"):
        assert f"GET {path} " not in watched.server.log


def test_metrics_are_there_while_the_server_drains(tmp_path: Path) -> None:
    port = free_port()
    settings = {"metrics_port": port, "drain_timeout_s": 60}
    with running_server(
        tmp_path / "log", settings=settings
    ) as server:  # under hypercorn, whose --bind counts
        watched = Watched(server, port)
        asked = {"messages": MESSAGES, "max_tokens": 500, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", server.url + "/v1/chat/completions", json=asked, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            side = f"http://127.0.0.1:{port}"
            with server.paused():
                server.terminate()
                wait_until(
                    lambda: httpx.get(side + "/ready").json() == {"state": "closing"}, 10, lambda: server.log
                )
                assert watched.metrics()["num_requests_running"] == 1
                with pytest.raises(httpx.TransportError):
                    httpx.get(server.url + "/metrics")
            assert list(lines)[-2] == "data: [DONE]"
        assert server.wait() == 0
        with pytest.raises(httpx.TransportError):
            httpx.get(side + "/ready")
