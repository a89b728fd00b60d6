"""The real server over an emulated GPU: what clients get is what a CPU gives them."""

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.harness import Server, running_server

ROOT = Path(__file__).parents[2]
EMULATED = (sys.executable, "-m", "tests.emu.server", "serve")
SETTINGS = {
    "dtype": "float16",
    "max_model_len": 512,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 64,
    "num_kv_blocks": 64,
}
QUESTIONS = ["Hello!", "What is the capital of France?", "Count from one to five.", "Write a short poem."]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """One over the emulator, one over the CPU, with the same weights."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        with (
            running_server(
                folder / "gpu", command=EMULATED, settings=SETTINGS | {"device": "cuda", "swap_space": 0.05}
            ) as on_gpu,
            running_server(folder / "cpu", settings=SETTINGS | {"device": "cpu"}) as on_cpu,
        ):
            yield on_gpu, on_cpu


def answer(server: Server, question: str, **wishes: Any) -> tuple[str, str | None]:
    """The text that a stream brings, and why it ends."""
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120) as client:
        stream: Any = client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": question}],
            stream=True,
            **{"max_completion_tokens": 10, "temperature": 0.0, "seed": 5} | wishes,
        )
        chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
        return "".join(chunk.delta.content or "" for chunk in chunks), chunks[-1].finish_reason


def answers(server: Server, **wishes: Any) -> list[tuple[str, str | None]]:
    """To all questions at once."""
    with ThreadPoolExecutor(len(QUESTIONS)) as threads:
        return list(threads.map(lambda question: answer(server, question, **wishes), QUESTIONS))


def test_streams_bring_the_text_of_a_cpu(servers: tuple[Server, Server]) -> None:
    on_gpu, on_cpu = servers
    found = answers(on_gpu)
    assert found == answers(on_cpu)
    assert all(text for text, _ in found)
    log = on_gpu.log
    assert "decoder cuda on emulated GPU, 12 graphs" in log


def test_seeds_bans_and_penalties_count_there_too(servers: tuple[Server, Server]) -> None:
    on_gpu, on_cpu = servers
    wishes: dict[str, Any] = {
        "temperature": 0.8,
        "top_p": 0.9,
        "frequency_penalty": 0.7,
        "logit_bias": {"20": -50},
    }
    assert answers(on_gpu, **wishes) == answers(on_cpu, **wishes)


def test_an_answer_is_what_its_schema_says(servers: tuple[Server, Server]) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "json_schema": {"name": "ok", "schema": schema, "strict": True}}
    on_gpu, on_cpu = servers
    wishes: dict[str, Any] = {"response_format": form, "max_completion_tokens": 60}
    text, reason = answer(on_gpu, "Is the sky blue?", **wishes)
    assert (text, reason) == answer(on_cpu, "Is the sky blue?", **wishes)
    assert reason == "stop"


def test_a_prompt_that_the_gpu_had_no_room_for_comes_back_from_the_host(
    servers: tuple[Server, Server],
) -> None:
    """Four prompts of 400 tokens take 100 of 64 blocks, so the first one is gone when it comes again."""
    on_gpu, _ = servers

    def ask(first: int) -> tuple[str, int]:
        body = {
            "prompt": [300 + (first + place) % 900 for place in range(400)],
            "max_tokens": 4,
            "temperature": 0,
        }
        reply = httpx.post(on_gpu.url + "/v1/completions", json=body, timeout=120).json()
        return reply["choices"][0]["text"], reply["usage"]["prompt_tokens_details"]["cached_tokens"]

    text, num_cached = ask(0)
    assert num_cached == 0
    for first in (200, 400, 600):
        assert ask(first)[1] == 0
    assert ask(0) == (text, 384)
    metrics = httpx.get(on_gpu.url + "/metrics", timeout=10).text
    moved = {
        way: float(re.search(rf"^trioserve:kv_blocks_swapped_{way}_total.* (\S+)$", metrics, re.M)[1])  # type: ignore[index]
        for way in ("in", "out")
    }
    assert moved["in"] > 0
    assert moved["out"] >= moved["in"]
