"""rope_store_kv.cu against its reference, which goes one step at a time."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import pytest
import torch
from torch import Tensor

from tests.emu.build import ORDERS, EmulatorError
from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.emu.tensors import TYPES, random
from trioserve.kernels.rope_store_kv import instances, rope_store_kv_gpu, rope_store_kv_ref
from trioserve.kernels.shapes import ShapeError

FP8: Final = torch.float8_e4m3fn
NUM_POSITIONS, NUM_BLOCKS, BLOCK_SIZE = 50, 4, 16


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu(instances())


@dataclass(slots=True)
class Step:
    """Slices of one projection, and caches of sevens."""

    qkv: Tensor
    num_heads: int
    positions: Tensor
    slot_mapping: Tensor
    caches: list[Tensor]
    scales: list[Tensor | None]
    weights: list[Tensor | None]
    interleaved: bool
    table: Tensor
    offset: float = 0.0

    def copy(self) -> "Step":
        scales = [None if scale is None else scale.clone() for scale in self.scales]
        return replace(self, qkv=self.qkv.clone(), caches=[c.clone() for c in self.caches], scales=scales)

    def run(self, gpu: EmulatedGpu | None) -> "Step":
        """By the kernel, or by the reference."""
        num_kv_heads = self.caches[0].shape[1]
        q, k, v = torch.split(self.qkv, [self.num_heads, num_kv_heads, num_kv_heads], dim=1)
        arguments = (q, k, v, self.positions, self.table, *self.caches, self.slot_mapping)
        run = rope_store_kv_ref if gpu is None else partial(rope_store_kv_gpu, gpu)
        run(
            *arguments,
            q_weight=self.weights[0],
            k_weight=self.weights[1],
            k_scales=self.scales[0],
            v_scales=self.scales[1],
            interleaved=self.interleaved,
            offset=self.offset,
            eps=1e-6,
        )
        return self


def table_of(num_pairs: int) -> Tensor:
    angles = torch.arange(NUM_POSITIONS)[:, None] / 10_000 ** torch.linspace(0, 1, num_pairs)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def make_step(
    num_tokens: int,
    head_dim: int,
    kind: str,
    kv_dtype: torch.dtype,
    *,
    heads: tuple[int, int] = (5, 2),
    normed: bool = True,
    interleaved: bool = False,
    num_pairs: int | None = None,
    offset: float = 0.0,
) -> Step:
    dtype = TYPES[kind]
    shape = (NUM_BLOCKS, heads[1], BLOCK_SIZE, head_dim)
    order = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, generator=torch.Generator().manual_seed(3))
    return Step(
        random(num_tokens, heads[0] + 2 * heads[1], head_dim, dtype=dtype),
        heads[0],
        torch.arange(num_tokens) * 7 % NUM_POSITIONS,
        order[:num_tokens],
        [torch.full(shape, 7.0).to(kv_dtype) for _ in "kv"],
        [torch.full(shape[:3], 7.0) if kv_dtype == FP8 else None for _ in "kv"],
        [random(head_dim, dtype=dtype, seed=seed) if normed else None for seed in (1, 2)],
        interleaved,
        table_of(head_dim // 2 if num_pairs is None else num_pairs),
        offset,
    )


def assert_alike(found: Step, expected: Step) -> None:
    """But for last bits: of the type, and of a scale, which are in its codes."""
    assert float((found.qkv.double() - expected.qkv.double()).abs().max()) < 2e-2
    assert _nearly(found.qkv, expected.qkv)
    for cache, other, scale, true in zip(
        found.caches, expected.caches, found.scales, expected.scales, strict=True
    ):
        if scale is None or true is None:
            assert _nearly(cache, other)
            continue
        torch.testing.assert_close(scale, true, rtol=1e-2, atol=0)
        states, truth = cache.float() * scale[..., None], other.float() * true[..., None]
        assert float((states - truth).norm() / truth.norm()) < 5e-3
        assert float(cache[0].float().abs().max()) <= 448


def _nearly(found: Tensor, expected: Tensor) -> bool:
    """But for single elements that fell to the other side of a tie."""
    return float((found.double() - expected.double()).norm() / expected.double().norm()) < 1e-3


@pytest.mark.parametrize("kv_dtype", [None, FP8], ids=["same", "e4m3"])
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256])
def test_one_pass_is_the_steps_one_after_the_other(
    gpu: EmulatedGpu, head_dim: int, kind: str, kv_dtype: torch.dtype | None
) -> None:
    for normed, interleaved in ((False, False), (True, False), (True, True)):
        step = make_step(9, head_dim, kind, kv_dtype or TYPES[kind], normed=normed, interleaved=interleaved)
        expected = step.copy().run(None)
        for order in ORDERS:
            assert_alike(step.copy().run(gpu.taking(order)), expected)


@pytest.mark.parametrize(
    ("head_dim", "num_pairs"),
    [(64, 8), (64, 0), (80, 10), (96, 36), (128, 32), (128, 48), (256, 64), (256, 0)],
)
@pytest.mark.parametrize("interleaved", [False, True])
def test_a_part_of_a_head_is_turned_or_none_of_it(
    gpu: EmulatedGpu, head_dim: int, num_pairs: int, interleaved: bool
) -> None:
    step = make_step(9, head_dim, "bf16", FP8, interleaved=interleaved, num_pairs=num_pairs, offset=1.0)
    expected = step.copy().run(None)
    for order in ORDERS:
        assert_alike(step.copy().run(gpu.taking(order)), expected)
    step.weights = [None, None]
    found = step.copy().run(gpu)
    assert torch.equal(found.qkv[..., 2 * num_pairs :], step.qkv[..., 2 * num_pairs :])


@pytest.mark.parametrize("num_pairs", [31, 33, 65])
def test_pairs_that_do_not_travel_together_are_refused(gpu: EmulatedGpu, num_pairs: int) -> None:
    step = make_step(2, 128, "bf16", torch.bfloat16, num_pairs=num_pairs)
    with pytest.raises(ShapeError, match=f"{num_pairs} pairs of head_dim 128 cannot be turned"):
        step.run(gpu)


@pytest.mark.parametrize("heads", [(1, 1), (8, 8), (7, 1)], ids=str)
def test_heads_of_any_number_are_shared_among_warps(gpu: EmulatedGpu, heads: tuple[int, int]) -> None:
    step = make_step(3, 64, "bf16", torch.bfloat16, heads=heads)
    assert_alike(step.copy().run(gpu), step.copy().run(None))


def test_a_token_without_a_slot_is_turned_and_not_stored(gpu: EmulatedGpu) -> None:
    step = make_step(4, 64, "fp16", FP8)
    step.slot_mapping[1:3] = -1
    found = step.copy().run(gpu)
    assert_alike(found, step.copy().run(None))
    kept = [cache.view(torch.uint8) for cache in (*found.caches, *step.caches)]
    changed = (kept[0] != kept[2]).any(-1).sum()
    assert changed == 2 * 2  # tokens and heads


def test_a_head_of_zeros_has_codes_of_zero(gpu: EmulatedGpu) -> None:
    step = make_step(1, 64, "bf16", FP8, normed=False)
    step.qkv.zero_()
    found = step.run(gpu)
    slot = int(step.slot_mapping[0])
    for cache in found.caches:
        assert cache[slot // BLOCK_SIZE, :, slot % BLOCK_SIZE].float().eq(0).all()


@pytest.mark.parametrize("fault", ["position", "slot"])
def test_what_lies_outside_is_caught(gpu: EmulatedGpu, fault: str) -> None:
    step = make_step(2, 64, "bf16", torch.bfloat16)
    if fault == "position":
        step.positions[1] = NUM_POSITIONS
    else:
        step.slot_mapping[1] = NUM_BLOCKS * BLOCK_SIZE
    with pytest.raises(EmulatorError, match="out of bounds"):
        step.run(gpu)


def test_scales_belong_to_codes(gpu: EmulatedGpu) -> None:
    step = make_step(2, 64, "bf16", FP8)
    step.scales = [None, None]
    with pytest.raises(ShapeError, match="k_scales belongs to a cache of float8_e4m3fn"):
        step.run(gpu)
