"""Tokens a second through HTTP, against those of the same engine without it."""

import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio
from rich.console import Console
from rich.table import Table

from benchmarks.http.events import BODY
from benchmarks.http.processes import product
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
        for _ in range(rounds):
            for name, settings in models.items():
                alone = trio.run(alone_per_s, Settings(**settings))  # type: ignore[arg-type]  # checked there
                for num_streams, rate in zip(_STREAMS, through_http_per_s(settings), strict=True):
                    found.setdefault((name, num_streams), []).append((rate, alone[num_streams]))
    show(found)


def through_http_per_s(settings: dict[str, str]) -> Iterator[float]:
    """Pieces of text a second, by number of streams."""
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    with product(*flags) as served:
        for num_streams in _STREAMS:
            with opened(served, num_streams, BODY) as streams:
                streams.read(_WARM_S)
                yield streams.read(_WINDOW_S) / _WINDOW_S


async def alone_per_s(settings: Settings) -> dict[int, float]:
    """The same of the engine in this process, read by nothing else."""
    model = open_model(settings)
    renderer = Renderer.load(model.tokenizer_path)
    prompt = await renderer.chat(BODY["messages"])
    lifecycle = Lifecycle()
    engine = Engine(settings, model, load_vocabulary(renderer.tokenizer.backend), lifecycle)
    rates = {}
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            works = Works(settings, model, lifecycle)
            await supervise(engine, works.start, lifecycle, max_restarts=0)

        nursery.start_soon(run)
        while lifecycle.state is ServerState.STARTING:
            await lifecycle.wait_changed()
        for num_streams in _STREAMS:
            rates[num_streams] = await _rate(engine, prompt, num_streams)
        nursery.cancel_scope.cancel()
    return rates


async def _rate(engine: Engine, prompt: list[int], num_streams: int) -> float:
    params = SamplingParams(max_tokens=BODY["max_tokens"], temperature=BODY["temperature"])
    sequences = [Sequence(prompt, params) for _ in range(num_streams)]
    num_pieces = num_begun = 0
    counts_from, begun = float("inf"), trio.Event()
    async with trio.open_nursery() as nursery:

        async def read(seq: Sequence) -> None:
            nonlocal num_pieces, num_begun
            with engine.stream([seq]) as mailbox:
                is_first = True
                while not mailbox.is_done:
                    for _, delta in await mailbox.receive():
                        num_begun += is_first
                        is_first = False
                        if num_begun == num_streams:
                            begun.set()
                        if delta.text and trio.current_time() >= counts_from:
                            num_pieces += 1

        for seq in sequences:
            nursery.start_soon(read, seq)
        await begun.wait()
        counts_from = trio.current_time() + _WARM_S
        await trio.sleep_until(counts_from + _WINDOW_S)
        counted = num_pieces
        nursery.cancel_scope.cancel()
    return counted / _WINDOW_S


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
    table = Table(title="pieces of text a second, all streams together: medians, and of the ratios (range)")
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
