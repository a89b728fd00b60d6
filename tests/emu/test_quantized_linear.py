"""quantized_linear.cu against its reference, and the layouts and codes that it reads."""

from typing import Final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.emu.build import ORDERS, EmulatorError
from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.emu.tensors import TYPES, random
from tests.model.test_quantization import Product
from trioserve.kernels.cpu import ISA
from trioserve.kernels.quantized_linear import (
    FP8,
    WARPS,
    PackedWeight,
    channel_kernel,
    group_kernel,
    instances,
    merge_products_kernel,
    pack_codes,
    pack_nibbles,
    quantize_e4m3,
    quantize_int4,
    quantize_int8,
    quantized_linear_gpu,
    quantized_linear_ref,
    splits_of,
    unpack,
)
from trioserve.kernels.shapes import ShapeError

FORMS: Final = ("int8", "e4m3", "int4 of 32", "int4 of 64", "int4 of 128", "zero points")
TOLERANCES: Final = {"bf16": 2.0**-8, "fp16": 2.0**-11}
"""Of the largest result: half a unit of the type, and some for float32."""
TOKENS: Final = (1, 2, 7, 8, 9, 16)


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu(instances())


def made(form: str, out_size: int, in_size: int, dtype: torch.dtype, seed: int = 0) -> PackedWeight:
    weight = random(out_size, in_size, dtype=torch.float32, seed=seed)
    if form == "int8":
        return pack_codes(*quantize_int8(weight))
    if form == "e4m3":
        return pack_codes(*quantize_e4m3(weight))
    if form == "zero points":
        codes = torch.randint(0, 16, (out_size, in_size), generator=torch.Generator().manual_seed(seed))
        zeros = codes[:, ::64] // 2 + 4
        scales = weight[:, ::64].abs() / 8
        return pack_nibbles(codes, scales, zeros, has_zero_points=True, dtype=dtype)
    return pack_nibbles(
        *quantize_int4(weight, group_size=int(form.split()[-1])), has_zero_points=False, dtype=dtype
    )


def assert_product(
    found: Tensor, x: Tensor, packed: PackedWeight, kind: str, bias: Tensor | None = None
) -> None:
    exact = x.double() @ unpack(packed).T + (0 if bias is None else bias.double())
    assert found.dtype == x.dtype and bool(found.isfinite().all())
    assert float((found.double() - exact).abs().max() / exact.abs().max()) < TOLERANCES[kind]
    assert torch.equal(quantized_linear_ref(x, packed, bias), exact.to(x.dtype))


@pytest.mark.parametrize("kind", TOLERANCES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("out_size", "in_size"), [(1, 128), (16, 384), (37, 640), (48, 1152)], ids=str)
def test_products_are_those_of_the_reference(
    gpu: EmulatedGpu, out_size: int, in_size: int, form: str, kind: str
) -> None:
    """Fewer slabs than warps and more, ragged rows, a mean far from 0 so that offsets matter."""
    packed = made(form, out_size, in_size, TYPES[kind])
    for num_tokens in TOKENS:
        x = (random(num_tokens, in_size, dtype=torch.float32, seed=num_tokens) + 0.5).to(TYPES[kind])
        assert_product(quantized_linear_gpu(gpu, x, packed), x, packed, kind)


SPLIT: Final = {"int4": (20, 6272), "other": (20, 3104)}
"""Sizes whose depth is cut into three, the last one shorter; by form, with ragged rows."""


def split_sizes(form: str) -> tuple[int, int]:
    return SPLIT["int4" if "int4" in form or "zero" in form else "other"]


@pytest.mark.parametrize("kind", TOLERANCES)
@pytest.mark.parametrize("form", FORMS)
def test_a_depth_that_is_split_is_summed_up(gpu: EmulatedGpu, form: str, kind: str) -> None:
    """With a bias, which counts once, and without."""
    packed, dtype = made(form, *split_sizes(form), TYPES[kind]), TYPES[kind]
    bias = random(packed.out_size, dtype=dtype, seed=3) * 8
    for num_tokens, of_tokens in ((1, bias), (3, bias), (11, None)):
        x = (random(num_tokens, packed.in_size, dtype=torch.float32, seed=num_tokens) + 0.5).to(dtype)
        found = quantized_linear_gpu(gpu, x, packed, of_tokens)
        assert_product(found, x, packed, kind, of_tokens)
        (kernel, grid), (merge, _) = gpu.launched[-2:]
        assert grid[:2] == (2, 3) and kernel.base.endswith("single") == (num_tokens == 1)
        assert merge.base == "merge_products"


