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
    pack_codes,
    pack_nibbles,
    quantize_e4m3,
    quantize_int4,
    quantize_int8,
    quantized_linear_gpu,
    quantized_linear_ref,
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


def assert_product(found: Tensor, x: Tensor, packed: PackedWeight, kind: str) -> None:
    exact = x.double() @ unpack(packed).T
    assert found.dtype == x.dtype and bool(found.isfinite().all())
    assert float((found.double() - exact).abs().max() / exact.abs().max()) < TOLERANCES[kind]
    assert torch.equal(quantized_linear_ref(x, packed), exact.to(x.dtype))


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


@pytest.mark.parametrize("form", FORMS)
def test_a_token_alone_orders_and_neighbours_change_nothing(gpu: EmulatedGpu, form: str) -> None:
    """Two tokens and more: the same bits beside other tokens and in other orders of threads."""
    packed, x = made(form, 33, 512, torch.bfloat16), random(16, 512, dtype=torch.bfloat16)
    expected = quantized_linear_gpu(gpu, x, packed)
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
    with pytest.raises(ShapeError, match="num_tokens is 17, at most 16"):
        quantized_linear_gpu(gpu, random(17, 64, dtype=torch.bfloat16), packed)
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


@pytest.mark.parametrize("num_tiles", [0, 1])
def test_a_row_too_many_is_caught(gpu: EmulatedGpu, num_tiles: int) -> None:
    packed = made("int4 of 64", 16, 128, torch.bfloat16)
    x = random(2, 128, dtype=torch.bfloat16)
    few, more = ((), ()) if num_tiles == 0 else ((2,), (128,))
    with pytest.raises(EmulatorError, match="out of bounds: load of 16"):
        gpu.launch(
            group_kernel("bf16", False, num_tiles),
            *(
                torch.empty(2, 32, dtype=torch.bfloat16),
                x,
                packed.weight,
                packed.scales,
                *few,
                128,
                32,
                64,
                0,
                *more,
            ),
            grid=(2,),
            block=(WARPS * 32,),
        )


def test_a_missing_barrier_is_caught(make_gpu: MakeGpu) -> None:
    kernels = [channel_kernel("bf16", "u8", num_tiles) for num_tiles in (0, 1)]
    broken = make_gpu(kernels, defines=["CUEMU_WITHOUT_BARRIERS"])
    packed = made("int8", 16, 512, torch.bfloat16)
    for num_tokens in (1, 2):
        with pytest.raises(EmulatorError, match=r"race|nobody wrote"):
            quantized_linear_gpu(broken, random(num_tokens, 512, dtype=torch.bfloat16), packed)
