"""Codes of quantized checkpoints: what they stand for, cut anywhere, and as native decoder and GPUs have them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.model.quantized import FORMS, FP8, Form, Written, gptq, pack_words, packed_ints
from trioserve.errors import ModelError
from trioserve.kernels.quantized_linear import unpack
from trioserve.model.quantized_formats import read_quantization
from trioserve.model.quantized_tensors import Span, Stored
from trioserve.model.quantized_weights import Piece, QuantizedWeight

MODULE = "model.layers.0.mlp.down_proj"
SIZES = (48, 128)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def stored_of(form: Form, written: Written) -> Stored:
    tensors = written.tensors
    storage = read_quantization(form.config).storage_of(MODULE, {f"{MODULE}.{name}" for name in tensors})
    assert storage is not None, "its tensors are not found"
    known = {name: tensor for name, tensor in tensors.items() if name in storage.known}
    assert len(known) == len(tensors), "not all its tensors are known"
    out_size, in_size = written.truth.shape
    stored = Stored(MODULE, storage, out_size, in_size, known)
    stored.refuse_misshapen()
    return stored


def matrix(out_size: int, in_size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_size, in_size, generator=generator)
    return weight * torch.linspace(0.5, 3.0, out_size)[:, None]


def whole(stored: Stored, columns: Span | None = None) -> QuantizedWeight:
    return QuantizedWeight([Piece(stored, Span(0, stored.out_size), columns or Span(0, stored.in_size))])


@pytest.mark.parametrize("name", FORMS)
def test_a_matrix_is_what_its_codes_stand_for_rounded_once(name: str) -> None:
    written = FORMS[name].write(matrix(*SIZES))
    weight = whole(stored_of(FORMS[name], written))
    assert weight.shape == SIZES
    for dtype in DTYPES:
        # a product of 8 and 24 bits is not exact in float32
        expected = written.truth.float().to(dtype)
        assert torch.equal(weight.dense(dtype), expected), dtype


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(FORMS)),
    rows=st.tuples(st.integers(0, 47), st.integers(1, 48)),
    columns=st.tuples(st.integers(0, 127), st.integers(1, 128)),
    seed=st.integers(0, 3),
)
def test_any_part_is_that_of_the_whole(
    name: str, rows: tuple[int, int], columns: tuple[int, int], seed: int
) -> None:
    written = FORMS[name].write(matrix(*SIZES, seed))
    stored = stored_of(FORMS[name], written)
    row_span, column_span = (
        Span(start, min(start + length, size))
        for (start, length), size in zip((rows, columns), SIZES, strict=True)
    )
    part = Piece(stored, row_span, column_span)
    expected = written.truth.float()[slice(*row_span), slice(*column_span)]
    assert torch.equal(part.dense(torch.float32), expected)
    native = QuantizedWeight([part])
    if native.native_format is not None:
        assert torch.allclose(native_matrix(native), expected.double(), rtol=0, atol=tolerance(written))


def tolerance(written: Written) -> float:
    """What rounding scales to bfloat16 may cost a weight."""
    return float(written.truth.abs().max()) * 2 / 256 * 1.01


def test_scales_may_be_powers_of_two_in_a_byte() -> None:
    written = FORMS["fp8-blocks"].write(matrix(64, 64))
    powers = torch.tensor([[0.5, 2.0], [4.0, 0.125]])
    written.tensors["weight_scale_inv"] = powers.to(torch.float8_e8m0fnu)
    spread = powers.repeat_interleave(32, 0).repeat_interleave(32, 1)
    expected = written.tensors["weight"].float() * spread
    assert torch.equal(whole(stored_of(FORMS["fp8-blocks"], written)).dense(torch.float32), expected)


# ---- on a CPU --------------------------------------------------------------------------------------------------------


def native_matrix(weight: QuantizedWeight) -> Tensor:
    """What the native codes stand for, as _speedups/quantize.h says."""
    codes, grids = (each.double() for each in weight.native())
    if weight.native_format == "int8":
        return (codes - 128) * grids[:, None]
    spread = grids.repeat_interleave(32, dim=1)[:, : codes.shape[1]]
    return spread[..., 0] * codes + spread[..., 1]


@pytest.mark.parametrize("name", FORMS)
def test_codes_are_kept_where_the_native_decoder_has_them(name: str) -> None:
    written = FORMS[name].write(matrix(*SIZES))
    weight = whole(stored_of(FORMS[name], written))
    assert weight.native_format == FORMS[name].native
    if weight.native_format is not None:
        assert weight.native().codes.dtype == torch.uint8
        assert torch.allclose(native_matrix(weight), written.truth, rtol=0, atol=tolerance(written))


@pytest.mark.parametrize("name", ["packed-int4", "packed-int8", "int8", "gptq-8-rows"])
def test_codes_are_kept_exactly_where_their_scales_are_the_native_ones(name: str) -> None:
    written = FORMS[name].write(matrix(*SIZES))
    assert torch.equal(native_matrix(whole(stored_of(FORMS[name], written))), written.truth)


def test_a_cut_within_a_group_makes_smaller_groups_where_they_are_still_whole() -> None:
    form = FORMS["packed-int4"]
    stored = stored_of(form, form.write(matrix(16, 256)))
    assert whole(stored, Span(64, 160)).native_format == "int4"
    assert whole(stored, Span(40, 160)).native_format is None


# ---- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_the_kernels_codes_stand_for_the_same(name: str, dtype: torch.dtype) -> None:
    """But for scales of 4 bits, which they have in the activations' type, and for -128."""
    written = FORMS[name].write(matrix(*SIZES))
    weight = whole(stored_of(FORMS[name], written))
    packed = weight.packed(dtype)
    assert (packed is not None) == FORMS[name].has_packed
    if packed is None:
        return
    order = weight.columns
    assert (order is not None) == ("desc-act" in name or "actorder" in name)
    expected = written.truth if order is None else written.truth[:, order]
    steps = expected.abs().amax(1, keepdim=True) / 127
    assert ((unpack(packed) - expected).abs() <= expected.abs() / 256 + steps * 1.02).all()
    if "int4" in name and "asymmetric" not in name and dtype == torch.bfloat16:
        assert torch.equal(unpack(packed), expected)


