"""A server whose ranks share the model: the answers of one rank, and an end that is honest."""

import concurrent.futures
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.harness import TRIOSERVE, Server, running_server, wait_until
from tests.e2e.test_works import lines_of
from trioserve.worker.machine import usable_cores

pytestmark = pytest.mark.skipif(usable_cores().count < 2, reason="two ranks need a core each")

QUESTIONS = [
    "What is the capital of France?",
    "What is 12 plus 30?",
    "What is the capital of Japan?",
    "Say hello in three words.",
    "What is 7 times 8?",
    "List three fruits.",
]
SETTINGS: dict[str, object] = {"tensor_parallel_size": 2, "step_timeout_s": 1, "step_stacks_s": 0.5}


def ask(server: Server, question: str, **fields: object) -> dict[str, Any]:
    """The whole greedy answer."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 60,
        **fields,
    }
    answer = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    message: dict[str, Any] = answer.json()["choices"][0]
    return message


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("shared") / "log", settings=SETTINGS) as server:
        yield server


def test_two_ranks_answer_as_one_does(server: Server, shared: Server) -> None:
    assert len(shared.rank_pids()) == 2
    assert "in each of 2 ranks" in shared.log
    for question in QUESTIONS:
        assert ask(shared, question) == ask(server, question)
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
    one, two = (ask(each, QUESTIONS[0], response_format=form) for each in (server, shared))
    assert one == two and "Paris" in one["message"]["content"]


def test_what_is_told_of_the_works_is_of_all_ranks(server: Server, shared: Server) -> None:
    alone, together = (httpx.get(each.url + "/server_info", timeout=10).json() for each in (server, shared))
    assert together["settings"]["tensor_parallel_size"] == 2
    assert together["works"]["weights_bytes"] >= alone["works"]["weights_bytes"]
    assert together["works"]["num_blocks"] == alone["works"]["num_blocks"]


@pytest.mark.parametrize(
    ("struck", "signum"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)]
)
def test_a_lost_rank_ends_its_streams_with_an_error_and_all_are_replaced(
    shared: Server, struck: int, signum: signal.Signals
) -> None:
    before = sorted(shared.rank_pids())
    at = 0.0

    def strike() -> None:
        nonlocal at
        os.kill(before[struck], signum)
        at = time.monotonic()

    lines = lines_of(shared, then=strike)
    assert '"error"' in lines[-1] and "[DONE]" not in lines[-1]
    assert time.monotonic() - at < (1.5 if signum is signal.SIGKILL else 3.0)
    shared.wait_ready(30)
    wait_until(lambda: len(shared.rank_pids()) == 2, 5, lambda: f"ranks: {shared.rank_pids()}")
    assert not set(before) & set(shared.rank_pids())
    assert "Paris" in ask(shared, QUESTIONS[0])["message"]["content"]
    shared.wait_idle()


def test_preemption_and_prefix_hits_change_no_token(shared: Server, tmp_path: Path) -> None:
    """38 sequences of 32 prompts in a cache for 6: the texts of ranks that had each to themselves."""
    prompts = [f"Story number {number} begins" for number in range(32)]
    body = {"max_tokens": 40, "ignore_eos": True, "temperature": 0}
    alone = [
        httpx.post(shared.url + "/v1/completions", json={**body, "prompt": prompt}, timeout=60).json()
        for prompt in prompts[:6]
    ]
    crowded: dict[str, object] = {
        "max_num_seqs": 16,
        "max_num_batched_tokens": 32,
        "max_model_len": 256,
        "num_kv_blocks": 20,
    }
    with running_server(tmp_path / "crowded", settings=SETTINGS | crowded) as server:
        answer = httpx.post(
            server.url + "/v1/completions", json={**body, "prompt": prompts + prompts[:6]}, timeout=120
        ).json()
        health = server.health()
        server.wait_idle()
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts[:6] == texts[32:] == [one["choices"][0]["text"] for one in alone]
    assert health["num_preemptions"] > 0


def test_a_drain_lets_streams_end_and_leaves_no_rank(tmp_path: Path) -> None:
    with running_server(tmp_path / "log", settings=SETTINGS, command=TRIOSERVE) as server:
        pids = server.rank_pids()
        with concurrent.futures.ThreadPoolExecutor() as threads:
            body = {"prompt": "Once", "max_tokens": 300, "ignore_eos": True}
            running = threads.submit(httpx.post, server.url + "/v1/completions", json=body, timeout=60)
            wait_until(lambda: server.health()["num_running"] == 1, 5, lambda: "it does not run")
            server.terminate()
            answer = running.result()
        assert answer.json()["usage"]["completion_tokens"] == 300
        assert server.wait(20) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_more_ranks_than_cores_stop_the_start(tmp_path: Path) -> None:
    settings = {"tensor_parallel_size": 64}
    with running_server(tmp_path / "log", settings=settings, command=TRIOSERVE, wait_ready=False) as server:
        assert server.wait(20) == 78
        assert "tensor_parallel_size = 64: each rank needs a core" in server.log
