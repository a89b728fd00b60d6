"""A token under a schema against a free one: wall time and the rank's CPU, through HTTP.

The built-in model, and one of the shape of SmolLM2-135M with random weights: what a schema costs is a matter of
microseconds a token, and a small model has few of those.
"""

import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.structured.schemas import ENDLESS
from benchmarks.structured.serving import Served, load, running
from trioserve.builtin import MODEL_DIR

_CLIENTS = (1, 8, 32)
_TOKENS = 96
_REQUESTS_PER_CLIENT = 2
_KINDS: dict[str, dict[str, Any]] = {"free": {}, "schema": {"guided_json": ENDLESS}}
_SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
}


def main(rounds: int) -> None:
    """Measure in turns and print a row for each model and number of clients."""
    table = Table(
        "model",
        "clients",
        "tokens/s, free",
        "under a schema",
        "wall a token, ratio",
        "rank CPU a token, ratio",
    )
    with running() as served:
        _measure(served, "built-in", rounds, table)
    with tempfile.TemporaryDirectory() as folder:
        write_135m(Path(folder))
        with running("--model", folder, "--load-format", "dummy") as served:
            _measure(served, "135M", rounds, table)
    Console().print(table)


def write_135m(folder: Path) -> None:
    """A model folder of that shape, without weights; its tokenizer is the built-in model's."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (MODEL_DIR / name).is_file():
            shutil.copy(MODEL_DIR / name, folder)
    config = json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | _SHAPE), encoding="utf-8")


def _measure(served: Served, model: str, rounds: int, table: Table) -> None:
    for clients in _CLIENTS:
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in _KINDS}
        for kind in _KINDS:
            _run(served, clients, kind)  # caches, kernels for this batch size
        for _ in range(rounds):
            for kind, points in found.items():
                points.append(_run(served, clients, kind))
        table.add_row(model, str(clients), *_row(found))


def _run(served: Served, clients: int, kind: str) -> tuple[float, float]:
    """Tokens a second, and the rank's CPU a token in microseconds."""
    before = served.rank_cpu_s()
    num_requests = clients * _REQUESTS_PER_CLIENT
    point = load(served, clients=clients, requests=num_requests, tokens=_TOKENS, fields=_KINDS[kind])
    spent = served.rank_cpu_s() - before
    return point["output_tokens_per_s"], 1e6 * spent / (num_requests * _TOKENS)


def _row(found: dict[str, list[tuple[float, float]]]) -> list[str]:
    speeds = {kind: statistics.median(speed for speed, _ in points) for kind, points in found.items()}
    pairs = list(zip(found["free"], found["schema"], strict=True))
    walls = [free / bound for (free, _), (bound, _) in pairs]
    cpus = [bound / free for (_, free), (_, bound) in pairs]
    return [
        f"{speeds['free']:,.0f}",
        f"{speeds['schema']:,.0f}",
        *(
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            for ratios in (walls, cpus)
        ),
    ]