def test_groups_of_96_are_several_of_32_on_a_gpu() -> None:
    form = packed_ints(4, 96, torch.bfloat16)
    written = form.write(matrix(32, 192))
    packed = whole(stored_of(form, written)).packed(torch.bfloat16)
    assert packed is not None and packed.group_size == 32
    assert torch.equal(unpack(packed), written.truth)


def test_pieces_below_each_other_are_packed_together_if_they_are_alike() -> None:
    form = FORMS["awq"]
    both = [form.write(matrix(48, 128, seed)) for seed in (1, 2)]
    pieces = [Piece(stored_of(form, each), Span(8, 40), Span(0, 128)) for each in both]
    packed = QuantizedWeight(pieces).packed(torch.float16)
    assert packed is not None
    expected = torch.cat([each.truth[8:40] for each in both])
    assert torch.equal(unpack(packed), expected)
    other = FORMS["gptq"]
    pieces[1] = Piece(stored_of(other, other.write(matrix(48, 128))), Span(8, 40), Span(0, 128))
    mixed = QuantizedWeight(pieces)
    assert (mixed.packed(torch.float16), mixed.native_format) == (None, None)
    assert mixed.name == "awq int4 and gptq int4"


# ---- words that others have packed -----------------------------------------------------------------------------------

LIBRARY_ROWS: tuple[tuple[str, list[int], list[int], list[float]], ...] = (
    ("ae75187829ac7de7", [-2021566486, 2128071314], [2, 6], [1.0, 1.0]),
    ("79842c6ea4307559", [-423475049, -1789459638], [-2, -7], [1.0, 4.0]),
    ("6d682e5e812a7083", [-438139178, 940024344], [1, -8], [0.25, 1.0]),
    ("ad10edc323f2f9f2", [1021182426, 798961458], [1, -5], [0.5, 4.0]),
    ("10199b0c72e63eeb", [-1061580543, -1092391385], [-7, -6], [0.25, 0.25]),
    ("78267da79275305e", [2060935815, -452765911], [7, 7], [0.5, 1.0]),
    ("f4bbb38958bad670", [-1740915889, 124627845], [7, -5], [0.5, 4.0]),
    ("e46b84f81e9d54e2", [-1891060146, 776329697], [-6, 1], [0.25, 2.0]),
)
"""By version 0.20 of compressed-tensors: codes that count from 0, words, zero points of each eight columns, scales."""
LIBRARY_ZEROS = [[804362602, -1812844514]]


