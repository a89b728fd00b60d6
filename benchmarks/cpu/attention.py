"""Attention of the native decoder over its paged cache against torch's over contiguous keys and values, alternating.

    python -m benchmarks.cpu.attention [--shapes S M] [--formats bfloat16 int8 fp8] [--kinds decode prefill ragged]
                                       [--contexts 1024 4096 16384] [--batches 1 8] [--prompts 1024 4096]
                                       [--threads N] [--rounds 5]

The heads are those of SmolLM2-135M (S: 9 and 3 of 64) and of Qwen2.5-0.5B (M: 14 and 2 of 64). The decoder's other
layers are as small as can be, and what a step takes with a context of one token is taken off, so that what is left is
attention. A prefill is one prompt in one step. Microseconds are of one layer, medians; the share is that of the larger
of two limits: all keys and values read once at the reading bandwidth, and all products that are not masked at the rate
that torch reaches with bf16 matrices of 2,048, both measured here beside each row.

Ragged steps are a decode of one long context and 31 short ones, and a chunk behind a long prefix with 24 decodes.
Beside each is what the same work takes where nothing can be uneven: as many keys in 32 decodes of one length, and the
chunk and the decodes in steps of their own.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.cpu.decoder import BLOCK_SIZE, Cell, make_batch, read_bandwidth
from trioserve.kernels.attention import visible_mask
from trioserve.model.batch import CacheLayout, ForwardBatch, LayerCache
from trioserve.model.config import DecoderConfig, decoder_config
from trioserve.model.decoder import Decoder
from trioserve.model.loader import dummy_weights
from trioserve.model.native import ISA, Crew

KINDS: Final = ("decode", "prefill", "ragged")
HEADS: Final = {"S": (9, 3, 64), "M": (14, 2, 64)}
MOST_BYTES: Final = 600_000_000
"""Of one kind of cache; a step has as many layers as fit, so that little of it is in the processor's caches."""
MOST_PRODUCTS: Final = 20_000_000_000
"""Of a step: as many multiplications as let a run end within two minutes."""
MOST_LAYERS: Final = 24
LONG, SHORT = Cell("", 1, 1, 16_384), Cell("", 31, 1, 128)
CHUNK, DECODES = Cell("", 1, 512, 8_192), Cell("", 24, 1, 128)
EVEN: Final = Cell("", 32, 1, (16_384 + 31 * 128) // 32)


@dataclass(frozen=True)
class Case:
    """One kind of step."""

    shape: str
    name: str
    cells: tuple[Cell, ...]
    even: tuple[Cell, ...] = ()
    """Steps that do the same work evenly, one after the other."""

    @property
    def idle(self) -> tuple[Cell, ...]:
        """The same step without a context, as far as there is one."""
        return tuple(Cell("", cell.num_seqs, 1, 1) for cell in self.cells)

    @property
    def kv_bytes(self) -> float:
        """Of all keys and values of a layer in bfloat16."""
        _, num_kv_heads, head_dim = HEADS[self.shape]
        return 4.0 * num_kv_heads * head_dim * sum(cell.num_seqs * cell.seq_len for cell in self.cells)

    @property
    def products(self) -> float:
        """Multiplications of a layer."""
        num_heads, _, head_dim = HEADS[self.shape]
        return 2.0 * num_heads * head_dim * sum(cell.num_seqs * num_pairs(cell) for cell in self.cells)

    @property
    def num_layers(self) -> int:
        most = min(MOST_BYTES / self.kv_bytes, MOST_PRODUCTS / self.products)
        return max(2, min(MOST_LAYERS, int(most)))


def num_pairs(cell: Cell) -> float:
    """Of a token and a key that it sees, in one sequence."""
    return cell.num_tokens * (cell.seq_len - (cell.num_tokens - 1) / 2)


def cases_of(shape: str, options: argparse.Namespace) -> list[Case]:
    """All steps of one shape."""
    cases: list[Case] = []
    if "decode" in options.kinds:
        for num_seqs in options.batches:
            for context in options.contexts:
                cell = Cell("", num_seqs, 1, context)
                cases.append(Case(shape, f"decode {num_seqs} at {context:,}", (cell,)))
    if "prefill" in options.kinds:
        cells = [Cell("", 1, context, context) for context in options.prompts]
        cases += [Case(shape, f"prefill of {cell.seq_len:,}", (cell,)) for cell in cells]
    if "ragged" in options.kinds:
        cases.append(Case(shape, "decode 1 at 16,384, 31 at 128", (LONG, SHORT), (EVEN,)))
        cases.append(Case(shape, "512 after 7,680, decode 24 at 128", (CHUNK, DECODES), (CHUNK, DECODES)))
    return cases


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


def join(batches: Sequence[ForwardBatch]) -> ForwardBatch:
    """One step of all ``batches``, whose block tables are of one cache."""
    width = max(batch.block_tables.shape[1] for batch in batches)
    tables, rows, bounds = [], [], [torch.zeros(1, dtype=torch.int32)]
    num_tokens = 0
    for batch in batches:
        tables.append(torch.nn.functional.pad(batch.block_tables, (0, width - batch.block_tables.shape[1])))
        rows.append(batch.sample_rows + num_tokens)
        bounds.append(batch.cu_seqlens_q[1:] + num_tokens)
        num_tokens += len(batch.token_ids)
    return ForwardBatch(
        token_ids=torch.cat([batch.token_ids for batch in batches]),
        positions=torch.cat([batch.positions for batch in batches]),
        slot_mapping=torch.cat([batch.slot_mapping for batch in batches]),
        cu_seqlens_q=torch.cat(bounds),
        seq_lens=torch.cat([batch.seq_lens for batch in batches]),
        block_tables=torch.cat(tables),
        sample_rows=torch.cat(rows),
    )


def joined(cells: Sequence[Cell], vocab_size: int) -> ForwardBatch:
    """One step of all ``cells``, each with blocks of its own."""
    batches, num_blocks = [], 0
    for cell in cells:
        batch = make_batch(cell, vocab_size)
        tables, slots = batch.block_tables + num_blocks, batch.slot_mapping + num_blocks * BLOCK_SIZE
        batches.append(replace(batch, block_tables=tables, slot_mapping=slots))
        num_blocks += tables.numel()
    return join(batches)


def blocks_of(cells: Sequence[Cell]) -> int:
    return sum(cell.num_seqs * -(-cell.seq_len // BLOCK_SIZE) for cell in cells)


class Native(NamedTuple):
    """The steps of a case on the native decoder."""

    whole: Callable[[], Any]
    idle: Callable[[], Any]
    """Without a context."""
    even: list[Callable[[], Any]]
    even_idle: list[Callable[[], Any]]


def native_steps(case: Case, name: str, num_threads: int, isa: str) -> Native:
    """The step of ``case``, its even ones, and the same without a context."""
    config = small_config(case.shape, case.num_layers)
    layout = CacheLayout(name, config.head_dim)
    longest = max(cell.seq_len for cell in case.cells)
    model = Decoder(config, torch.bfloat16, num_positions=longest + 1)
    dummy_weights(model, seed=0)
    model.pack(Crew(num_threads, isa=isa, alone_work=0), layout=layout)
    num_blocks = max(blocks_of(case.cells), blocks_of(case.even))
    caches = [filled(layout, num_blocks, config.num_kv_heads) for _ in range(case.num_layers)]

    def step(*cells: Cell) -> Callable[[], Any]:
        batch = joined(cells, config.vocab_size)
        return lambda: model(batch, caches)

    even_idle = [step(Cell("", cell.num_seqs, 1, 1)) for cell in case.even]
    return Native(step(*case.cells), step(*case.idle), [step(cell) for cell in case.even], even_idle)


def torch_inputs(
    shape: str, cell: Cell, num_layers: int
) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor | None]:
    """Queries, keys and values of each layer, and what is seen, as SDPA is fastest: a decode's queries that share a KV
    head are rows of it, a prompt's keys are repeated."""
    num_heads, num_kv_heads, head_dim = HEADS[shape]
    is_decode = cell.num_tokens == 1
    rows = (num_kv_heads, num_heads // num_kv_heads) if is_decode else (num_heads, cell.num_tokens)
    queries = torch.randn(cell.num_seqs, *rows, head_dim).bfloat16()
    size = (cell.num_seqs, rows[0], cell.seq_len, head_dim)
    layers = [
        (torch.full(size, 0.1, dtype=torch.bfloat16), torch.full(size, 0.1, dtype=torch.bfloat16))
        for _ in range(num_layers)
    ]
    is_chunk = 1 < cell.num_tokens < cell.seq_len
    seen = visible_mask(cell.num_tokens, cell.seq_len, None) if is_chunk else None
    return queries, layers, seen


def torch_step(case: Case) -> Callable[[], Any]:
    """SDPA of each cell."""
    inputs = [(cell, *torch_inputs(case.shape, cell, case.num_layers)) for cell in case.cells]

    def step() -> None:
        for cell, queries, layers, seen in inputs:
            is_causal = cell.num_tokens == cell.seq_len > 1
            for keys, values in layers:
                scaled_dot_product_attention(queries, keys, values, attn_mask=seen, is_causal=is_causal)

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


def measure(case: Case, options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """A row of the table, and one of the table of even steps."""
    natives = [native_steps(case, name, options.threads, options.isa) for name in options.formats]
    steps = [step for native in natives for step in (*native[:2], *native.even, *native.even_idle)]
    found = [spent / case.num_layers for spent in medians([*steps, torch_step(case)], options.rounds)]
    peer, bandwidth, rate = found[-1], read_bandwidth(), product_rate()
    row, even = [case.shape, case.name, f"{peer * 1e6:,.0f}"], [case.shape, case.name]
    each, count = len(steps) // len(natives), len(case.even)
    for i, name in enumerate(options.formats):
        whole, idle, *rest = found[i * each : (i + 1) * each]
        spent, layout = max(whole - idle, 1e-9), CacheLayout(name, 64)
        size = case.kv_bytes * layout.width * layout.dtype.itemsize / 128
        limit = max(size / bandwidth, case.products / rate)
        row += [f"{spent * 1e6:,.0f}", f"{peer / spent:.1f}x", f"{limit / spent:.0%}"]
        evenly = sum(rest[:count]) - sum(rest[count:])
        even += [f"{evenly * 1e6:,.0f}", f"{spent / evenly:.2f}"] if count else []
    return row, even


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--formats", nargs="+", default=["bfloat16", "int8", "fp8"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--contexts", nargs="+", type=int, default=[1024, 4096, 16384])
    parser.add_argument("--prompts", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--isa", default=ISA)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    title = f"{options.isa}, {options.threads} threads, {read_bandwidth() / 1e9:.0f} GB/s"
    table, evenly = Table("heads", "step", "torch, us", title=title), Table("heads", "step", title="evenly")
    for name in options.formats:
        for heading in (f"{name}, us", "ratio", "share"):
            table.add_column(heading, justify="right")
        for heading in (f"{name}, us", "the ragged step's ratio"):
            evenly.add_column(heading, justify="right")
    for shape in options.shapes:
        for case in cases_of(shape, options):
            row, even = measure(case, options)
            table.add_row(*row)
            if case.even:
                evenly.add_row(*even)
    for shown in (table, evenly):
        Console(width=160).print(shown)


if __name__ == "__main__":
    main()
