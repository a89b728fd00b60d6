"""Norms, rotation, activation and cache writes against their references, on every instruction set."""

from typing import Any

import pytest
import torch
from torch import Tensor

from trioserve._speedups.elementwise import available_isas
from trioserve.kernels import activation, rms_norm, rope, store_kv
from trioserve.kernels.cpu import is_native
from trioserve.kernels.shapes import ShapeError, Shapes

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NATIVE = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
COUNTS = [0, 1, 37]
"""Tokens."""


def near(found: Tensor, expected: Tensor) -> bool:
    """Equal but for the last bit or two of the type."""
    return torch.allclose(
        found.float(), expected.float(), rtol=TOLERANCE[found.dtype], atol=TOLERANCE[found.dtype] / 10
    )


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", NATIVE, ids=str)
@pytest.mark.parametrize("num_tokens", COUNTS)
def test_compiled_kernels_are_the_references(num_tokens: int, dtype: torch.dtype, isa: str) -> None:
    x, residual = random(num_tokens, 80, dtype=dtype), random(num_tokens, 80, dtype=dtype, seed=1)
    weight, out = random(80, dtype=dtype, seed=2), torch.empty(num_tokens, 80, dtype=dtype)
    expected, total = rms_norm.add_rms_norm_ref(x, residual, weight, eps=1e-5)
    rms_norm._run(out, x, residual, weight, 1e-5, isa=isa)
    assert near(out, expected)
    assert torch.equal(residual, total)
    table, positions = random(99, 2, 40, dtype=torch.float32), torch.arange(num_tokens) % 99
    for interleaved in (False, True):
        heads = random(num_tokens, 5, 80, dtype=dtype)[:, 1:4]
        rotated = rope.rope_ref(heads, positions, table, interleaved=interleaved)
        rope._run(heads, positions, table, interleaved, isa=isa)
        assert near(heads, rotated)
    gate_up = random(num_tokens, 2 * 144, dtype=dtype) * 5
    found = activation._silu_mul(gate_up, isa=isa)
    assert near(found, activation.activation_mul_ref(gate_up, "silu"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [16, 20, 256])
def test_norms_take_every_type_and_size(size: int, dtype: torch.dtype) -> None:
    weight = random(size, dtype=dtype, seed=2)
    for num_tokens in COUNTS:
        x, residual = random(num_tokens, size, dtype=dtype), random(num_tokens, size, dtype=dtype, seed=1)
        expected, total = rms_norm.add_rms_norm_ref(x, residual, weight, eps=1e-5)
        assert near(rms_norm.rms_norm(x, weight, eps=1e-5), rms_norm.rms_norm_ref(x, weight, eps=1e-5))
        assert near(rms_norm.add_rms_norm(x, residual, weight, eps=1e-5), expected)
        assert torch.equal(residual, total)


def test_threads_share_the_rows_of_a_long_prompt() -> None:
    """Enough rows for several runs; every one is done, and done once."""
    x, residual = random(900, 256, dtype=torch.float32), random(900, 256, dtype=torch.float32, seed=1)
    weight = random(256, dtype=torch.float32, seed=2)
    expected, total = rms_norm.add_rms_norm_ref(x, residual, weight, eps=1e-5)
    torch.set_num_threads(3)
    try:
        found = rms_norm.add_rms_norm(x, residual, weight, eps=1e-5)
    finally:
        torch.set_num_threads(1)
    assert near(found, expected)
    assert torch.equal(residual, total)


def test_a_norm_of_heads_reads_a_slice_of_a_wider_row() -> None:
    heads = random(9, 6, 32, dtype=torch.bfloat16)[:, 2:5]
    weight = random(32, dtype=torch.bfloat16)
    found = rms_norm.rms_norm(heads, weight, eps=1e-6)
    assert found.is_contiguous()
    assert near(found, rms_norm.rms_norm_ref(heads, weight, eps=1e-6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [2, 20, 128])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_takes_every_type_and_head(head_dim: int, dtype: torch.dtype, interleaved: bool) -> None:
    table, positions = random(50, 2, head_dim // 2, dtype=torch.float32), torch.tensor([49, 0, 7])
    qkv = random(3, 6, head_dim, dtype=dtype)
    q, k, v = torch.split(qkv, [3, 2, 1], dim=1)
    expected = [rope.rope_ref(x, positions, table, interleaved=interleaved) for x in (q, k)]
    kept = v.clone()
    rope.apply_rope(q, k, positions, table, interleaved=interleaved)
    assert near(q, expected[0])
    assert near(k, expected[1])
    assert torch.equal(v, kept)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
def test_a_part_of_a_head_is_rotated_and_the_rest_stays(dtype: torch.dtype, interleaved: bool) -> None:
    table, positions = random(50, 2, 5, dtype=torch.float32), torch.tensor([49, 0, 7])
    qkv = random(3, 6, 32, dtype=dtype)
    q, k, _ = torch.split(qkv, [3, 2, 1], dim=1)
    before = qkv.clone()
    rope.apply_rope(q, k, positions, table, interleaved=interleaved)
    expected = rope.rope_ref(before[:, :5, :10], positions, table, interleaved=interleaved)
    assert near(qkv[:, :5, :10], expected)
    assert torch.equal(qkv[..., 10:], before[..., 10:])
    assert torch.equal(qkv[:, 5:], before[:, 5:])


def test_the_two_styles_of_rotation_are_permutations_of_each_other() -> None:
    x = random(4, 2, 32, dtype=torch.float32)
    table, positions = random(9, 2, 16, dtype=torch.float32), torch.arange(4)
    halves = rope.rope_ref(x, positions, table, interleaved=False)
    order = torch.arange(32).view(2, 16).T.flatten()
    pairs = rope.rope_ref(x[..., order], positions, table, interleaved=True)
    assert torch.equal(halves[..., order], pairs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("size", [16, 90])
def test_activations_take_every_type_and_size(
    size: int, name: activation.Activation, dtype: torch.dtype
) -> None:
    gate_up = random(5, 2 * size, dtype=dtype) * 3
    assert near(activation.activation_mul(gate_up, name), activation.activation_mul_ref(gate_up, name))


def test_silu_of_extremes_is_finite() -> None:
    gate_up = torch.tensor([[-1e30, -200.0, -88.0, -0.0, 0.0, 88.0, 200.0, 1e30] * 2, [1.0] * 16]).view(1, 32)
    for isa in available_isas():
        found = activation._silu_mul(gate_up, isa=isa)[0, :8]
        assert found[3:].tolist() == pytest.approx([0.0, 0.0, 88.0, 200.0, 1e30], rel=1e-6)
        assert found[:3].abs().max() < 1e-7 * 1e30 * 1e-5  # -1e30 times the smallest normal number


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_heads", "head_dim", "block_size"), [(2, 64, 16), (3, 20, 8), (1, 256, 32)])
def test_keys_and_values_go_to_their_places_and_nowhere_else(
    dtype: torch.dtype, num_heads: int, head_dim: int, block_size: int
) -> None:
    for num_tokens in (1, 5, 200):
        qkv = random(num_tokens, 2 * num_heads + 1, head_dim, dtype=dtype)
        _, k, v = torch.split(qkv, [1, num_heads, num_heads], dim=1)
        slots = torch.randperm(block_size * 40, generator=torch.Generator().manual_seed(0))[:num_tokens]
        found = [torch.full((40, num_heads, block_size, head_dim), 7.0, dtype=dtype) for _ in "kv"]
        expected = [cache.clone() for cache in found]
        store_kv.store_kv(k, v, found[0], found[1], slots)
        store_kv.store_kv_ref(k, v, expected[0], expected[1], slots)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_planted_faults_are_seen() -> None:
    """The comparisons above tell a slip from rounding."""
    x, weight = random(7, 80, dtype=torch.bfloat16), random(80, dtype=torch.bfloat16)
    assert not near(rms_norm.rms_norm(x, weight, eps=1e-2), rms_norm.rms_norm_ref(x, weight, eps=1e-5))
    table, positions = random(50, 2, 40, dtype=torch.float32), torch.arange(7)
    heads = x.view(7, 1, 80)
    right = rope.rope_ref(heads, positions, table, interleaved=False)
    assert not near(right, rope.rope_ref(heads, positions, table, interleaved=True))
    assert not near(right, rope.rope_ref(heads, positions + 1, table, interleaved=False))


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"x": ((2, 3), "rows size"), "y": ((4,), "size")}, r"y \[size\] has size = 4, expected 3"),
        ({"x": ((2, 3, 1), "rows size")}, r"x has shape \(2, 3, 1\), expected \[rows size\]"),
        ({"x": ((2, 3), "same same")}, "has same = 3, expected 2"),
    ],
)
def test_shapes_say_what_does_not_fit(tensors: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ShapeError, match=sentence):
        Shapes(**{name: (torch.empty(shape), spec) for name, (shape, spec) in tensors.items()})


