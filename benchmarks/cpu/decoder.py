"""A step of the native decoder, in bf16, int8 and int4, against the same step of torch's layers with our kernels.

    python -m benchmarks.cpu.decoder [--shapes S M builtin] [--models torch bf16 int8 int4] [--threads N] [--rounds 15]
        [--isa avx2] [--json FILE]

Weights are random. S has the shape of SmolLM2-135M, M that of Qwen2.5-0.5B. A decode step has as many sequences as it
says, each with 128 tokens in its cache, and ends with the logits of all; a prefill is one prompt and the logits after
it. The models take turns; ratios are to the first of them. The share is that of the machine's reading bandwidth,
measured here, which weights and keys read once would fill.
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
from trioserve.model.native_matrices import Quantization, head_format, layer_formats

BITS: Final = {"bf16": 16, "int8": 8, "int4": 5}
"""Of a weight, scales of groups included."""
ERRORS: Final = {"torch": 0.05, "bf16": 0.05, "int8": 0.2, "int4": 0.6}
"""Each model, and by how much of their size its logits may differ from the first one's."""
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
    """A step on one of the models."""

    seconds: float
    """Median."""
    least_bytes: float
    """What it must read."""


def make_config(shape: str) -> DecoderConfig:
    """The decoder of one of SHAPES."""
    return decoder_config({**_COMMON, **SHAPES[shape]})


