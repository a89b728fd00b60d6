"""Decode steps of whole models with noise for weights: how long, what share of what the memory allows, and what is lost
between two of them.

A rank by itself, told of steps as the front would tell it, two ahead. Its clock is the GPU's: a step lasts from the end
of the one before to its own, and what passes between the end of one and the beginning of the next is the gap.
"""

import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from benchmarks.gpu.ceilings import copy_rate
from benchmarks.gpu.report import Report, Row
from trioserve.core.sampling import SamplingParams
from trioserve.core.step import Admission, SlotWork, StepPlan, WorkerConfig, WorkerReady
from trioserve.worker.device_step_runner import DeviceStepRunner
from trioserve.worker.load import load_runner

BLOCK_SIZE: Final = 16
CONTEXT: Final = 1024
STEPS: Final = 64
_AHEAD: Final = 2
_GREEDY_AND_SAMPLED: Final = (0.0, 0.8)


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
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(model.config), encoding="utf-8")
            runner, ready = load_runner(
                config_for(folder, max(model.batches)), lambda _: None, time.monotonic()
            )
        assert isinstance(runner, DeviceStepRunner), "a GPU was asked for"
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


def config_for(folder: str, batch: int, *, batch_invariant: bool) -> WorkerConfig:
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
        max_model_len=CONTEXT + 2 * STEPS,
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
    steps_s, gaps_s = timed(runner, batch)
    step_s, gap_s = statistics.median(steps_s), statistics.median(gaps_s)
    kv_bytes = batch * CONTEXT * ready.kv_cache_bytes / (ready.num_blocks * BLOCK_SIZE)
    share = (ready.weights_bytes + kv_bytes) / step_s / copy_rate(report)
    note = f"{batch / step_s:,.0f} tokens/s, gap {gap_s * 1e6:.0f} us"
    what = f"{name}, {batch} at {CONTEXT}"
    report.add(Row("steps", what, step_s * 1e3, "ms", share, target=model.targets_ms.get(batch), note=note))
    if batch == 64:
        report.add(Row("steps", f"{name}, between two steps of {batch}", gap_s * 1e6, "us", target=30))


def timed(runner: DeviceStepRunner, batch: int) -> tuple[list[float], list[float]]:
    """Seconds of decode steps, and of the gaps between them; half of the sequences are sampled."""
    for plan in prompts(batch):
        runner.launch(plan).result()
    runner.timeline = []
    under_way = deque(runner.launch(decode(batch, number)) for number in range(_AHEAD))
    for number in range(_AHEAD, STEPS):
        under_way.popleft().result()
        under_way.append(runner.launch(decode(batch, number)))
    while under_way:
        under_way.popleft().result()
    times, runner.timeline = runner.timeline, None
    runner.launch(StepPlan(-1, list(range(batch)), [], [])).result()
    pairs = list(zip(times[_AHEAD:], times[_AHEAD + 1 :], strict=False))
    steps_s = [later.end.seconds_since(earlier.end) for earlier, later in pairs]
    return steps_s, [later.start.seconds_since(earlier.end) for earlier, later in pairs]


def prompts(batch: int) -> Iterator[StepPlan]:
    """Plans that let all sequences in, each with all of its blocks, and compute their prompts."""
    blocks = -(-(CONTEXT + 2 * STEPS) // BLOCK_SIZE)
    for slot in range(batch):
        admission = Admission(
            slot=slot,
            seq_id=slot,
            token_ids=[(slot + place) % 1000 for place in range(CONTEXT)],
            num_prompt_tokens=CONTEXT,
            num_computed_tokens=0,
            block_table=list(range(slot * blocks, (slot + 1) * blocks)),
            params=SamplingParams(
                max_tokens=2 * STEPS, temperature=_GREEDY_AND_SAMPLED[slot % 2], top_p=0.9, seed=slot
            ),
        )
        yield StepPlan(-1, [], [admission], [SlotWork(slot, CONTEXT, [])])


def decode(batch: int, number: int) -> StepPlan:
    """A token for each."""
    return StepPlan(number, [], [], [SlotWork(slot, 1, []) for slot in range(batch)])
