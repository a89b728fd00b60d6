"""Many requests share the model: nobody stalls the others, and nobody changes what others get."""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import Server, running_server, wait_until

LONG_PROMPT = [100 + i % 1000 for i in range(4000)]


def complete(server: Server, **fields: object) -> str:
    """The text of one greedy completion."""
    body = {"temperature": 0, **fields}
    answer = httpx.post(server.url + "/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


@contextmanager
def streaming(server: Server) -> Iterator[list[str]]:
    """An answer of 8,000 tokens is under way while the block is open; the lines of it that came."""
    lines: list[str] = []
    stop = threading.Event()

    def read() -> None:
        body = {"prompt": "Once", "max_tokens": 8000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    lines.append(line)
                if stop.is_set():
                    return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_until(lambda: len(lines) > 5, 20, lambda: "the stream does not start")
        yield lines
    finally:
        stop.set()
        reader.join()


def step_sizes(server: Server) -> Counter[int]:
    """How many steps computed at most so many tokens, and more than the next smaller number here."""
    text = httpx.get(server.url + "/metrics", timeout=10).text
    pattern = r'^vllm:iteration_tokens_total_bucket\{.*le="([0-9.]+)".*\} ([0-9.]+)$'
    found = [(int(float(bound)), int(float(count))) for bound, count in re.findall(pattern, text, re.M)]
    assert found, text
    return Counter(
        {bound: count - below for (bound, count), (_, below) in zip(found, [(0, 0), *found], strict=False)}
    )


def test_a_long_prompt_does_not_stop_the_others(tmp_path: Path) -> None:
    """Steps of 128 tokens cut 4,000 tokens into 32 chunks, and each brings the running stream a token."""
    settings = {"max_num_seqs": 8, "max_num_batched_tokens": 128}
    with running_server(tmp_path / "log", settings=settings) as server, streaming(server) as events:
        before = len(events)
        complete(server, prompt=LONG_PROMPT, max_tokens=1)
        assert len(events) - before >= 25


@pytest.mark.parametrize(("target_ms", "largest", "num_steps"), [(0.001, 64, 125), (0, 512, 8)])
def test_a_step_beside_others_takes_as_many_tokens_of_prompts_as_there_is_time_for(
    tmp_path: Path, target_ms: float, largest: int, num_steps: int
) -> None:
    """4,000 tokens come 32 at a time where nothing is fast enough, and 511 at a time where nothing is asked for."""
    settings = {"max_num_batched_tokens": 512, "inter_token_target_ms": target_ms}
    with running_server(tmp_path / "log", settings=settings) as server, streaming(server) as events:
        complete(server, prompt=LONG_PROMPT[::20], max_tokens=1)  # now it is known what prompts take
        before, num_events = step_sizes(server), len(events)
        complete(server, prompt=LONG_PROMPT, max_tokens=1)
        sizes = step_sizes(server) - before
        assert len(events) - num_events >= num_steps - 3
    assert max(sizes) == largest
    assert num_steps <= sizes[largest] <= num_steps + 1


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
