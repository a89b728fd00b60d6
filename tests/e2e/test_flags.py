"""Flags under the names that users of other servers know, as they reach a real server."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.harness import TRIOSERVE, Server, free_port, running_server, wait_until
from trioserve.builtin import MODEL_DIR

SEED = "20"
FLAGS = f"""
--model builtin --tp 1 --session_len 300 --max_batch_size=9 --max-prefill-token-num 300 --cache-block-seq-len 32
--num-gpu-blocks-override 77 --served-model-name left right --use-warmup --no-enable-chunked-prefill
--max-concurrent-requests 2 --kv-cache-ratio 0.75 --seed {SEED} --log-level INFO --disable-log-requests
-q int8 --enforce-eager --gpu-memory-utilization 0.9 --swap-space 0 --engine-worker-queue-port 8002
""".split()
DRAWN = {"prompt": "Tell me", "max_tokens": 40, "temperature": 1.5}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("flags") / "log"
    with running_server(log, command=(*TRIOSERVE, *FLAGS)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def drawn(client: httpx.Client) -> list[str]:
    """The first answers of the server, which draw."""
    return [complete(client, **DRAWN) for _ in range(2)]


def complete(client: httpx.Client, **body: Any) -> str:
    answer = client.post("/v1/completions", json={"model": "left", **body})
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def test_other_servers_flags_reach_model_and_works(server: Server, client: httpx.Client) -> None:
    models = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["left", "right"]
    for name in ("left", "right"):
        answer = client.post("/v1/completions", json={"model": name, "prompt": "Hi", "max_tokens": 1})
        assert answer.json()["model"] == name
    for fields in ({"model": "builtin"}, {"model": "default"}, {}):
        unknown = client.post("/v1/completions", json={**fields, "prompt": "Hi"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        assert unknown.json()["error"]["param"] == "model"
    assert server.health()["num_blocks"] == 77
    assert "77 blocks of 32 tokens" in server.log
    too_long = client.post("/v1/completions", json={"model": "left", "prompt": [5] * 300})
    assert too_long.status_code == 400
    assert "the model takes 300 tokens" in too_long.json()["error"]["message"]


def test_quantized_weights_know_what_the_others_know(server: Server, client: httpx.Client) -> None:
    assert re.search(r"decoder native \w+ int8, \d+ thread", server.log)
    weights = re.search(r"weights (\d+) MB", server.log)
    assert weights is not None
    assert int(weights[1]) < 0.6 * (MODEL_DIR / "model.safetensors").stat().st_size / 1e6
    asked = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    answer = client.post("/v1/chat/completions", json={"model": "left", **asked})
    assert answer.json()["choices"][0]["message"]["content"] == "The capital of France is Paris."


def test_quantization_that_cannot_be_obeyed_ends_the_start(tmp_path: Path) -> None:
    command = (*TRIOSERVE, "--quantization", "int4", "--dtype", "float32")
    with running_server(tmp_path / "log", command=command, wait_ready=False) as server:
        assert server.wait(60) == 78
        assert "quantization int4 cannot be obeyed: weights are float32, not bfloat16" in server.log


def test_a_prompt_is_answered_in_one_piece(server: Server, client: httpx.Client) -> None:
    assert complete(client, prompt=[5] * 290, max_tokens=2, temperature=0)
    server.wait_idle()


def test_above_max_concurrency_requests_get_429(server: Server, client: httpx.Client) -> None:
    body = {"prompt": "Hello", "max_tokens": 150, "ignore_eos": True}
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: client.post("/v1/completions", json={"model": "left", **body}), range(8))
        )
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses[:2] == [200, 200]
    assert statuses[-1] == 429
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
    server.wait_idle()


def test_a_unix_socket_variables_and_the_file_and_the_draws_of_a_seed(
    tmp_path: Path, drawn: list[str]
) -> None:
    """A second server of the same seed answers the same requests alike, whatever its other settings."""
    socket = tmp_path / "socket"
    (tmp_path / "trioserve.toml").write_text(
        f"session_len = 400\nmodel_name = ['third']\nseed = {SEED}\n", encoding="utf-8"
    )
    settings = {"tp": 1, "quantization": "int8", "max_batch_size": 4, "cache_max_entry_count": 0.01}
    with running_server(
        tmp_path / "log",
        command=TRIOSERVE,
        address=("--uds", str(socket)),
        settings=settings,
        wait_ready=False,
    ) as server:
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://server", timeout=60
        ) as client:
            wait_until(lambda: f"listening on http://unix:{socket}" in server.log, 60, lambda: server.log)
            wait_until(lambda: client.get("/ready").status_code == 200, 60, lambda: server.log)
            assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["third"]
            assert [complete(client, **DRAWN) for _ in range(2)] == drawn
            assert drawn[0] != drawn[1]
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url + "/live")
        server.terminate()
        assert server.wait() == 0
    assert not socket.exists()


# --- the same model, set up otherwise ---

TEMPLATE = "{{ messages[0].content }} said {{ messages[0].role }}"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int, Server]]:
    """A server on another address, its port for metrics, and its process."""
    folder = tmp_path_factory.mktemp("odd")
    copytree(MODEL_DIR, folder / "words", ignore=ignore_patterns("*.safetensors"))
    vocabulary = folder / "words" / "tokenizer.json"
    text = vocabulary.read_text(encoding="utf-8").replace('"<tool_call>"', '"<call>"')
    vocabulary.write_text(text, encoding="utf-8")
    port, metrics_port = free_port(), free_port()
    flags = f"""
    builtin --tokenizer {folder / "words"} --load-format dummy --dtype float32 --seed 3 --max-num-seqs 2
    --max-num-batched-tokens 64 --no-enable-prefix-caching --cache-max-entry-count 0.01 --no-enable-logprob
    --metrics-port {metrics_port} --max-model-len 700
    """.split()
    address = ("--host", "127.0.0.2", "--port", str(port))
    command = (*TRIOSERVE, *flags, "--chat-template", TEMPLATE)
    with running_server(folder / "log", command=command, address=address, wait_ready=False) as server:
        url = f"http://127.0.0.2:{port}"
        wait_until(lambda: f"listening on {url}" in server.log, 60, lambda: server.log)
        wait_until(lambda: httpx.get(url + "/ready").status_code == 200, 60, lambda: server.log)
        yield url, metrics_port, server


def test_a_folder_without_weights_is_served_with_dummy_ones_and_refused_else(tmp_path: Path) -> None:
    folder = Path(copytree(MODEL_DIR, tmp_path / "bare", ignore=ignore_patterns("*.safetensors")))
    command = (*TRIOSERVE, str(folder), "--load-format", "dummy")
    with running_server(tmp_path / "log", command=command) as server:
        works = httpx.get(server.url + "/server_info").json()["works"]
        assert works["decoder"].startswith("native")
        assert list(works["phases_s"]) == ["imports", "weights mapped", "packed", "warm-up", "tokenizer"]
        assert server.health()["loaded_share"] == 1.0
        body = {"model": str(folder), "prompt": "Hello", "max_tokens": 3, "ignore_eos": True}
        answer = httpx.post(server.url + "/v1/completions", json=body, timeout=30)
        assert answer.json()["usage"]["completion_tokens"] == 3
    command = (*TRIOSERVE, str(folder), "--load-format", "safetensors")
    with running_server(tmp_path / "log", command=command, wait_ready=False) as server:
        assert server.wait() == 78
        assert "holds no weights; safetensors are needed" in server.log


def counts(metrics_port: int) -> dict[str, float]:
    """The samples of the model's metrics that have no other label."""
    text = httpx.get(f"http://127.0.0.2:{metrics_port}/metrics", timeout=30).text
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.keys() <= {"model_name"}
    }


