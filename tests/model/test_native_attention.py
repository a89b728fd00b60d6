"""Attention of the native decoder over heads of many shapes, on every instruction set; the matrix unit's among them."""

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.model.checkpoints import prompt_of
from tests.model.pieces import Bench, Piece
from tests.model.test_native import ISAS, config_of, error, made
from tests.model.test_native_cache import bench_of, exact, kept, logits_after
from trioserve.kernels.attention import visible_mask
from trioserve.model.config import DecoderConfig

TOLERANCE = 0.02
"""Of the root mean square of the logits: what bf16 activations cost. A missed key costs more, as a test shows."""
LENGTH = 290
"""Tokens: a partition, and a second one that ends within a group."""
TEXT = prompt_of(LENGTH, seed=3)
BLOCKS = [*range(20, 39)]


class Heads(NamedTuple):
    """Of a decoder of one layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None

    @property
    def config(self) -> DecoderConfig:
        return config_of(
            num_hidden_layers=1,
            hidden_size=48,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            sliding_windows=(self.window,),
        )


HEADS = [
    Heads(2, 2, 32),
    Heads(9, 3, 64, window=37),
    Heads(14, 2, 64),
    Heads(6, 2, 48),
    Heads(8, 1, 112),
    Heads(16, 1, 128, window=270),
    Heads(2, 1, 256),
    Heads(33, 1, 16),
]


def attended(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Causal attention, float64: [num_tokens, num_heads * head_dim]."""
    group = q.shape[1] // k.shape[1]
    keys, values = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * q.shape[2] ** -0.5
    scores = scores.masked_fill(~visible_mask(len(q), len(q), window), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).flatten(1).float()


def expected_of(heads: Heads, one: Bench, name: str) -> Tensor:
    """Logits from float64 attention over what ``one`` keeps."""
    plain = made(heads.config, torch.float32)
    q, _, _ = exact(plain, TEXT)
    k, v = kept(one, 0, name, BLOCKS, LENGTH)
    return logits_after(plain, TEXT, attended(q, k, v, heads.window))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["bfloat16", "int8", "fp8"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attention_is_that_of_float64_and_a_row_has_one_set_of_bits(
    heads: Heads, name: str, isa: str
) -> None:
    """The prompt whole, in chunks of 1 to 200 tokens, and as the decodes that its last tokens might have been."""
    one = bench_of(heads.config, name, isa)
    alone = one.run(Piece(TEXT, 0, LENGTH, BLOCKS))
    assert error(alone, expected_of(heads, one, name)) < TOLERANCE
    for cuts in ([0, 1, 2, 15, 32, 47, 247, 257, 289, 290], [0, 256, *range(270, 291)]):
        parts = [one.run(Piece(TEXT, start, end, BLOCKS)) for start, end in pairwise(cuts)]
        assert torch.equal(torch.cat(parts), alone)


@pytest.mark.parametrize("isa", ISAS)
def test_neighbours_and_threads_change_no_bit(isa: str) -> None:
    """Prompts, a chunk behind a prefix and decodes of many lengths in one step, with one thread and with three."""
    heads = Heads(12, 2, 80)
    one, three = (
        bench_of(heads.config, "bfloat16", isa),
        bench_of(heads.config, "bfloat16", isa, num_threads=3),
    )
    tables = [BLOCKS, [1, 2], [3], [50, 4, 51], [*range(5, 17)]]
    lengths = [LENGTH, 32, 7, 33, 190]
    whole = [Piece(TEXT[:length], 0, length, blocks) for length, blocks in zip(lengths, tables, strict=True)]
    alone = [one.run(piece) for piece in whole]
    for bench in (one, three):
        bench.run(*whole)
        starts = [200, 0, 6, 32, 189]
        pieces = [Piece(p.token_ids, start, p.end, p.blocks) for p, start in zip(whole, starts, strict=True)]
        expected = [logits[start:] for logits, start in zip(alone, starts, strict=True)]
        assert torch.equal(bench.run(*pieces), torch.cat(expected))
        assert torch.equal(bench.run(*reversed(pieces)), torch.cat(expected[::-1]))


def test_a_key_that_is_missed_is_seen() -> None:
    """The tolerance is tight enough for the test above to fail."""
    heads = Heads(2, 2, 32, window=4)
    one = bench_of(heads.config, "bfloat16")
    found = one.run(Piece(TEXT, 0, LENGTH, BLOCKS))
    assert error(found, expected_of(heads._replace(window=3), one, "bfloat16")) > 2 * TOLERANCE
