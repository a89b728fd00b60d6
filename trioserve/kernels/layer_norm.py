"""Layer normalisation with the residual sum before it, on a GPU."""

from collections.abc import Iterator
from functools import cache
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from trioserve.kernels.gpu import ELEMENTS_AND_WIDTHS, Gpu, element_of, width_of
from trioserve.kernels.shapes import Shapes
from trioserve.kernels.source import Kernel

THREADS: Final = 256
"""That share a row."""
_ELEMENTS: Final = ("bf16", "fp16")


def add_layer_norm_gpu(
    gpu: Gpu,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float,
    x_scale: float = 1.0,
) -> Tensor:
    """Add ``x_scale * x`` to ``residual`` in place and normalise the sum to mean 0 and variance 1.

    Shapes:
        x, residual, result: [num_tokens, hidden_size] bfloat16 or float16
        weight, bias: [hidden_size]
    Raises:
        ShapeError: They do not fit each other.
    """
    rows, row = "num_tokens hidden_size", "hidden_size"
    none = weight.new_empty(0) if bias is None else bias
    tensors = {"x": (x, rows), "residual": (residual, rows), "weight": (weight, row)}
    sizes = Shapes(**tensors, **({} if bias is None else {"bias": (bias, row)}))
    assert x.stride(1) == 1 and residual.is_contiguous(), "the rows of x or residual are not contiguous"
    assert weight.is_contiguous() and none.is_contiguous(), "weight or bias is not contiguous"
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    gpu.launch(
        kernel(element_of(x.dtype, *_ELEMENTS), width_of(x.dtype, x.shape[1], x.stride(0))),
        *(out, x, residual, weight, none, x.stride(0), sizes["hidden_size"]),
        *(int(bias is not None), x_scale, eps),
        grid=(sizes["num_tokens"],),
        block=(THREADS,),
    )
    return out


def add_layer_norm_ref(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float,
    x_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The truth for ``add_layer_norm_gpu``: the normalised sum and the sum, nothing in place."""
    total = (x_scale * x.float() + residual.float()).to(x.dtype)
    wide = None if bias is None else bias.float()
    return layer_norm(total.float(), total.shape[-1:], weight.float(), wide, eps).to(x.dtype), total


@cache
def kernel(element: str, width: int) -> Kernel:
    """``add_layer_norm``."""
    return Kernel("layer_norm.cu", f"add_layer_norm<{element}, {width}, {THREADS}>")


def instances() -> Iterator[Kernel]:
    """Every kernel there is."""
    yield from (kernel(element, width) for element, width in ELEMENTS_AND_WIDTHS if element in _ELEMENTS)