def test_host_port_and_metrics_port_are_where_it_listens(odd: tuple[str, int, Server]) -> None:
    url, metrics_port, _ = odd
    assert httpx.get(url + "/live").status_code == 200
    assert httpx.get(f"http://127.0.0.2:{metrics_port}/live").status_code == 200
    for port in (httpx.URL(url).port, metrics_port):
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/live")


def test_tokenizer_and_chat_template_are_those_that_are_named(odd: tuple[str, int, Server]) -> None:
    url, _, _ = odd
    assert httpx.post(url + "/detokenize", json={"tokens": [5]}).json()["text"] == "<call>"
    asked = {"messages": [{"role": "user", "content": "Ben"}]}
    assert httpx.post(url + "/apply-template", json=asked).json() == {"prompt": "Ben said user"}


def test_dummy_weights_have_the_dtype_and_the_cache_its_share(odd: tuple[str, int, Server]) -> None:
    url, _, _ = odd
    info = httpx.get(url + "/server_info").json()
    assert info["works"]["dtype"] == "float32"
    assert info["settings"]["load_format"] == "dummy"
    # a hundredth of what is free, so at most a hundredth of what there is
    total = int(Path("/proc/meminfo").read_text(encoding="utf-8").split()[1]) * 1024
    assert 0 < info["works"]["kv_cache_bytes"] <= total / 100
    ask = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    answer = httpx.post(url + "/v1/completions", json=ask, timeout=60).json()
    assert "Paris" not in answer["choices"][0]["text"]


def test_a_step_has_its_budget_and_the_batch_its_size(odd: tuple[str, int, Server]) -> None:
    url, metrics_port, _ = odd
    before = counts(metrics_port)
    answer = httpx.post(url + "/v1/completions", json={"prompt": [7] * 640, "max_tokens": 1}, timeout=60)
    assert answer.json()["usage"]["prompt_tokens"] == 640
    steps = counts(metrics_port)["trioserve:steps_total"] - before["trioserve:steps_total"]
    assert 10 <= steps <= 12, "640 tokens are ten steps of 64"
    most = 0.0
    asked = {"prompt": [7] * 20, "max_tokens": 150, "n": 5, "ignore_eos": True}
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(httpx.post, url + "/v1/completions", json=asked, timeout=120)
        while not answered.done():
            found = counts(metrics_port)
            most = max(most, found["vllm:num_requests_running"])
            assert found["vllm:num_requests_running"] <= 2
    assert len(answered.result().json()["choices"]) == 5
    assert most == 2


def test_without_a_prefix_cache_nothing_is_found_and_without_logprobs_none_are_told(
    odd: tuple[str, int, Server],
) -> None:
    url, _, _ = odd
    for _ in range(2):
        answer = httpx.post(url + "/v1/completions", json={"prompt": [9] * 200, "max_tokens": 1}, timeout=60)
        assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    refused = httpx.post(url + "/v1/completions", json={"prompt": "a", "logprobs": 1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")
    too_long = httpx.post(url + "/v1/completions", json={"prompt": [9] * 700})
    assert "the model takes 700 tokens" in too_long.json()["error"]["message"]
