"""Tokens a second through HTTP, against those of the same engine without it."""

import gc
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import httpx
import trio
from rich.console import Console
from rich.table import Table

from benchmarks.http.events import BODY
from benchmarks.http.processes import Served, product
from benchmarks.http.streams import opened
from trioserve.builtin import MODEL_DIR
from trioserve.core.sampling import SamplingParams
from trioserve.core.sequence import Sequence
from trioserve.engine.checkpoint import open_model
from trioserve.engine.engine import Engine
from trioserve.engine.lifecycle import Lifecycle, ServerState
from trioserve.engine.supervisor import supervise
from trioserve.engine.works import Works
from trioserve.output.vocabulary import load_vocabulary
from trioserve.prompt.renderer import Renderer
from trioserve.settings import Settings

_STREAMS: Final = (8, 32)
_BODY: Final = BODY | {"temperature": 0.0}
_COUNTER: Final = "vllm:generation_tokens_total"
_WARM_S: Final = 0.5
_WINDOW_S: Final = 3.0
_S_SHAPE: Final = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "intermediate_size": 1536,
}
"""SmolLM2-135M's layers with random weights; the vocabulary is the built-in model's, so that tokens have texts."""


def main(rounds: int, peer_python: str) -> None:  # there is no peer here
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with _s_folder() as folder:
        models = {"built-in": {}, "S's layers": {"model": folder, "load_format": "dummy"}}
        for name, settings in models.items():
            for num_streams, rates in trio.run(compare, settings, rounds):
                found.setdefault((name, num_streams), []).append(rates)
    show(found)


async def compare(settings: dict[str, str], rounds: int) -> list[tuple[int, tuple[float, float]]]:
    """Tokens a second through HTTP and without, by number of streams. Both servers are up all the while, and the one
    that is not measured has nothing to do; who goes first changes from round to round."""
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    found = []
    with product(*flags) as served:
        async with _alone(Settings(**settings)) as (engine, prompt):  # type: ignore[arg-type]  # checked there
            for number in range(rounds):
                for num_streams in _STREAMS:
                    if number % 2:
                        alone = await alone_per_s(engine, prompt, num_streams)
                        through = through_http_per_s(served, num_streams)
                    else:
                        through = through_http_per_s(served, num_streams)
                        alone = await alone_per_s(engine, prompt, num_streams)
                    found.append((num_streams, (through, alone)))
    return found


def through_http_per_s(served: Served, num_streams: int) -> float:
    """Blocks: meanwhile the engine of this process rests."""
    with opened(served, num_streams, _BODY) as streams:
        streams.read(_WARM_S)
        before, began_at = _num_output_tokens(served), time.monotonic()
        streams.read(_WINDOW_S)
        num_tokens = _num_output_tokens(served) - before
        return num_tokens / (time.monotonic() - began_at)


async def alone_per_s(engine: Engine, prompt: list[int], num_streams: int) -> float:
    """Each stream is read as the engine makes it, and nothing is done with it."""
    params = SamplingParams(max_tokens=_BODY["max_tokens"], temperature=_BODY["temperature"])

    async def read() -> None:
        with engine.stream([Sequence(prompt, params)]) as mailbox:
            while not mailbox.is_done:
                await mailbox.receive(lambda deltas: all(delta.finish_reason is None for _, delta in deltas))

    async with trio.open_nursery() as nursery:
        before = engine.meter.num_output_tokens
        for _ in range(num_streams):
            nursery.start_soon(read)
        while engine.meter.num_output_tokens - before < 3 * num_streams:  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.05)
        await trio.sleep(_WARM_S)
        before, began_at = engine.meter.num_output_tokens, time.monotonic()
        await trio.sleep(_WINDOW_S)
        num_tokens = engine.meter.num_output_tokens - before
        rate = num_tokens / (time.monotonic() - began_at)
        nursery.cancel_scope.cancel()
    return rate


@asynccontextmanager
async def _alone(settings: Settings) -> AsyncIterator[tuple[Engine, list[int]]]:
    """An engine in this process, and the prompt."""
    model = open_model(settings)
    renderer = Renderer.load(model.tokenizer_path)
    prompt = await renderer.chat(_BODY["messages"])
    lifecycle = Lifecycle()
    engine = Engine(settings, model, load_vocabulary(renderer.tokenizer.backend), lifecycle)
    gc.freeze()
    gc.set_threshold(50_000)  # as the server does
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            works = Works(settings, model, lifecycle)
            await supervise(engine, works.start, lifecycle, max_restarts=0)

        nursery.start_soon(run)
        while lifecycle.state is ServerState.STARTING:
            await lifecycle.wait_changed()
        yield engine, prompt
        nursery.cancel_scope.cancel()


def _num_output_tokens(served: Served) -> int:
    """That the server has made since it began."""
    text = httpx.get(f"http://127.0.0.1:{served.port}/metrics", timeout=30).text
    return int(sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(_COUNTER)))


@contextmanager
def _s_folder() -> Iterator[str]:
    """A model folder of that shape, without weights."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "generation_config.json",
        ):
            if (MODEL_DIR / name).is_file():
                shutil.copy(MODEL_DIR / name, folder)
        config = json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))
        (Path(folder) / "config.json").write_text(json.dumps(config | _S_SHAPE), encoding="utf-8")
        yield folder


def show(found: dict[tuple[str, int], list[tuple[float, float]]]) -> None:
    table = Table(title="tokens a second, all streams together: medians, and of the ratios (range)")
    for column in ("model", "streams", "through HTTP", "engine alone", "ratio"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for (name, num_streams), runs in found.items():
        ratios = [rate / alone for rate, alone in runs]
        table.add_row(
            name,
            str(num_streams),
            f"{statistics.median(rate for rate, _ in runs):,.0f}",
            f"{statistics.median(alone for _, alone in runs):,.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        )
    Console(width=100).print(table)
