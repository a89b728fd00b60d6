"""Products with packed weights are the plain products."""

import pytest
import torch
from torch.nn.functional import linear

from trioserve.kernels.linear import pack_weight, packed_linear
from trioserve.kernels.shapes import ShapeError


@pytest.mark.parametrize(("out_size", "in_size"), [(96, 64), (512, 256), (33, 20)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_packed_product_is_the_plain_one(out_size: int, in_size: int, has_bias: bool) -> None:
    weight = torch.randn(out_size, in_size).bfloat16()
    bias = torch.randn(out_size).bfloat16() if has_bias else None
    packed = pack_weight(weight)
    if packed is None:
        pytest.skip("this processor's oneDNN has no layout for bf16")
    for num_tokens in (1, 3, 40):
        x = torch.randn(num_tokens, in_size).bfloat16()
        expected = linear(x.float(), weight.float(), None if bias is None else bias.float())
        found = packed_linear(x, packed, bias)
        assert (found.float() - expected).abs().max() < 0.01 * expected.abs().max()
    with pytest.raises(ShapeError, match="x has shape"):
        packed_linear(torch.randn(in_size).bfloat16(), packed, bias)


def test_other_types_are_not_packed() -> None:
    assert pack_weight(torch.randn(8, 8)) is None
