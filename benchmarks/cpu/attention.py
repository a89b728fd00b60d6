"""Attention of the native decoder over its paged cache against torch's over contiguous keys and values, alternating.

    python -m benchmarks.cpu.attention [--shapes S M] [--formats bfloat16 int8 fp8] [--kinds decode prefill]
                                       [--contexts 128 1024 4096 16384] [--batches 1 8] [--threads N] [--rounds 9]

The heads are those of SmolLM2-135M (S: 9 and 3 of 64) and of Qwen2.5-0.5B (M: 14 and 2 of 64). The decoder's other
layers are as small as can be, and what a step takes with a context of one token is taken off, so that what is left is
attention. A prefill is one prompt in one step. Microseconds are of one layer, medians; the share of a decode is that of
the reading bandwidth, measured here, which its keys and values read once would fill; of a prefill that of the bf16
products that torch reaches with matrices of 2,048, which its causal half would fill.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.cpu.decoder import BLOCK_SIZE, Cell, make_batch, read_bandwidth
from trioserve.model.batch import CacheLayout, LayerCache
from trioserve.model.config import DecoderConfig, decoder_config
from trioserve.model.decoder import Decoder
from trioserve.model.loader import dummy_weights
from trioserve.model.native import ISA, Crew

HEADS: Final = {"S": (9, 3, 64), "M": (14, 2, 64)}
MOST_BYTES: Final = 1_200_000_000
"""Of one kind of cache; a step has as many layers as fit, so that little of it is in the processor's caches."""
MOST_LAYERS: Final = 24


@dataclass(frozen=True)
class Case:
    """One kind of step."""

    shape: str
    kind: str
    num_seqs: int
    context: int

    @property
    def cell(self) -> Cell:
        return Cell("", self.num_seqs, 1 if self.kind == "decode" else self.context, self.context)

    @property
    def idle(self) -> Cell:
        """The same step without a context, as far as there is one."""
        return Cell("", self.num_seqs, 1, 1)

    @property
    def kv_bytes(self) -> float:
        """Of all keys and values of a layer in bfloat16."""
        _, num_kv_heads, head_dim = HEADS[self.shape]
        return 4.0 * num_kv_heads * head_dim * self.num_seqs * self.context

    @property
    def products(self) -> float:
        """Multiplications of a layer."""
        num_heads, _, head_dim = HEADS[self.shape]
        pairs = self.context if self.kind == "decode" else self.context * (self.context + 1) / 2
        return 2.0 * num_heads * head_dim * self.num_seqs * pairs

    @property
    def num_layers(self) -> int:
        return max(2, min(MOST_LAYERS, int(MOST_BYTES / self.kv_bytes)))


def small_config(shape: str, num_layers: int) -> DecoderConfig:
    """A decoder that is little else than attention."""
    num_heads, num_kv_heads, head_dim = HEADS[shape]
    values: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": num_layers,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "vocab_size": 32,
        "max_position_embeddings": 1 << 15,
        "torch_dtype": "bfloat16",
    }
    return decoder_config(values)


def filled(layout: CacheLayout, num_blocks: int, num_kv_heads: int) -> LayerCache:
    """A cache whose bytes are written; what they mean does not matter to the time."""
    cache = layout.empty(num_blocks, num_kv_heads, BLOCK_SIZE)
    for tensor in (cache.k, cache.v):
        tensor.view(torch.uint8).fill_(60)
    return cache


def native_step(
    case: Case, name: str, num_threads: int, isa: str
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The step of ``case`` and the same without a context."""
    config = small_config(case.shape, case.num_layers)
    layout = CacheLayout(name, config.head_dim)
    model = Decoder(config, torch.bfloat16, num_positions=case.context + 1)
    dummy_weights(model, seed=0)
    model.pack(Crew(num_threads, isa=isa, alone_work=0), layout=layout)
    num_blocks = case.num_seqs * -(-case.context // BLOCK_SIZE)
    caches = [filled(layout, num_blocks, config.num_kv_heads) for _ in range(case.num_layers)]
    batch, idle = (make_batch(cell, config.vocab_size) for cell in (case.cell, case.idle))
    return lambda: model(batch, caches), lambda: model(idle, caches)


def torch_step(case: Case) -> Callable[[], Any]:
    """SDPA as it is fastest: a decode's queries that share a KV head are rows of it, a prefill's keys are repeated."""
    num_heads, num_kv_heads, head_dim = HEADS[case.shape]
    is_prefill = case.kind == "prefill"
    rows = (num_heads, case.context) if is_prefill else (num_kv_heads, num_heads // num_kv_heads)
    queries = torch.randn(case.num_seqs, *rows, head_dim).bfloat16()
    shape = (case.num_seqs, rows[0], case.context, head_dim)
    layers: list[tuple[Tensor, Tensor]] = [
        (torch.full(shape, 0.1, dtype=torch.bfloat16), torch.full(shape, 0.1, dtype=torch.bfloat16))
        for _ in range(case.num_layers)
    ]

    def step() -> None:
        for keys, values in layers:
            scaled_dot_product_attention(queries, keys, values, is_causal=is_prefill)

    return step


def medians(steps: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Seconds of each, run in turn."""
    seconds: list[list[float]] = [[] for _ in steps]
    for step in steps:
        step()
    for _ in range(rounds):
        for step, spent in zip(steps, seconds, strict=True):
            began = time.perf_counter()
            step()
            spent.append(time.perf_counter() - began)
    return [statistics.median(spent) for spent in seconds]


def product_rate() -> float:
    """Multiplications a second of bf16 matrices, the best of several."""
    a, b = (torch.randn(2048, 2048).bfloat16() for _ in "ab")
    best = 0.0
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        best = max(best, 2048**3 / (time.perf_counter() - began))
    return best


def measure(case: Case, options: argparse.Namespace) -> list[str]:
    """A row of the table."""
    natives = [native_step(case, name, options.threads, options.isa) for name in options.formats]
    steps = [step for native in natives for step in native]
    found = [spent / case.num_layers for spent in medians([*steps, torch_step(case)], options.rounds)]
    peer = found[-1]
    row = [case.shape, case.kind, str(case.num_seqs), str(case.context), f"{peer * 1e6:.0f}"]
    for name, whole, idle in zip(options.formats, found[:-1:2], found[1:-1:2], strict=True):
        spent = max(whole - idle, 1e-9)
        width = CacheLayout(name, 64)
        size = case.kv_bytes * width.width * width.dtype.itemsize / 128
        limit = size / read_bandwidth() if case.kind == "decode" else case.products / product_rate()
        row += [f"{spent * 1e6:.0f}", f"{peer / spent:.1f}x", f"{limit / spent:.0%}"]
    return row


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--formats", nargs="+", default=["bfloat16", "int8", "fp8"])
    parser.add_argument("--kinds", nargs="+", choices=["decode", "prefill"], default=["decode", "prefill"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[128, 1024, 4096, 16384])
    parser.add_argument("--prompts", nargs="+", type=int, default=[1024, 4096, 8192])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--isa", default=ISA)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table(title=f"{options.isa}, {options.threads} threads, {read_bandwidth() / 1e9:.0f} GB/s")
    for heading in ("heads", "step", "batch", "context", "torch, us"):
        table.add_column(heading)
    for name in options.formats:
        for heading in (f"{name}, us", "ratio", "share"):
            table.add_column(heading, justify="right")
    for shape in options.shapes:
        for kind in options.kinds:
            for num_seqs in options.batches if kind == "decode" else [1]:
                for context in options.contexts if kind == "decode" else options.prompts:
                    table.add_row(*measure(Case(shape, kind, num_seqs, context), options))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
