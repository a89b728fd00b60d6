"""Matrices of quantized checkpoints, multiplied by the kernels of a GPU."""

import pytest
import torch

from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.emu.tensors import random
from tests.model.quantized import FORMS
from tests.model.test_quantized_weights import matrix, stored_of, whole
from trioserve.kernels.quantized_linear import instances, quantized_linear_gpu
from trioserve.model.quantized_tensors import Span


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu(instances())


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.has_packed])
@pytest.mark.parametrize("columns", [Span(0, 256), Span(64, 192)], ids=["whole", "part"])
def test_packed_codes_give_the_product_with_the_dense_matrix(
    gpu: EmulatedGpu, name: str, columns: Span
) -> None:
    """Groups are of 32 columns; those that lie scattered are whole only in the whole matrix."""
    weight = whole(stored_of(FORMS[name], FORMS[name].write(matrix(48, 256))), columns)
    x = random(3, columns.length, dtype=torch.float16, seed=1)
    packed, order = weight.packed(torch.float16), weight.columns
    if columns.length < 256 and order is not None:
        assert packed is None
        return
    assert packed is not None
    found = quantized_linear_gpu(gpu, x if order is None else x[:, order], packed)
    expected = x.double() @ weight.dense(torch.float64).T
    # a code of -128 may have become -127, which is a 127th of its row's largest weight
    most = 2.0**-10 if "int8" not in name and "gptq-8" not in name else 2.0**-6
    assert float((found.double() - expected).abs().max() / expected.abs().max()) < most
