"""Decode steps of whole models with noise for weights: how long, what share of what the memory allows, and what is lost
between two of them.

A rank by itself, told of steps as the front would tell it. Its clock is the GPU's: a step lasts from the end of the one
before to its own, and what that takes longer than the same graphs one behind the other is the gap (``gap.py``).
"""

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from benchmarks.gpu.ceilings import copy_rate
from benchmarks.gpu.gap import SETTLING, Gap, measure_gap
from benchmarks.gpu.report import Report, Row
from trioserve.core.step import WorkerConfig, WorkerReady
from trioserve.worker.device_step_runner import DeviceStepRunner
from trioserve.worker.load import load_runner

BLOCK_SIZE: Final = 16
CONTEXT: Final = 1024
STEPS: Final = 64


class Model(NamedTuple):
    """A decoder's shape, in the names of transformers."""

    config: Mapping[str, Any]
    batches: tuple[int, ...] = (1, 8, 64, 256)
    targets_ms: Mapping[int, float] = {}
    """By batch."""


def llama(layers: int, hidden: int, heads: int, kv_heads: int, inner: int, vocab: int) -> dict[str, Any]:
    """``config.json`` of a Llama with heads of 128."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


QWEN: Final = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "tie_word_embeddings": True}
MODELS: Final[Mapping[str, Model]] = {
    "Qwen3-0.6B": Model(llama(28, 1024, 16, 8, 3072, 151936) | QWEN),
    "Llama-3-8B": Model(llama(32, 4096, 32, 8, 14336, 128256), targets_ms={1: 4.2}),
    "16 of the 64 layers of a 32B": Model(llama(16, 5120, 40, 8, 27648, 152064)),
}


def measure(report: Report) -> None:
    """Add the steps of each model, and the gap at 64 sequences."""
    for name, model in MODELS.items():
        runner, ready = load(model)
        for batch in model.batches:
            add_rows(report, name, model, batch, runner, ready)
        del runner
        torch.cuda.empty_cache()


def load(model: Model, *, batch_invariant: bool = False) -> tuple[DeviceStepRunner, WorkerReady]:
    """One rank with noise for weights."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(model.config), encoding="utf-8")
        config = config_for(folder, max(model.batches), batch_invariant=batch_invariant)
        runner, ready = load_runner(config, lambda _: None, time.monotonic())
    assert isinstance(runner, DeviceStepRunner), "a GPU was asked for"
    return runner, ready


def config_for(folder: str, batch: int, *, batch_invariant: bool = False) -> WorkerConfig:
    """What it is told first."""
    return WorkerConfig(
        model_path=folder,
        device="cuda",
        dtype="bfloat16",
        tp_rank=0,
        tp_size=1,
        block_size=BLOCK_SIZE,
        max_num_seqs=batch,
        max_num_batched_tokens=4096,
        max_model_len=CONTEXT + STEPS + SETTLING + 1,
        num_blocks=None,
        kv_cache_bytes=0,
        num_threads=0,
        load_format="dummy",
        batch_invariant=batch_invariant,
    )


def add_rows(
    report: Report, name: str, model: Model, batch: int, runner: DeviceStepRunner, ready: WorkerReady
) -> None:
    """Measure one batch; its row, and that of the gap."""
    gap = timed(runner, batch)
    kv_bytes = batch * CONTEXT * ready.kv_cache_bytes / (ready.num_blocks * BLOCK_SIZE)
    share = (ready.weights_bytes + kv_bytes) / (gap.period_us * 1e-6) / copy_rate(report)
    note = f"{batch / gap.period_us * 1e6:,.0f} tokens/s, gap {gap.gap_us:.0f} us"
    target, what = model.targets_ms.get(batch), f"{name}, {batch} at {CONTEXT}"
    report.add(Row("steps", what, gap.period_us / 1e3, "ms", share, target=target, note=note))
    if batch == 64:
        report.add(Row("steps", f"{name}, between two steps of {batch}", gap.gap_us, "us", target=30))


def timed(runner: DeviceStepRunner, batch: int) -> Gap:
    """What decode steps of so many sequences take; half of them are sampled."""
    return measure_gap(runner, BLOCK_SIZE, batch, STEPS, prompt=CONTEXT)
