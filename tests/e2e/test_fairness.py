"""Keys take turns: who has asked for much does not keep out who asks for little."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.e2e.harness import running_server, wait_until

NUM_REQUESTS, NUM_PROMPTS = 4, 100


def test_a_single_request_does_not_wait_for_hundreds_of_another_key(tmp_path: Path) -> None:
    settings = {"api_key": "many,single", "max_num_seqs": 4, "drain_timeout_s": 1}
    with running_server(tmp_path / "log", settings=settings) as server:

        def ask(key: str, num_prompts: int) -> httpx.Response:
            body = {"prompt": ["Once"] * num_prompts, "max_tokens": 60, "ignore_eos": True}
            headers = {"authorization": f"Bearer {key}"}
            return httpx.post(server.url + "/v1/completions", json=body, headers=headers, timeout=120)

        def num_waiting() -> int:
            health = httpx.get(server.url + "/health", headers={"authorization": "Bearer single"}).json()
            return int(health["num_waiting"])

        with ThreadPoolExecutor(NUM_REQUESTS) as threads:
            many = [threads.submit(ask, "many", NUM_PROMPTS) for _ in range(NUM_REQUESTS)]
            wait_until(lambda: num_waiting() > 3 * NUM_PROMPTS, 20, lambda: server.log)
            assert ask("single", 1).status_code == 200
            assert num_waiting() > NUM_PROMPTS, "the others wait still"
            assert {answer.result().status_code for answer in many} == {200}
