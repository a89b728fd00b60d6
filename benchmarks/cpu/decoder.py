"""A step of the native decoder against the same step of torch's layers with our kernels, alternating.

    python -m benchmarks.cpu.decoder [--shapes S M builtin] [--threads N] [--rounds 15] [--isa avx2] [--json FILE]

Weights are random. S has the shape of SmolLM2-135M, M that of Qwen2.5-0.5B. A decode step has as many sequences as it
says, each with 128 tokens in its cache, and ends with the logits of all; a prefill is one prompt and the logits after
it. The share is that of the machine's reading bandwidth, measured here, which weights and keys read once would fill.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from trioserve.model.batch import ForwardBatch, LayerCache
from trioserve.model.config import DecoderConfig, decoder_config
from trioserve.model.decoder import Decoder
from trioserve.model.loader import dummy_weights
from trioserve.model.native import ISA, Crew

BLOCK_SIZE: Final = 16
CONTEXT: Final = 128
_COMMON: Final = {"tie_word_embeddings": True, "max_position_embeddings": 2048, "torch_dtype": "bfloat16"}
SHAPES: Final = {
    "S": {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
    },
    "M": {
        "architectures": ["Qwen2ForCausalLM"],
        "num_hidden_layers": 24,
        "hidden_size": 896,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151936,
    },
    "builtin": {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 704,
        "vocab_size": 4096,
    },
}


class Cell(NamedTuple):
    """One kind of step."""

    name: str
    num_seqs: int
    num_tokens: int
    """Of each sequence in this step."""
    seq_len: int


CELLS: Final = (
    Cell("decode 1", 1, 1, CONTEXT + 1),
    Cell("decode 8", 8, 1, CONTEXT + 1),
    Cell("decode 32", 32, 1, CONTEXT + 1),
    Cell("prefill 1x512", 1, 512, 512),
)


class Measured(NamedTuple):
    """Seconds of a step, medians."""

    torch_s: float
    native_s: float
    least_bytes: float
    """What the step must read."""

    @property
    def ratio(self) -> float:
        return self.torch_s / self.native_s


def make_batch(cell: Cell, vocab_size: int) -> ForwardBatch:
    """The step of ``cell``: every sequence ends with its tokens and samples once; blocks follow each other."""
    blocks_each = -(-cell.seq_len // BLOCK_SIZE)
    tables = torch.arange(cell.num_seqs * blocks_each, dtype=torch.int32).view(cell.num_seqs, -1)
    positions = torch.arange(cell.seq_len - cell.num_tokens, cell.seq_len)
    slots = tables[:, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
    generator = torch.Generator().manual_seed(1)
    return ForwardBatch(
        token_ids=torch.randint(vocab_size, (cell.num_seqs * cell.num_tokens,), generator=generator),
        positions=positions.repeat(cell.num_seqs),
        slot_mapping=slots.flatten(),
        cu_seqlens_q=torch.arange(cell.num_seqs + 1, dtype=torch.int32) * cell.num_tokens,
        seq_lens=torch.full((cell.num_seqs,), cell.seq_len, dtype=torch.int32),
        block_tables=tables,
        sample_rows=torch.arange(1, cell.num_seqs + 1) * cell.num_tokens - 1,
    )


def make_caches(config: DecoderConfig) -> list[LayerCache]:
    """Enough for the largest cell, filled with noise."""
    num_blocks = max(cell.num_seqs * -(-cell.seq_len // BLOCK_SIZE) for cell in CELLS)
    shape = (num_blocks, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
    return [
        LayerCache(*(torch.randn(shape, dtype=torch.bfloat16) for _ in "kv"))
        for _ in range(config.num_hidden_layers)
    ]


def make_step(model: Decoder, caches: list[LayerCache], batch: ForwardBatch) -> Callable[[], torch.Tensor]:
    def step() -> torch.Tensor:
        return model.compute_logits(model(batch, caches))

    return step


def read_bandwidth() -> float:
    """Bytes a second at which all threads together read memory, the best of several passes."""
    memory = torch.ones(1 << 27)
    best = 0.0
    for _ in range(8):
        began = time.perf_counter()
        memory.sum()
        best = max(best, memory.nbytes / (time.perf_counter() - began))
    return best


def least_bytes(config: DecoderConfig, cell: Cell) -> float:
    """What a step must read: every weight once, and the keys and values of every sequence."""
    head_size = config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    layer = config.hidden_size * (head_size + 3 * config.intermediate_size)
    weights = config.num_hidden_layers * layer + config.vocab_size * config.hidden_size
    keys = 2 * config.num_hidden_layers * config.num_kv_heads * config.head_dim * cell.seq_len * cell.num_seqs
    return 2.0 * (weights + keys)


def compare(config: DecoderConfig, cell: Cell, models: tuple[Decoder, Decoder], rounds: int) -> Measured:
    """Run both in turn and take medians.

    Raises:
        SystemExit: Their logits differ by more than rounding explains.
    """
    caches, batch = make_caches(config), make_batch(cell, config.vocab_size)
    steps = [make_step(model, caches, batch) for model in models]
    expected, found = (step().float() for step in steps)
    error = ((found - expected).square().mean() / expected.square().mean()).sqrt()
    if not error < 0.05:
        raise SystemExit(f"{cell.name}: the logits differ by {error:.3f} of their size")
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for step, spent in zip(steps, seconds, strict=True):
            step()  # the other one's weights fill the caches
            began = time.perf_counter()
            step()
            spent.append(time.perf_counter() - began)
    torch_s, native_s = (statistics.median(spent) for spent in seconds)
    return Measured(torch_s, native_s, least_bytes(config, cell))


def make_models(config: DecoderConfig, num_threads: int, isa: str) -> tuple[Decoder, Decoder]:
    """The same weights on torch's layers and native."""
    models = []
    for crew in (None, Crew(num_threads, isa=isa)):
        model = Decoder(config, torch.bfloat16, num_positions=2048)
        dummy_weights(model, seed=0)
        model.pack(crew)
        models.append(model)
    return models[0], models[1]


def show(found: dict[tuple[str, str], Measured], bandwidth: float, title: str) -> None:
    table = Table(title=title)
    for heading in ("shape", "step", "torch, ms", "native, ms", "ratio", "of the bandwidth"):
        table.add_column(heading, justify="left" if heading in ("shape", "step") else "right")
    for (shape, step), measured in found.items():
        share = measured.least_bytes / bandwidth / measured.native_s
        times = (f"{measured.torch_s * 1e3:.2f}", f"{measured.native_s * 1e3:.2f}")
        table.add_row(shape, step, *times, f"{measured.ratio:.2f}x", f"{share:.0%}")
    Console().print(table)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15, help="alternating runs of which the median counts")
    parser.add_argument("--isa", default=ISA)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[tuple[str, str], Measured] = {}
    bandwidth = 0.0
    for shape in options.shapes:
        config = decoder_config({**_COMMON, **SHAPES[shape]})
        models = make_models(config, options.threads, options.isa)
        for cell in CELLS:
            found[shape, cell.name] = compare(config, cell, models, options.rounds)
            bandwidth = max(bandwidth, read_bandwidth())  # more than once: others read as well
    show(found, bandwidth, f"{options.isa}, {options.threads} threads, {bandwidth / 1e9:.0f} GB/s")
    if options.json:
        numbers = {f"{shape} {step}": measured._asdict() for (shape, step), measured in found.items()}
        options.json.write_text(json.dumps({"bandwidth": bandwidth, "steps": numbers}, indent=2) + "\n")


if __name__ == "__main__":
    main()
