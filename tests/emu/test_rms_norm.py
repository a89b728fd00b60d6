"""rms_norm.cu against its reference."""

import pytest
import torch

from tests.emu.build import ORDERS, EmulatorError
from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.emu.tensors import TYPES, assert_near, random
from trioserve.kernels.rms_norm import (
    THREADS,
    add_normed_gpu,
    add_normed_ref,
    add_rms_norm_gpu,
    add_rms_norm_ref,
    instances,
    norm_kernel,
    rms_norm_gpu,
    rms_norm_ref,
)

EPS = 1e-5
SIZES = [1, 33, 90, 64, 80, 1000, 4104]
"""Fewer elements than threads, odd, of every width, several turns of the loop, ragged at its end."""


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu(instances())


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_rows_come_out_as_the_reference_has_them(
    gpu: EmulatedGpu, num_tokens: int, size: int, kind: str
) -> None:
    x, weight = random(num_tokens, size, dtype=TYPES[kind]), random(size, dtype=TYPES[kind], seed=1)
    found = [rms_norm_gpu(gpu.taking(order), x, weight, eps=EPS) for order in ORDERS]
    assert_near(found[0], rms_norm_ref(x, weight, eps=EPS))
    assert all(torch.equal(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_the_sum_is_stored_and_normalised(gpu: EmulatedGpu, num_tokens: int, size: int, kind: str) -> None:
    x, weight = random(num_tokens, size, dtype=TYPES[kind]), random(size, dtype=TYPES[kind], seed=1)
    before = random(num_tokens, size, dtype=TYPES[kind], seed=2)
    expected, total = add_rms_norm_ref(x, before, weight, eps=EPS)
    for order in ORDERS:
        residual = before.clone()
        found = add_rms_norm_gpu(gpu.taking(order), x, residual, weight, eps=EPS)
        assert torch.equal(residual, total)
        assert_near(found, expected)


@pytest.mark.parametrize("kind", TYPES)
def test_weights_have_an_offset_and_what_is_added_a_scale(gpu: EmulatedGpu, kind: str) -> None:
    """The weights are so small that their sums with the offset could not be told apart in 16 bits."""
    x, before = random(3, 90, dtype=TYPES[kind]), random(3, 90, dtype=TYPES[kind], seed=2)
    weight = random(90, dtype=TYPES[kind], seed=1) / 1024
    found = rms_norm_gpu(gpu, x, weight, eps=EPS, offset=1.0)
    assert_near(found, rms_norm_ref(x, weight, eps=EPS, offset=1.0))
    expected, total = add_rms_norm_ref(x, before, weight, eps=EPS, offset=1.0, x_scale=0.22)
    found = add_rms_norm_gpu(gpu, x, before, weight, eps=EPS, offset=1.0, x_scale=0.22)
    assert_near(before, total, absolute=1e-6)
    assert_near(found, expected, absolute=1e-2 if kind != "float" else 1e-5)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("size", [33, 90, 1000, 4104])
@pytest.mark.parametrize("normed", [False, True])
def test_what_is_added_may_be_normalised_before(gpu: EmulatedGpu, normed: bool, size: int, kind: str) -> None:
    """What differs in a last bit of the sum differs in one of its norm."""
    x, before = random(3, size, dtype=TYPES[kind]), random(3, size, dtype=TYPES[kind], seed=2)
    x_weight, weight = (random(size, dtype=TYPES[kind], seed=seed) / 8 for seed in (1, 3))
    after = weight if normed else None
    expected, total = add_normed_ref(x, before, x_weight, after, eps=EPS, offset=1.0, x_scale=0.22)
    for order in ORDERS:
        residual = before.clone()
        found = add_normed_gpu(
            gpu.taking(order), x, residual, x_weight, after, eps=EPS, offset=1.0, x_scale=0.22
        )
        last = 0.0 if kind == "float" else 4 * torch.finfo(TYPES[kind]).eps
        assert_near(residual, total, absolute=last or 1e-6)
        assert_near(found, expected, absolute=2 * last or 1e-5)
        assert normed or found is residual


def test_the_sum_is_normalised_as_it_was_rounded(gpu: EmulatedGpu) -> None:
    """1 + 0.0038 is 1 in bfloat16; the mean square of what was not stored would give 0.996."""
    residual, x = torch.ones(1, 64, dtype=torch.bfloat16), torch.full((1, 64), 0.0038, dtype=torch.bfloat16)
    found = add_rms_norm_gpu(gpu, x, residual, torch.ones_like(x[0]), eps=EPS)
    assert residual.eq(1).all()
    assert found.eq(1).all()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("head_dim", [32, 80, 96, 128, 256])
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_heads_are_rows_of_a_slice(gpu: EmulatedGpu, num_tokens: int, head_dim: int, kind: str) -> None:
    """Three heads of one token, five of whose rows belong to others; the last block is not full."""
    heads = random(num_tokens, 8, head_dim, dtype=TYPES[kind])[:, 2:5]
    weight = random(head_dim, dtype=TYPES[kind], seed=1)
    for order in ORDERS:
        found = rms_norm_gpu(gpu.taking(order), heads, weight, eps=EPS)
        assert_near(found, rms_norm_ref(heads, weight, eps=EPS))


def test_a_row_has_the_same_bits_wherever_it_is(gpu: EmulatedGpu) -> None:
    """Also where the row's address is aligned by chance: sizes alone decide the order of the sum."""
    row, weight = random(1, 999, dtype=torch.float32), random(999, dtype=torch.float32, seed=1)
    alone = rms_norm_gpu(gpu, row, weight, eps=EPS)
    many = rms_norm_gpu(gpu, row.repeat(5, 1), weight, eps=EPS)
    assert torch.equal(many, alone.expand(5, -1))


def test_large_and_tiny_values_keep_their_precision(gpu: EmulatedGpu) -> None:
    weight = torch.ones(256)
    for size in (1e15, 1e-3, 0.0):
        x = random(2, 256, dtype=torch.float32) * size
        found = rms_norm_gpu(gpu, x, weight, eps=EPS)
        assert_near(found, rms_norm_ref(x, weight, eps=EPS))


def test_a_forgotten_barrier_is_a_race(make_gpu: MakeGpu) -> None:
    """In every order of the threads, though in some of them the result happens to be right."""
    broken = make_gpu([norm_kernel("float", 4, THREADS, 1)], defines=["CUEMU_WITHOUT_BARRIERS"])
    x, weight = random(1, 512, dtype=torch.float32), random(512, dtype=torch.float32)
    for order in ORDERS:
        with pytest.raises(EmulatorError, match=r"race|nobody wrote"):
            rms_norm_gpu(broken.taking(order), x, weight, eps=EPS)


@pytest.mark.parametrize("argument", ["x", "weight"])
def test_a_row_off_its_boundary_is_caught(gpu: EmulatedGpu, argument: str) -> None:
    x, weight = random(1, 65, dtype=torch.bfloat16), random(65, dtype=torch.bfloat16)
    x, weight = (x[:, 1:], weight[:64]) if argument == "x" else (x[:, :64], weight[1:])
    with pytest.raises(EmulatorError, match="misaligned: load of 16 bytes"):
        gpu.launch(
            norm_kernel("bf16", 8, THREADS, 1),
            *(torch.empty(1, 64, dtype=torch.bfloat16), x, weight, 1, 1, 64, 64, 0.0, EPS),
            grid=(1,),
            block=(THREADS,),
        )


def test_a_row_too_many_is_caught(gpu: EmulatedGpu) -> None:
    x, weight = random(2, 64, dtype=torch.bfloat16), random(64, dtype=torch.bfloat16)
    with pytest.raises(EmulatorError, match=r"out of bounds: load of 16 .* \[block 2 0 0, thread 0 0 0\]"):
        gpu.launch(
            norm_kernel("bf16", 8, THREADS, 1),
            *(torch.empty(2, 64, dtype=torch.bfloat16), x, weight, 3, 1, 64, 64, 0.0, EPS),
            grid=(3,),
            block=(THREADS,),
        )
