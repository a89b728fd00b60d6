"""linear.cu against float64, and that a row has the same bits in every batch."""

from typing import Final

import pytest
import torch
from torch import Tensor

from tests.emu.build import ORDERS, EmulatorError
from tests.emu.conftest import MakeGpu
from tests.emu.device import SMALLEST_SHARED_BYTES, EmulatedGpu
from tests.emu.tensors import TYPES, random
from trioserve.errors import KernelError
from trioserve.kernels.invariant_linear import (
    FEW,
    MANY,
    SOME,
    TILES,
    Tile,
    instances,
    invariant_linear_gpu,
    invariant_linear_ref,
    kernel,
    tile_for,
)
from trioserve.kernels.shapes import ShapeError

HALF_ULPS: Final = {"bf16": 2.0**-8, "fp16": 2.0**-11}
"""Of a result, relative, at most."""
SIZES: Final = [(8, 1), (72, 33), (136, 200), (512, 160)]
"""in_size and out_size: less than a stage, one and a bit, ragged tiles, more stages than are kept."""
BATCHES: Final = (1, 2, 16, 17, 64, 130)


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu(instances())


def assert_product(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, kind: str) -> None:
    """Within half an ulp of the result, and as much as float32 loses in so many additions."""
    exact = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T
    if bias is not None:
        exact, size = exact + bias.double(), size + bias.double().abs()
    bound = exact.abs() * HALF_ULPS[kind] + size * x.shape[1] * 2.0**-24 + 2.0**-25
    assert found.dtype == x.dtype and found.shape == exact.shape
    assert bool(((found.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("kind", HALF_ULPS)
@pytest.mark.parametrize(("in_size", "out_size"), SIZES, ids=str)
def test_products_are_as_near_as_float32_sums_can_be(
    gpu: EmulatedGpu, in_size: int, out_size: int, kind: str
) -> None:
    weight, bias = (random(*size, dtype=TYPES[kind], seed=1) for size in ((out_size, in_size), (out_size,)))
    for num_tokens in BATCHES:
        x = random(num_tokens, in_size, dtype=TYPES[kind], seed=num_tokens)
        for of in (None, bias):
            assert_product(invariant_linear_gpu(gpu, x, weight, of), x, weight, of, kind)
            assert_product(invariant_linear_ref(x, weight, of), x, weight, of, kind)


@pytest.mark.parametrize("kind", HALF_ULPS)
def test_a_row_has_the_same_bits_alone_and_at_any_place_of_any_batch(gpu: EmulatedGpu, kind: str) -> None:
    """By every tile: batches of all these sizes take all three."""
    weight, bias = random(264, 200, dtype=TYPES[kind]), random(264, dtype=TYPES[kind])
    row = random(1, 200, dtype=TYPES[kind], seed=7)
    alone = invariant_linear_gpu(gpu, row, weight, bias)
    assert {tile_for(size, 264, gpu.num_multiprocessors) for size in BATCHES} == set(TILES)
    for size in BATCHES:
        x = random(size, 200, dtype=TYPES[kind], seed=size)
        for place in {0, size // 2, size - 1}:
            x[place] = row[0]
        found = invariant_linear_gpu(gpu, x, weight, bias)
        for place in {0, size // 2, size - 1}:
            assert torch.equal(found[place], alone[0]), (size, place)


@pytest.mark.parametrize("tile", TILES)
def test_threads_may_take_turns_in_any_order(gpu: EmulatedGpu, tile: Tile) -> None:
    num_tokens = {FEW: 5, SOME: 20, MANY: 260}[tile]
    x, weight = random(num_tokens, 328, dtype=TYPES["bf16"]), random(140, 328, dtype=TYPES["bf16"])
    found = [invariant_linear_gpu(gpu.taking(order), x, weight) for order in ORDERS]
    assert gpu.launched[-1][0] == kernel("bf16", tile)
    assert all(torch.equal(other, found[0]) for other in found[1:])


def test_many_tiles_of_tokens_lie_in_bands(gpu: EmulatedGpu) -> None:
    """More than the eight of one, the last one ragged: every result is written, and in its place."""
    x, weight = random(1160, 8, dtype=TYPES["fp16"]), random(150, 8, dtype=TYPES["fp16"])
    assert_product(invariant_linear_gpu(gpu, x, weight), x, weight, None, "fp16")


def test_rows_may_be_slices_of_wider_ones(gpu: EmulatedGpu) -> None:
    wide, weight = random(5, 200, dtype=TYPES["bf16"]), random(20, 96, dtype=TYPES["bf16"])
    found = invariant_linear_gpu(gpu, wide[:, 8:104], weight)
    assert torch.equal(found, invariant_linear_gpu(gpu, wide[:, 8:104].contiguous(), weight))


def test_columns_of_no_number_stay_in_their_rows(gpu: EmulatedGpu) -> None:
    """What is beside a row, or behind it in memory, never reaches its sums."""
    x, weight = random(40, 72, dtype=TYPES["bf16"]), random(50, 72, dtype=TYPES["bf16"])
    expected = invariant_linear_gpu(gpu, x, weight)
    x[1::2] = torch.nan
    assert torch.equal(invariant_linear_gpu(gpu, x, weight)[::2], expected[::2])
    wide = torch.full((40, 80), torch.nan, dtype=TYPES["bf16"])
    wide[:, :72] = random(40, 72, dtype=TYPES["bf16"])
    assert torch.equal(invariant_linear_gpu(gpu, wide[:, :72], weight), expected)


@pytest.mark.parametrize("define", ["CUEMU_WITHOUT_BARRIERS", "CUEMU_WAITING_FOR_LESS"])
@pytest.mark.parametrize("num_tokens", [3, 20])
def test_a_forgotten_wait_is_caught(make_gpu: MakeGpu, num_tokens: int, define: str) -> None:
    broken = make_gpu([kernel("bf16", tile) for tile in (FEW, SOME)], defines=[define])
    x, weight = random(num_tokens, 520, dtype=TYPES["bf16"]), random(40, 520, dtype=TYPES["bf16"])
    for order in ORDERS:
        with pytest.raises(EmulatorError, match=r"race|on its way|nobody wrote"):
            invariant_linear_gpu(broken.taking(order), x, weight)


@pytest.mark.parametrize("argument", ["x", "weight", "bias", "out"])
def test_a_size_that_is_too_large_is_caught(gpu: EmulatedGpu, argument: str) -> None:
    """Of each tensor one row, or element, is missing."""
    tensors = {
        "out": torch.empty(20, 40, dtype=TYPES["bf16"]),
        "x": random(20, 64, dtype=TYPES["bf16"]),
        "weight": random(40, 64, dtype=TYPES["bf16"]),
        "bias": random(40, dtype=TYPES["bf16"]),
    }
    tensors[argument] = tensors[argument][:-1]
    out, x, weight, bias = tensors.values()
    with pytest.raises(EmulatorError, match="out of bounds"):
        gpu.launch(
            kernel("bf16", SOME),
            *(out, x, weight, bias, 20, 64, 40, 1, 64),
            grid=(SOME.count(20, 40),),
            block=(SOME.threads,),
            shared_bytes=SOME.shared_bytes,
        )


@pytest.mark.parametrize("tile", TILES)
def test_shared_memory_is_just_enough(gpu: EmulatedGpu, tile: Tile) -> None:
    num_tokens = {FEW: 16, SOME: 64, MANY: 256}[tile]
    x, weight = random(num_tokens, 512, dtype=TYPES["bf16"]), random(256, 512, dtype=TYPES["bf16"])
    assert tile_for(num_tokens, 256, gpu.num_multiprocessors) == tile
    invariant_linear_gpu(gpu, x, weight)
    with pytest.raises(EmulatorError, match="out of bounds: byte"):
        _launch_short(gpu, x, weight)


def _launch_short(gpu: EmulatedGpu, x: Tensor, weight: Tensor) -> None:
    tile = tile_for(len(x), len(weight), gpu.num_multiprocessors)
    gpu.launch(
        kernel("bf16", tile),
        *(torch.empty(len(x), len(weight), dtype=x.dtype), x, weight, x.new_empty(0)),
        *(len(x), x.shape[1], len(weight), 0, x.stride(0)),
        grid=(tile.count(len(x), len(weight)),),
        block=(tile.threads,),
        shared_bytes=tile.shared_bytes - 16,
    )


def test_every_tile_fits_the_smallest_gpu() -> None:
    for tile in TILES:
        results = tile.tokens * (tile.rows + 8) * 2
        assert results <= tile.shared_bytes <= SMALLEST_SHARED_BYTES


def test_large_tiles_are_for_batches_that_fill_the_device() -> None:
    assert tile_for(1, 1 << 20, 132) == tile_for(16, 1 << 20, 132) == FEW
    assert tile_for(17, 4096, 132) == SOME
    assert tile_for(512, 4096, 132) == SOME
    assert tile_for(640, 4096, 132) == MANY


def test_what_does_not_fit_is_named(gpu: EmulatedGpu) -> None:
    x, weight = random(2, 64, dtype=TYPES["bf16"]), random(3, 64, dtype=TYPES["bf16"])
    with pytest.raises(ShapeError, match="in_size is 60, no multiple of 8"):
        invariant_linear_gpu(gpu, x[:, :60], weight[:, :60])
    with pytest.raises(ShapeError, match="in_size = 56, expected 64"):
        invariant_linear_gpu(gpu, x, weight[:, :56])
    with pytest.raises(ShapeError, match="out_size = 2, expected 3"):
        invariant_linear_gpu(gpu, x, weight, weight[:2, 0].contiguous())
    with pytest.raises(ShapeError, match=r"weight is torch.float16, and x is torch.bfloat16"):
        invariant_linear_gpu(gpu, x, weight.half())
    with pytest.raises(KernelError, match="the kernel takes bf16, fp16, not float"):
        invariant_linear_gpu(gpu, x.float(), weight.float())


def test_no_tokens_start_nothing(gpu: EmulatedGpu) -> None:
    x, weight = random(0, 64, dtype=TYPES["bf16"]), random(3, 64, dtype=TYPES["bf16"])
    assert invariant_linear_gpu(gpu, x, weight).shape == (0, 3)