def test_faces_check_shapes() -> None:
    x = torch.empty(2, 32)
    with pytest.raises(ShapeError, match="weight"):
        rms_norm.rms_norm(x, torch.empty(16), eps=1e-6)
    with pytest.raises(ShapeError, match="residual"):
        rms_norm.add_rms_norm(x, torch.empty(3, 32), torch.empty(32), eps=1e-6)
    with pytest.raises(ShapeError, match="positions"):
        rope.apply_rope(
            torch.empty(2, 1, 4),
            torch.empty(2, 1, 4),
            torch.zeros(3),
            torch.empty(9, 2, 2),
            interleaved=False,
        )
    with pytest.raises(ShapeError, match="3 pairs are more than head_dim 4 has"):
        rope.apply_rope(
            torch.empty(2, 1, 4),
            torch.empty(2, 1, 4),
            torch.zeros(2),
            torch.empty(9, 2, 3),
            interleaved=False,
        )
    with pytest.raises(ShapeError, match="both_sizes 5 is odd"):
        activation.activation_mul(torch.empty(2, 5), "silu")
    with pytest.raises(ShapeError, match="v_cache"):
        store_kv.store_kv(
            torch.empty(1, 2, 4),
            torch.empty(1, 2, 4),
            torch.empty(3, 2, 16, 4),
            torch.empty(3, 2, 8, 4),
            torch.zeros(1, dtype=torch.int64),
        )


def test_rows_of_whole_vectors_are_native() -> None:
    assert is_native(torch.bfloat16, 64, 16)
    assert is_native(torch.float32)
    assert not is_native(torch.bfloat16, 64, 20)
    assert not is_native(torch.float16, 64)
