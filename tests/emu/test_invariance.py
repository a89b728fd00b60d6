"""A sequence has the same bits alone and in a batch, through every kernel of a decoder's layer and through sampling."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import pytest
import torch
from torch import Tensor

from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.emu.sampled import Wish, tables
from tests.emu.tensors import random
from trioserve.kernels import (
    activation,
    attention_plan,
    invariant_linear,
    paged_attention_gpu,
    rms_norm,
    rope,
    rope_store_kv,
    sampling_gpu,
    store_kv,
)
from trioserve.kernels.activation import Activation, activation_mul_gpu
from trioserve.kernels.attention_plan import plan_attention
from trioserve.kernels.invariant_linear import invariant_linear_gpu
from trioserve.kernels.rms_norm import add_rms_norm_gpu, rms_norm_gpu
from trioserve.kernels.rope import apply_rope_gpu
from trioserve.kernels.rope_store_kv import rope_store_kv_gpu
from trioserve.kernels.sampling_gpu import choose_tokens_gpu, edit_logits_gpu, score_tokens_gpu
from trioserve.kernels.source import Kernel
from trioserve.kernels.store_kv import store_kv_gpu

FP8: Final = torch.float8_e4m3fn
HEAD_DIM, HIDDEN, INTERMEDIATE, VOCABULARY = 64, 136, 200, 1000
BLOCK_SIZE, BLOCKS_EACH = 16, 9
EPS: Final = 1e-5
LENGTHS: Final = [(1, 130), (33, 70), (1, 1), (20, 20), (2, 50), (1, 97), (18, 18)]
"""Query tokens and tokens in all: decodes, prompts, chunks; 76 rows."""


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu([*kernels(), *attention_kernels()])


def kernels() -> Iterator[Kernel]:
    """Of vectors of bf16, whose sizes here allow the widest."""
    yield from (of for of in activation.instances() if {"bf16", "8"} <= set(of.choices))
    yield from (of for of in invariant_linear.instances() if "bf16" in of.choices)
    yield from (of for of in rms_norm.instances() if of.choices[:2] == ("bf16", "8"))
    yield rope.kernel("bf16", True, 8)
    yield store_kv.kernel("bf16", 8)
    yield from (sampling_gpu.survey_kernel("bf16", 4), sampling_gpu.edit_kernel("bf16", 4))
    yield from (sampling_gpu.WEIGH, sampling_gpu.CHOOSE, sampling_gpu.SCORE)


def attention_kernels() -> Iterator[Kernel]:
    for kv in ("bf16", "e4m3"):
        yield rope_store_kv.kernel("bf16", kv, HEAD_DIM)
        for make in ("decode_kernel", "single_kernel", "prefill_kernel"):
            yield getattr(paged_attention_gpu, make)("bf16", kv, HEAD_DIM)
    yield paged_attention_gpu.merge_kernel("bf16")


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one decoder layer and of the last product, and what was cached before."""

    heads: tuple[int, int]
    kv_dtype: torch.dtype
    activation: Activation
    sliding_window: int | None

    def weight(self, *shape: int, seed: int) -> Tensor:
        return random(*shape, dtype=torch.float32, seed=seed).div(math.sqrt(shape[-1])).bfloat16()

    def caches(self) -> list[Tensor]:
        """Keys, values and their scales, the same each time."""
        shape = (len(LENGTHS) * BLOCKS_EACH, self.heads[1], BLOCK_SIZE, HEAD_DIM)
        states = [random(*shape, dtype=torch.float32, seed=seed).to(self.kv_dtype) for seed in (8, 9)]
        return [*states, *([torch.ones(shape[:3]) for _ in "kv"] if self.kv_dtype == FP8 else ())]

    def run(self, gpu: EmulatedGpu, hidden: Tensor, sequences: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of some of the sequences: the residual after the layer and the logits, a row for each token."""
        num_heads, num_kv_heads = self.heads
        residual, lengths = hidden.clone(), [LENGTHS[of] for of in sequences]
        positions = torch.cat([torch.arange(total - count, total) for count, total in lengths])
        block_tables = torch.arange(len(LENGTHS) * BLOCKS_EACH).view(-1, BLOCKS_EACH)[list(sequences)]
        slots = torch.cat(
            [
                block_tables[row].repeat_interleave(BLOCK_SIZE)[total - count : total] * BLOCK_SIZE
                for row, (count, total) in enumerate(lengths)
            ]
        )
        slots = slots + positions % BLOCK_SIZE
        plan = plan_attention(
            torch.tensor([0, *(count for count, _ in lengths)]).cumsum(0).int(),
            torch.tensor([total for _, total in lengths]),
            block_tables,
            num_kv_heads=num_kv_heads,
            num_multiprocessors=gpu.num_multiprocessors,
            device=torch.device("cpu"),
            batch_invariant=True,
        )
        x = rms_norm_gpu(gpu, hidden, self.weight(HIDDEN, seed=1), eps=EPS)
        size = (num_heads + 2 * num_kv_heads) * HEAD_DIM
        qkv = invariant_linear_gpu(gpu, x, self.weight(size, HIDDEN, seed=2), self.weight(size, seed=3))
        q, k, v = torch.split(qkv.view(len(x), -1, HEAD_DIM), [num_heads, num_kv_heads, num_kv_heads], dim=1)
        norms = [self.weight(HEAD_DIM, seed=seed) for seed in (4, 5)]
        caches = self.caches()
        k_scales, v_scales = caches[2:] or (None, None)
        rope_store_kv_gpu(
            gpu,
            *(q, k, v, positions, rope_table(), caches[0], caches[1], slots),
            q_weight=norms[0],
            k_weight=norms[1],
            k_scales=k_scales,
            v_scales=v_scales,
            interleaved=False,
            eps=EPS,
        )
        attended = paged_attention_gpu.paged_attention_gpu(
            gpu,
            *(q, caches[0], caches[1], plan),
            k_scales=k_scales,
            v_scales=v_scales,
            scale=0.125,
            sliding_window=self.sliding_window,
        ).flatten(1)
        x = invariant_linear_gpu(gpu, attended, self.weight(HIDDEN, num_heads * HEAD_DIM, seed=6))
        x = add_rms_norm_gpu(gpu, x, residual, self.weight(HIDDEN, seed=7), eps=EPS)
        x = invariant_linear_gpu(gpu, x, self.weight(2 * INTERMEDIATE, HIDDEN, seed=10))
        x = activation_mul_gpu(gpu, x, self.activation)
        x = invariant_linear_gpu(gpu, x, self.weight(HIDDEN, INTERMEDIATE, seed=11))
        x = add_rms_norm_gpu(gpu, x, residual, self.weight(HIDDEN, seed=12), eps=EPS)
        return residual, invariant_linear_gpu(gpu, x, self.weight(VOCABULARY, HIDDEN, seed=13))


def rope_table() -> Tensor:
    angles = torch.arange(150)[:, None] / 10_000 ** torch.linspace(0, 1, HEAD_DIM // 2)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def rows_of_sequences() -> list[slice]:
    bounds = torch.tensor([0, *(count for count, _ in LENGTHS)]).cumsum(0).tolist()
    return [slice(*both) for both in pairwise(bounds)]


LAYERS: Final = [
    Layer((4, 2), torch.bfloat16, "silu", None),
    Layer((2, 2), torch.bfloat16, "gelu_tanh", 40),
    Layer((4, 1), FP8, "gelu", None),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layer_gives_a_sequence_the_same_bits_alone_and_in_a_batch(
    gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch, layer: Layer
) -> None:
    """Decodes of several splits, prompts and chunks; alone, all together, and in another order."""
    monkeypatch.setattr(attention_plan, "_INVARIANT_SPLIT", 48)
    rows, every = rows_of_sequences(), range(len(LENGTHS))
    hidden = random(rows[-1].stop, HIDDEN, dtype=torch.bfloat16)
    together = layer.run(gpu, hidden, every)
    assert all(bool(found.isfinite().all()) for found in together)
    for of in every:
        for found, expected in zip(layer.run(gpu, hidden[rows[of]], [of]), together, strict=True):
            assert torch.equal(found, expected[rows[of]]), of
    order = [5, 0, 6, 3]
    mixed = layer.run(gpu, torch.cat([hidden[rows[of]] for of in order]), order)
    for found, expected in zip(mixed, together, strict=True):
        assert torch.equal(found, torch.cat([expected[rows[of]] for of in order]))


def test_a_plan_for_speed_does_not_and_a_test_of_bits_sees_it(gpu: EmulatedGpu) -> None:
    """Splits that are cut for the batch change the order of sums."""
    q, caches = random(2, 4, HEAD_DIM, dtype=torch.bfloat16), LAYERS[0].caches()

    def attended(rows: slice, *, batch_invariant: bool) -> Tensor:
        plan = plan_attention(
            torch.arange(len(q[rows]) + 1),
            torch.tensor([144, 144])[rows],
            torch.arange(2 * BLOCKS_EACH).view(2, BLOCKS_EACH)[rows],
            num_kv_heads=2,
            num_multiprocessors=1,
            device=torch.device("cpu"),
            batch_invariant=batch_invariant,
        )
        return paged_attention_gpu.paged_attention_gpu(gpu, q[rows], caches[0], caches[1], plan, scale=0.125)

    alone, both = slice(0, 1), slice(0, 2)
    assert torch.equal(attended(alone, batch_invariant=True)[0], attended(both, batch_invariant=True)[0])
    assert not torch.equal(
        attended(alone, batch_invariant=False)[0], attended(both, batch_invariant=False)[0]
    )


def test_norms_of_heads_and_steps_that_are_fused_elsewhere_do_it_alone_too(gpu: EmulatedGpu) -> None:
    """What a model without the fused kernel uses: rotation, and keys and values into their blocks."""
    qkv, positions = random(20, 8, HEAD_DIM, dtype=torch.bfloat16), torch.arange(20) * 7
    weight = random(HEAD_DIM, dtype=torch.bfloat16)

    def treated(rows: slice) -> tuple[Tensor, ...]:
        q, k, v = torch.split(qkv[rows].clone(), [4, 2, 2], dim=1)
        k = rms_norm_gpu(gpu, k, weight, eps=EPS)
        apply_rope_gpu(gpu, q, k, positions[rows], rope_table(), interleaved=True)
        caches = [torch.zeros(2, 2, BLOCK_SIZE, HEAD_DIM, dtype=torch.bfloat16) for _ in "kv"]
        store_kv_gpu(gpu, k, v, caches[0], caches[1], torch.arange(20)[rows])
        return q, *(cache.transpose(1, 2).flatten(0, 1)[:20][rows] for cache in caches)

    together = treated(slice(0, 20))
    for rows in (slice(0, 1), slice(19, 20), slice(3, 12)):
        for found, expected in zip(treated(rows), together, strict=True):
            assert torch.equal(found, expected[rows])


def test_a_row_is_sampled_alike_alone_and_in_a_batch(gpu: EmulatedGpu) -> None:
    """The token of a seed, and log probabilities to the bit, with filters, lists and penalties beside others'."""
    wishes = [
        Wish(temperature=0.8, top_p=0.9, seed=4, num_top=3),
        Wish(num_top=0),
        Wish(temperature=1.3, top_k=40, seed=5, penalties=(1.1, 0.2, 0.1), output=(3, 3, 9), num_top=2),
        Wish(temperature=1.0, min_p=0.02, seed=6, mask=tuple(range(0, VOCABULARY, 3)), num_top=1),
        Wish(temperature=1.0, seed=7, allowed=(5, 6, 7), stops=(6,), bias={5: 1.0}, num_top=1),
    ]
    logits = random(len(wishes), VOCABULARY, dtype=torch.bfloat16) * 3

    def sampled(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        of_rows, slots = tables(wishes[rows], VOCABULARY)
        edited = edit_logits_gpu(gpu, logits[rows], of_rows, slots)
        token_ids = choose_tokens_gpu(gpu, edited, of_rows, slots)
        raw = edit_logits_gpu(gpu, logits[rows], of_rows, slots, has_edits=False)
        return token_ids, *score_tokens_gpu(gpu, token_ids, raw, of_rows, slots, max_top=3)

    together = sampled(slice(0, len(wishes)))
    for row, wish in enumerate(wishes):
        num_top = max(wish.num_top, 0)
        token_ids, logprobs, top_ids = sampled(slice(row, row + 1))
        assert torch.equal(token_ids[0], together[0][row])
        assert torch.equal(logprobs[0, : 1 + num_top], together[1][row, : 1 + num_top])
        assert torch.equal(top_ids[0, :num_top], together[2][row, :num_top])
