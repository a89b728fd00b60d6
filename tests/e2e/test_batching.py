"""Many requests share the model: nobody stalls the others, and nobody changes what others get."""

import json
import threading
from pathlib import Path

import httpx

from tests.e2e.harness import Server, running_server, wait_until


def complete(server: Server, **fields: object) -> str:
    """The text of one greedy completion."""
    body = {"temperature": 0, **fields}
    answer = httpx.post(server.url + "/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def test_a_long_prompt_does_not_stop_the_others(tmp_path: Path) -> None:
    """Steps of 128 tokens cut 4,000 tokens into 32 chunks, and each brings the running stream a token."""
    settings = {"max_num_seqs": 8, "max_num_batched_tokens": 128}
    with running_server(tmp_path / "log", settings=settings) as server:
        num_events = 0
        stop = threading.Event()

        def read_stream() -> None:
            nonlocal num_events
            body = {"prompt": "Once", "max_tokens": 8000, "ignore_eos": True, "stream": True}
            with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as answer:
                for line in answer.iter_lines():
                    num_events += line.startswith("data: ")
                    if stop.is_set():
                        return

        reader = threading.Thread(target=read_stream)
        reader.start()
        wait_until(lambda: num_events > 5, 20, lambda: "the stream does not start")
        before = num_events
        complete(server, prompt=[100 + i % 1000 for i in range(4000)], max_tokens=1)
        between = num_events - before
        stop.set()
        reader.join()
        assert between >= 25


def test_waiting_preemption_and_company_change_no_token(tmp_path: Path) -> None:
    """64 sequences in a cache for 6: greedy float32 texts are those of a server that had each to itself."""
    prompts = [f"Story number {i} begins" for i in range(64)]
    settings = {"dtype": "float32", "max_num_seqs": 16, "max_num_batched_tokens": 32}
    with running_server(tmp_path / "alone", settings=settings) as server:
        alone = [complete(server, prompt=prompt, max_tokens=40, ignore_eos=True) for prompt in prompts[:8]]
    crowded = settings | {"max_model_len": 256, "num_kv_blocks": 20}
    with running_server(tmp_path / "crowded", settings=crowded) as server:
        answer = httpx.post(
            server.url + "/v1/completions",
            json={"prompt": prompts, "max_tokens": 40, "ignore_eos": True, "temperature": 0},
            timeout=120,
        )
        texts = [choice["text"] for choice in answer.json()["choices"]]
        health = server.health()
        server.wait_idle()
    assert texts[:8] == alone
    assert health["num_preemptions"] > 0


def test_a_slow_reader_holds_nobody_up(tmp_path: Path) -> None:
    with running_server(tmp_path / "log") as server:
        body = json.dumps({"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True})
        with httpx.stream("POST", server.url + "/v1/completions", content=body, timeout=60) as _unread:
            assert complete(server, prompt="Hello", max_tokens=50, ignore_eos=True)
        server.wait_idle()
