"""llguidance and xgrammar on the same schemas: how long until a grammar is ready, and a step of an answer."""

import json
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.structured.schemas import TYPICAL
from trioserve.builtin import MODEL_DIR
from trioserve.core.forms import AnswerForm, JsonForm
from trioserve.grammars.backend import Backend, Compiled
from trioserve.grammars.registry import open_backend

_VOCAB_SIZE = 4096
_EOS = (2,)
_NUM_MASKS = 64


def main(rounds: int) -> None:
    """Print a row for each schema and library."""
    names = ["guidance", *(["xgrammar"] if find_spec("xgrammar") else [])]
    table = Table("schema", "library", "write and compile, ms", "mask and accept, us: median", "95 %")
    for name, schema in TYPICAL.items():
        form = AnswerForm(body=JsonForm(schema=json.dumps(schema)))
        for library in names:
            table.add_row(name, library, *_measure(library, form, rounds))
    Console().print(table)
    if len(names) == 1:
        print("xgrammar is not installed: pip install trioserve[xgrammar]")


def _measure(library: str, form: AnswerForm, rounds: int) -> list[str]:
    compile_ms, masks_us = [], list[float]()
    for _ in range(rounds):
        backend = open_backend(
            library,
            tokenizer_path=MODEL_DIR,
            vocab_size=_VOCAB_SIZE,
            eos_token_ids=_EOS,
            disable_any_whitespace=False,
            max_depth=64,
        )
        took, compiled = _timed(lambda: backend.compile(backend.write(form)))  # noqa: B023 # called at once
        compile_ms.append(1e3 * took)
        masks_us += _walk(backend, compiled)
    return [
        f"{statistics.median(compile_ms):.2f}",
        f"{statistics.median(masks_us):.1f}",
        f"{statistics.quantiles(masks_us, n=20)[-1]:.1f}",
    ]


def _walk(backend: Backend, compiled: Compiled) -> list[float]:
    """Microseconds of each step along a random answer."""
    draw = np.random.default_rng(7)
    masks = np.zeros((1, _VOCAB_SIZE // 32), np.int32)
    matcher, times = compiled.matcher(), list[float]()
    for _ in range(_NUM_MASKS):
        started = time.perf_counter()
        backend.fill_masks([(matcher, 0)], masks)
        allowed = np.flatnonzero(np.unpackbits(masks.view(np.uint8), bitorder="little"))
        between = time.perf_counter()
        token_id = int(draw.choice(allowed))
        if token_id in _EOS:
            matcher = compiled.matcher()
            continue
        again = time.perf_counter()
        matcher.accept([token_id])
        times.append(1e6 * (between - started + time.perf_counter() - again))
    return times


def _timed(run: Callable[[], Compiled]) -> tuple[float, Compiled]:
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result