def test_words_of_compressed_tensors_are_read_as_its_library_wrote_them() -> None:
    form = packed_ints(4, 8, torch.bfloat16, symmetric=False)
    digits, words, zeros, scales = zip(*LIBRARY_ROWS, strict=True)
    codes = torch.tensor([[int(digit, 16) for digit in row] for row in digits]) - 8
    spread = [torch.tensor(each).repeat_interleave(8, 1) for each in (zeros, scales)]
    truth = (codes - spread[0]).double() * spread[1]
    tensors = {
        "weight_packed": torch.tensor(words, dtype=torch.int32),
        "weight_scale": torch.tensor(scales).bfloat16(),
        "weight_zero_point": torch.tensor(LIBRARY_ZEROS, dtype=torch.int32),
        "weight_shape": torch.tensor([8, 16]),
    }
    weight = whole(stored_of(form, Written(tensors, truth)))
    assert torch.equal(weight.dense(torch.bfloat16), truth.bfloat16())
    # and the packer of these tests writes the same
    assert torch.equal(pack_words(codes + 8, 4, 1), tensors["weight_packed"])
    assert torch.equal(pack_words(torch.tensor(zeros) + 8, 4, 0), tensors["weight_zero_point"])


def test_words_of_awq_have_the_even_columns_first() -> None:
    """Eight output columns 0 to 7 in one word: from its lowest bits on 0, 2, 4, 6, 1, 3, 5, 7."""
    tensors = {
        "qweight": torch.tensor([[0x75316420]], dtype=torch.int32),
        "qzeros": torch.tensor([[0]], dtype=torch.int32),
        "scales": torch.ones(1, 8, dtype=torch.float16),
    }
    weight = whole(stored_of(FORMS["awq-rows"], Written(tensors, torch.zeros(8, 1))))
    assert weight.dense(torch.float32)[:, 0].tolist() == list(range(8))


def test_zero_points_of_the_first_gptq_are_less_by_one_of_whole_words() -> None:
    """Zero points 0, 3, 0 and 5 less one each, 0 having borrowed from its neighbour; then 8 four times."""
    stored = (0x88885030 - 0x11111111) & 0xFFFFFFFF
    tensors = {
        "qweight": torch.zeros(1, 8, dtype=torch.int32),
        "qzeros": torch.tensor([[stored]], dtype=torch.int64).to(torch.int32),
        "scales": torch.ones(1, 8, dtype=torch.float16),
    }
    weight = whole(stored_of(gptq(4, None), Written(tensors, torch.zeros(8, 8))))
    assert weight.dense(torch.float32)[:, 0].tolist() == [0, -3, 0, -5, -8, -8, -8, -8]


# ---- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "change", "sentence"),
    [
        ("awq", "qweight", lambda x: x[:-1], "qweight has shape \\[127, 6\\], the config says \\[128, 6\\]"),
        ("awq", "scales", lambda x: x[:1], "scales has shape \\[1, 48\\], the config says \\[4, 48\\]"),
        ("gptq", "qzeros", lambda x: x.long(), "qzeros is of type int64, not int32"),
        ("gptq-desc-act", "g_idx", lambda x: x + 1, "g_idx names group 4, there are 4"),
        ("fp8", "weight", lambda x: x.view(torch.int8), "weight is of type int8, not float8_e4m3fn"),
        ("int8", "weight", lambda x: x.to(FP8), "weight is of type float8_e4m3fn, not int8"),
    ],
)
def test_tensors_that_are_no_such_matrix_are_refused(
    name: str, kind: str, change: object, sentence: str
) -> None:
    assert callable(change)
    written = FORMS[name].write(matrix(*SIZES))
    written.tensors[kind] = change(written.tensors[kind])
    with pytest.raises(ModelError, match=f"^tensor {MODULE}.{sentence}$"):
        stored_of(FORMS[name], written)