@pytest.mark.parametrize("form", FORMS)
def test_a_bias_is_added_before_rounding(gpu: EmulatedGpu, form: str) -> None:
    packed = made(form, 37, 384, torch.bfloat16)
    bias = random(37, dtype=torch.bfloat16, seed=3) * 8
    for num_tokens in (1, 2, 9):
        x = random(num_tokens, 384, dtype=torch.bfloat16, seed=num_tokens)
        assert_product(quantized_linear_gpu(gpu, x, packed, bias), x, packed, "bf16", bias)


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_batch_invariant_tokens_have_the_same_bits_alone(gpu: EmulatedGpu, form: str, is_split: bool) -> None:
    """And at every place among more than one reading of the weight serves."""
    sizes = split_sizes(form) if is_split else (33, 512)
    packed = made(form, *sizes, torch.bfloat16)
    x = random(19, packed.in_size, dtype=torch.bfloat16)
    all_at_once = quantized_linear_gpu(gpu, x, packed, batch_invariant=True)
    for order, first, last in zip(ORDERS, (0, 3, 18), (1, 12, 19), strict=True):
        found = quantized_linear_gpu(gpu.taking(order), x[first:last], packed, batch_invariant=True)
        assert torch.equal(found, all_at_once[first:last])
    assert not any(kernel.base.endswith("single") for kernel, _ in gpu.launched[-2:])


def test_many_tokens_go_in_parts(gpu: EmulatedGpu) -> None:
    packed, x = made("int8", 7, 64, torch.float16), random(1030, 64, dtype=torch.float16)
    before = len(gpu.launched)
    assert_product(quantized_linear_gpu(gpu, x, packed), x, packed, "fp16")
    assert [grid for _, grid in gpu.launched[before:]] == [(1, 1, 32), (1, 1, 32), (1, 1, 1)]