def make_batch(cell: Cell, vocab_size: int, *, is_context: bool = False) -> ForwardBatch:
    """The step of ``cell``, in which every sequence ends with its tokens and samples once; or the step before it, with
    all that it does not compute itself. Blocks follow each other."""
    blocks_each = -(-cell.seq_len // BLOCK_SIZE)
    tables = torch.arange(cell.num_seqs * blocks_each, dtype=torch.int32).view(cell.num_seqs, -1)
    first = cell.seq_len - cell.num_tokens
    positions = torch.arange(first) if is_context else torch.arange(first, cell.seq_len)
    count = len(positions)
    slots = tables[:, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
    generator = torch.Generator().manual_seed(1)
    return ForwardBatch(
        token_ids=torch.randint(vocab_size, (cell.num_seqs * count,), generator=generator),
        positions=positions.repeat(cell.num_seqs),
        slot_mapping=slots.flatten(),
        cu_seqlens_q=torch.arange(cell.num_seqs + 1, dtype=torch.int32) * count,
        seq_lens=torch.full((cell.num_seqs,), int(positions[-1]) + 1, dtype=torch.int32),
        block_tables=tables,
        sample_rows=torch.arange(1, cell.num_seqs + 1) * count - 1,
    )


def make_caches(config: DecoderConfig) -> list[LayerCache]:
    """Enough for the largest cell; each model lays its own out in a way of its own."""
    num_blocks = max(cell.num_seqs * -(-cell.seq_len // BLOCK_SIZE) for cell in CELLS)
    shape = (num_blocks, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
    return [
        LayerCache(*(torch.zeros(shape, dtype=torch.bfloat16) for _ in "kv"))
        for _ in range(config.num_hidden_layers)
    ]


def make_step(model: Decoder, config: DecoderConfig, cell: Cell) -> Callable[[], torch.Tensor]:
    """A step of ``cell``, as often as one likes; what comes before it is computed here."""
    caches, batch = make_caches(config), make_batch(cell, config.vocab_size)
    if cell.seq_len > cell.num_tokens:
        model(make_batch(cell, config.vocab_size, is_context=True), caches)

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


def least_bytes(config: DecoderConfig, cell: Cell, quantization: Quantization) -> float:
    """What a step must read: every weight once, and the keys and values of every sequence."""
    keys = 2 * config.num_hidden_layers * config.num_kv_heads * config.head_dim * cell.seq_len * cell.num_seqs
    bits = BITS[head_format(quantization)] * config.vocab_size * config.hidden_size
    for layer in range(config.num_hidden_layers):
        formats = layer_formats(quantization, layer, config.num_hidden_layers)
        bits += sum(BITS[formats[name]] * count for name, count in layer_sizes(config).items())
    return bits / 8 + 2 * keys


def layer_sizes(config: DecoderConfig) -> dict[str, int]:
    """How many weights each matrix of a layer has."""
    size, heads = config.hidden_size, config.num_heads * config.head_dim
    return {
        "qkv_proj": size * (heads + 2 * config.num_kv_heads * config.head_dim),
        "o_proj": size * heads,
        "gate_up_proj": 2 * size * config.intermediate_size,
        "down_proj": size * config.intermediate_size,
    }


def compare(
    config: DecoderConfig, cell: Cell, models: dict[str, Decoder], rounds: int
) -> dict[str, Measured]:
    """Run all in turn and take medians.

    Raises:
        SystemExit: The logits of one differ from torch's, or else the first one's, by more than its format explains.
    """
    steps = {name: make_step(model, config, cell) for name, model in models.items()}
    logits = {name: step().float() for name, step in steps.items()}
    expected = next(iter(logits.values()))
    for name, found in logits.items():
        error = ((found - expected).square().mean() / expected.square().mean()).sqrt()
        if not error < ERRORS[name]:
            raise SystemExit(f"{cell.name}: the logits of {name} differ by {error:.3f} of their size")
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step()  # the others' weights fill the caches
            began = time.perf_counter()
            step()
            spent[name].append(time.perf_counter() - began)
    return {
        name: Measured(statistics.median(seconds), least_bytes(config, cell, quantization_of(name)))
        for name, seconds in spent.items()
    }


def quantization_of(name: str) -> Quantization:
    return "int8" if name == "int8" else "int4" if name == "int4" else "none"


def make_model(config: DecoderConfig, name: str, crew: Crew) -> Decoder:
    """The same weights for every name: on torch's layers, native, or native and quantized."""
    model = Decoder(config, torch.bfloat16, num_positions=2048)
    dummy_weights(model, seed=0)
    began = time.process_time()
    model.pack(None if name == "torch" else crew, quantization_of(name))
    if model.packed_bytes is not None:
        spent = time.process_time() - began
        print(f"{name}: {model.packed_bytes / 1e6:.0f} MB, packed in {spent:.1f} s of CPU time")
    return model


def show(found: dict[tuple[str, str], dict[str, Measured]], bandwidth: float, title: str) -> None:
    names = list(next(iter(found.values())))
    table = Table("shape", "step", title=title)
    for name in names:
        table.add_column(f"{name}, ms", justify="right")
    for heading in (*(f"{names[0]} / {name}" for name in names[1:]), "of the bandwidth"):
        table.add_column(heading, justify="right")
    for (shape, step), row in found.items():
        times = [f"{measured.seconds * 1e3:.2f}" for measured in row.values()]
        ratios = [f"{row[names[0]].seconds / row[name].seconds:.2f}x" for name in names[1:]]
        shares = [f"{measured.least_bytes / bandwidth / measured.seconds:.0%}" for measured in row.values()]
        table.add_row(shape, step, *times, *ratios, " ".join(shares))
    Console(width=max(120, Console().width)).print(table)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--models", nargs="+", choices=ERRORS, default=list(ERRORS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15, help="alternating runs of which the median counts")
    parser.add_argument("--isa", default=ISA)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[tuple[str, str], dict[str, Measured]] = {}
    bandwidth = 0.0
    for shape in options.shapes:
        config = make_config(shape)
        crew = Crew(options.threads, isa=options.isa)
        models = {name: make_model(config, name, crew) for name in options.models}
        for cell in CELLS:
            found[shape, cell.name] = compare(config, cell, models, options.rounds)
            bandwidth = max(bandwidth, read_bandwidth())  # more than once: others read as well
    show(found, bandwidth, f"{options.isa}, {options.threads} threads, {bandwidth / 1e9:.0f} GB/s")
    if options.json:
        numbers = {
            f"{shape} {step}": {name: measured._asdict() for name, measured in row.items()}
            for (shape, step), row in found.items()
        }
        options.json.write_text(json.dumps({"bandwidth": bandwidth, "steps": numbers}, indent=2) + "\n")


if __name__ == "__main__":
    main()
