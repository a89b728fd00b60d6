"""That a row's numbers are its own, to the bit, and what that costs.

    python -m benchmarks.cpu.invariance [--shape S] [--prompt 512] [--threads N] [--rounds 9] [--isa avx2]

The first table has a prompt's logits computed alone, and how many of them are other numbers, and by how much of their
root mean square at most, when it is computed once more, in chunks, behind another sequence's blocks, and when its last
token is a decode among 31 others: with the native decoder, whose sums have one order each, and with torch's layers,
which promise nothing of the kind. Beside it is how long both take; weights are random.

The second table has what fixed partitions cost attention: a decode of one context of 16,384 tokens, cut every 256 keys,
split between threads and merged in order, beside 64 decodes of 256, which read as many keys and multiply as much, and
where nothing is cut or merged. To split freely cannot save more than the difference.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.cpu.attention import HEADS, Case, join, medians, native_steps
from benchmarks.cpu.decoder import BLOCK_SIZE, SHAPES, Cell, make_config, make_model
from trioserve.model.batch import CacheLayout, ForwardBatch, LayerCache
from trioserve.model.config import DecoderConfig
from trioserve.model.decoder import Decoder
from trioserve.model.native import ISA, Crew

OTHERS: Final = 31
SHORT: Final = 96
"""Tokens of each of the others."""


def piece(token_ids: Tensor, start: int, end: int, blocks: Tensor) -> ForwardBatch:
    """Tokens ``start`` to ``end`` of a sequence whose KV lies in ``blocks``; each is sampled after."""
    positions = torch.arange(start, end)
    return ForwardBatch(
        token_ids=token_ids[start:end],
        positions=positions,
        slot_mapping=blocks[positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE,
        cu_seqlens_q=torch.tensor([0, end - start], dtype=torch.int32),
        seq_lens=torch.tensor([end], dtype=torch.int32),
        block_tables=blocks[None],
        sample_rows=torch.arange(end - start),
    )


class Prompts:
    """A prompt, 31 short others, and a model with a cache for them."""

    def __init__(self, config: DecoderConfig, model: Decoder, length: int) -> None:
        """``length``: of the prompt, in tokens."""
        self.length = length
        self._model = model
        generator = torch.Generator().manual_seed(2)
        self._text = torch.randint(config.vocab_size, (length,), generator=generator)
        self._shorts = torch.randint(config.vocab_size, (OTHERS, SHORT), generator=generator)
        per_prompt, per_short = -(-length // BLOCK_SIZE), -(-SHORT // BLOCK_SIZE)
        blocks = torch.randperm(2 * per_prompt + OTHERS * per_short, generator=generator, dtype=torch.int32)
        self._blocks, self._copy, rest = torch.tensor_split(blocks, (per_prompt, 2 * per_prompt))
        self._short_blocks = rest.view(OTHERS, -1)
        layout = CacheLayout("bfloat16", config.head_dim)
        self._caches: list[LayerCache] = [
            layout.empty(len(blocks), config.num_kv_heads, BLOCK_SIZE)
            for _ in range(config.num_hidden_layers)
        ]

    def run(self, batch: ForwardBatch) -> Tensor:
        """Logits after each of the step's samples, float32."""
        logits: Tensor = self._model.compute_logits(self._model(batch, self._caches))
        return logits.float()

    def whole(self) -> Tensor:
        """After each token of the prompt, as are those of the next two."""
        return self.run(piece(self._text, 0, self.length, self._blocks))

    def prefill(self) -> Tensor:
        """After its last token only, as a server has it."""
        batch = piece(self._text, 0, self.length, self._blocks)
        return self.run(replace(batch, sample_rows=batch.sample_rows[-1:]))

    def chunked(self) -> Tensor:
        bounds = [0, 1, self.length // 5, self.length // 2, self.length - 1, self.length]
        parts = [self.run(piece(self._text, *bound, self._blocks)) for bound in pairwise(bounds)]
        return torch.cat(parts)

    def after_hit(self) -> Tensor:
        """Half of the prompt's blocks are those of another that begins alike; the first half is the other's."""
        half = self.length // 2 // BLOCK_SIZE * BLOCK_SIZE
        other = torch.cat([self._text[:half], self._shorts[0]])
        first = self.run(piece(other, 0, len(other), self._copy))[:half]
        shared = torch.cat([self._copy[: half // BLOCK_SIZE], self._blocks[half // BLOCK_SIZE :]])
        return torch.cat([first, self.run(piece(self._text, half, self.length, shared))])

    def fill_others(self) -> None:
        for text, blocks in zip(self._shorts, self._short_blocks, strict=True):
            self.run(piece(text, 0, SHORT, blocks))

    def decode(self, num_others: int) -> Callable[[], Tensor]:
        """A step of the prompt's last token among others'; its logits come first."""
        others = zip(self._shorts[:num_others], self._short_blocks, strict=False)
        pieces = [piece(text, SHORT - 1, SHORT, blocks) for text, blocks in others]
        batch = join([piece(self._text, self.length - 1, self.length, self._blocks), *pieces])
        return lambda: self.run(batch)


def differing(found: Tensor, expected: Tensor) -> str:
    share = (found != expected).float().mean().item()
    most = (found - expected).abs().max() / expected.square().mean().sqrt()
    return "none" if share == 0 else f"{share:.1%}, {most:.4f}"


def compare(models: dict[str, Decoder], config: DecoderConfig, options: argparse.Namespace) -> Table:
    """A row for each model."""
    headings = (
        "again",
        "in chunks",
        "behind a prefix",
        "a decode among 31",
        "ms: prompt",
        "decode 1",
        "decode 32",
    )
    table = Table(
        "logits that differ", *headings, title=f"{options.shape}, {options.isa}, {options.threads} threads"
    )
    prompts = {name: Prompts(config, model, options.prompt) for name, model in models.items()}
    cells: dict[str, list[str]] = {}
    steps: list[Callable[[], Any]] = []
    for name, one in prompts.items():
        alone = one.whole()
        cells[name] = [differing(way(), alone) for way in (one.whole, one.chunked, one.after_hit)]
        one.fill_others()
        cells[name].append(differing(one.decode(OTHERS)()[:1], alone[-1:]))
        steps += [one.prefill, one.decode(0), one.decode(OTHERS)]
    spent = iter(medians(steps, options.rounds))
    for name, row in cells.items():
        table.add_row(name, *row, *(f"{next(spent) * 1e3:.1f}" for _ in range(3)))
    return table


def partitions(options: argparse.Namespace) -> Table:
    """What cutting, splitting and merging cost attention."""
    table = Table("heads", "1 at 16,384, us", "64 at 256, us", "ratio", title="one layer's attention")
    for shape in HEADS:
        case = Case(shape, "", (Cell("", 1, 1, 16_384),), (Cell("", 64, 1, 256),))
        native = native_steps(case, "bfloat16", options.threads, options.isa)
        steps = [native.whole, native.idle, *native.even, *native.even_idle]
        whole, idle, even, even_idle = (each / case.num_layers for each in medians(steps, options.rounds))
        cut, uncut = whole - idle, even - even_idle
        table.add_row(shape, f"{cut * 1e6:.0f}", f"{uncut * 1e6:.0f}", f"{cut / uncut:.2f}")
    return table


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--prompt", type=int, default=512, help="tokens, at least 32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--isa", default=ISA)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config, crew = make_config(options.shape), Crew(options.threads, isa=options.isa)
    models = {name: make_model(config, name, crew) for name in ("bf16", "int8", "torch")}
    for table in (compare(models, config, options), partitions(options)):
        Console(width=160).print(table)


if __name__ == "__main__":
    main()