@given(tiles=st.integers(1, 3000), slabs=st.integers(1, 1000), multiprocessors=st.integers(1, 200))
def test_no_part_of_a_depth_is_empty_and_every_warp_has_enough(
    tiles: int, slabs: int, multiprocessors: int
) -> None:
    splits = splits_of(tiles, slabs, multiprocessors)
    size = -(-slabs // splits)
    assert size * (splits - 1) < slabs <= size * splits
    assert splits == 1 or size >= 4 * WARPS
    assert splits == 1 or tiles * splits <= 2 * multiprocessors


@pytest.mark.parametrize("form", FORMS)
def test_a_token_alone_orders_and_neighbours_change_nothing(gpu: EmulatedGpu, form: str) -> None:
    """Two tokens and more: the same bits beside other tokens and in other orders of threads."""
    packed, x = made(form, 33, 512, torch.bfloat16), random(16, 512, dtype=torch.bfloat16)
    expected = quantized_linear_gpu(gpu, x, packed)
    assert torch.equal(quantized_linear_gpu(gpu, x, packed, batch_invariant=True), expected)
    for order in ORDERS:
        assert torch.equal(quantized_linear_gpu(gpu.taking(order), x, packed), expected)
        assert torch.equal(quantized_linear_gpu(gpu.taking(order), x[3:6], packed), expected[3:6])
        single = quantized_linear_gpu(gpu.taking(order), x[3:4], packed)
        assert torch.equal(single, quantized_linear_gpu(gpu, x[3:4], packed))


@pytest.mark.parametrize("kind", TOLERANCES)
@pytest.mark.parametrize("form", FORMS)
def test_whole_numbers_are_exact(gpu: EmulatedGpu, form: str, kind: str) -> None:
    """Every code, times a token with a single one at each place."""
    codes = torch.arange(256).repeat(2).view(16, 32).repeat(1, 2)
    ones, dtype = torch.ones(16, 1), TYPES[kind]
    if "int4" in form or "zero" in form:
        size = 32 if form.endswith("32") else 64
        offsets = ones.expand(16, 64 // size) * 3
        packed = pack_nibbles(codes % 16, offsets / 3, offsets, has_zero_points="zero" in form, dtype=dtype)
    elif form == "int8":
        packed = pack_codes((codes - 128).clamp(-127).to(torch.int8), ones[:, 0])
    else:
        finite = torch.where(codes % 128 == 127, 0, codes).to(torch.uint8)
        packed = pack_codes(finite.view(FP8), ones[:, 0])
    places = torch.eye(64, dtype=dtype)
    expected = unpack(packed).T.to(dtype)
    for num_tokens in (1, 16):
        for first in range(0, 64, num_tokens):
            x = places[first : first + num_tokens]
            assert torch.equal(quantized_linear_gpu(gpu, x, packed), expected[first : first + num_tokens])


def test_tokens_may_be_slices_of_wider_rows(gpu: EmulatedGpu) -> None:
    packed, wide = made("int8", 20, 96, torch.float16), random(5, 200, dtype=torch.float16)
    x = wide[:, 8:104]
    assert_product(quantized_linear_gpu(gpu, x, packed), x, packed, "fp16")
    many = random(40, 200, dtype=torch.float16)[:, 8:104]
    assert_product(quantized_linear_gpu(gpu, many, packed), many, packed, "fp16")


def test_no_tokens_are_no_launch(gpu: EmulatedGpu) -> None:
    before = len(gpu.launched)
    out = quantized_linear_gpu(
        gpu, torch.empty(0, 64, dtype=torch.bfloat16), made("int8", 20, 64, torch.bfloat16)
    )
    assert out.shape == (0, 20) and len(gpu.launched) == before


@given(out_size=st.integers(1, 40), slabs=st.integers(1, 4), form=st.sampled_from(("int8", "e4m3", "int4")))
def test_what_is_packed_is_unpacked(out_size: int, slabs: int, form: str) -> None:
    shape = (out_size, 64 * slabs)
    generator = torch.Generator().manual_seed(out_size)
    if form == "int4":
        codes = torch.randint(0, 16, shape, generator=generator)
        ones = torch.ones(out_size, slabs)
        assert torch.equal(
            unpack(pack_nibbles(codes, ones, 0 * ones, has_zero_points=True, dtype=torch.float16)),
            codes.double(),
        )
        return
    codes = torch.randint(-127, 128, shape, generator=generator)
    codes = codes.to(torch.int8) if form == "int8" else codes.float().to(FP8)
    assert torch.equal(unpack(pack_codes(codes, torch.ones(out_size))), codes.double())


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_codes_are_those_of_the_cpu(form: str) -> None:
    """What the CPU's product gives for tokens of a single 127 is 127 weights, as it has them."""
    weight = random(24, 96, dtype=torch.bfloat16)
    weight[3], weight[4, :32] = 0, 0.5
    exact = Product(weight, form, ISA)(127 * torch.eye(96)).double().T / 127
    if form == "int8":
        codes, scales = quantize_int8(weight)
        ours = codes.double() * scales.double()[:, None]
    else:
        codes, scale, least = quantize_int4(weight, group_size=32)
        ours = codes.double() * scale.double().repeat_interleave(32, 1) + least.double().repeat_interleave(
            32, 1
        )
    torch.testing.assert_close(ours, exact, rtol=0, atol=2e-6)


def test_what_does_not_fit_is_refused(gpu: EmulatedGpu) -> None:
    packed = made("int4 of 32", 16, 64, torch.bfloat16)
    with pytest.raises(ShapeError, match="out_size is 17, expected 16"):
        quantized_linear_gpu(
            gpu, random(2, 64, dtype=torch.bfloat16), packed, torch.zeros(17, dtype=torch.bfloat16)
        )
    with pytest.raises(ShapeError, match="in_size is 72, expected 64"):
        quantized_linear_gpu(gpu, random(2, 72, dtype=torch.bfloat16), packed)
    with pytest.raises(ShapeError, match=r"packed for torch\.bfloat16"):
        quantized_linear_gpu(gpu, random(2, 64, dtype=torch.float16), packed)
    with pytest.raises(ShapeError, match="there is a -128"):
        pack_codes(torch.full((1, 32), -128, dtype=torch.int8), torch.ones(1))
    with pytest.raises(ShapeError, match="in_size is 40, no multiple of 32"):
        pack_codes(torch.zeros(1, 40, dtype=torch.int8), torch.ones(1))
    with pytest.raises(ShapeError, match="a group of 96 is neither 32 nor a multiple of 64"):
        pack_nibbles(
            torch.zeros(1, 192),
            torch.ones(1, 2),
            torch.ones(1, 2),
            has_zero_points=False,
            dtype=torch.float16,
        )


def launch_group(
    gpu: EmulatedGpu, num_tiles: int, out_size: int, sums: Tensor, *, grid: tuple[int, ...]
) -> None:
    """``group_linear`` of 128 columns that has 16 rows, told that it has ``out_size``."""
    packed = made("int4 of 64", 16, 128, torch.bfloat16)
    out = torch.empty(2, 32, dtype=torch.bfloat16)
    x, none = random(2, 128, dtype=torch.bfloat16), torch.empty(0, dtype=torch.bfloat16)
    few, more = ((), ()) if num_tiles == 0 else ((2,), (128,))
    gpu.launch(
        group_kernel("bf16", False, num_tiles),
        *(out, sums, x, packed.weight, packed.scales, none, *few, 128, out_size, 64, 0, *more),
        grid=grid,
        block=(WARPS * 32,),
    )


@pytest.mark.parametrize("num_tiles", [0, 1])
def test_a_row_too_many_is_caught(gpu: EmulatedGpu, num_tiles: int) -> None:
    with pytest.raises(EmulatorError, match="out of bounds: load of 16"):
        launch_group(gpu, num_tiles, 32, torch.empty(0), grid=(2,))


@pytest.mark.parametrize("num_tiles", [0, 1])
def test_a_part_too_many_is_caught(gpu: EmulatedGpu, num_tiles: int) -> None:
    """Its sums have no place."""
    launch_group(gpu, num_tiles, 16, torch.empty(2, 2, 16), grid=(1, 2))
    with pytest.raises(EmulatorError, match="out of bounds: store of 4"):
        launch_group(gpu, num_tiles, 16, torch.empty(2, 2, 16), grid=(1, 5))


def test_a_part_that_nobody_made_shows(gpu: EmulatedGpu) -> None:
    """Places of sums begin as no numbers."""
    sums = torch.empty(3, 2, 16)
    launch_group(gpu, 1, 16, sums, grid=(1, 2))
    out, none = torch.empty(2, 16, dtype=torch.bfloat16), torch.empty(0, dtype=torch.bfloat16)
    for num_splits, is_finite in ((2, True), (3, False)):
        gpu.launch(
            merge_products_kernel("bf16"), out, sums, none, num_splits, 2, 16, grid=(1, 2), block=(256,)
        )
        assert bool(out.isfinite().all()) == is_finite
    with pytest.raises(EmulatorError, match="out of bounds: load of 4"):
        gpu.launch(merge_products_kernel("bf16"), out, sums, none, 4, 2, 16, grid=(1, 2), block=(256,))


def test_a_missing_barrier_is_caught(make_gpu: MakeGpu) -> None:
    kernels = [channel_kernel("bf16", "u8", num_tiles) for num_tiles in (0, 1)]
    broken = make_gpu(kernels, defines=["CUEMU_WITHOUT_BARRIERS"])
    packed = made("int8", 16, 512, torch.bfloat16)
    for num_tokens in (1, 2):
        with pytest.raises(EmulatorError, match=r"race|nobody wrote"):
            quantized_linear_gpu(broken, random(num_tokens, 512, dtype=torch.bfloat16), packed)
