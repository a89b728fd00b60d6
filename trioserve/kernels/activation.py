"""The gate of a gated MLP: activation of one half times the other."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from trioserve._speedups import elementwise as native
from trioserve.kernels.cpu import ISA, is_native
from trioserve.kernels.driver import gpu_of
from trioserve.kernels.gpu import ELEMENTS_AND_WIDTHS, Gpu, element_of, width_of
from trioserve.kernels.shapes import ShapeError, Shapes
from trioserve.kernels.source import Kernel

Activation = Literal["silu", "gelu", "gelu_tanh"]

_FUNCTIONS: Final[Mapping[Activation, Callable[[Tensor], Tensor]]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
}

_NAMES: Final[Mapping[Activation, str]] = {"silu": "Silu", "gelu": "Gelu", "gelu_tanh": "GeluTanh"}
"""In ``activation.cu``."""
THREADS: Final = 256
"""Of a block there."""


def activation_mul(gate_up: Tensor, activation: Activation) -> Tensor:
    """``activation(gate) * up``.

    Shapes:
        gate_up: [num_tokens, 2 * intermediate_size], gate then up
        result: [num_tokens, intermediate_size]
    Raises:
        ShapeError: ``gate_up`` has no two halves.
    """
    both = Shapes(gate_up=(gate_up, "num_tokens both_sizes"))["both_sizes"]
    if both % 2:
        raise ShapeError(f"both_sizes {both} is odd")
    if gate_up.is_cuda:
        return activation_mul_gpu(gpu_of(gate_up.device), gate_up, activation)
    if activation != "silu" or not is_native(gate_up.dtype, both // 2):
        return activation_mul_ref(gate_up, activation)
    return _silu_mul(gate_up)


def activation_mul_gpu(gpu: Gpu, gate_up: Tensor, activation: Activation) -> Tensor:
    """``activation_mul`` by ``activation.cu``."""
    assert gate_up.is_contiguous(), "gate_up is not contiguous"
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out, width = gate_up.new_empty(num_tokens, size), width_of(gate_up.dtype, size)
    gpu.launch(
        kernel(element_of(gate_up.dtype), activation, width),
        *(out, gate_up, size),
        grid=(num_tokens, -(-size // (width * THREADS))),
        block=(THREADS,),
    )
    return out


@cache
def kernel(element: str, activation: Activation, width: int) -> Kernel:
    """``activation_mul``."""
    return Kernel("activation.cu", f"activation_mul<{element}, {_NAMES[activation]}, {width}, {THREADS}>")


def instances() -> Iterator[Kernel]:
    """Every kernel there is."""
    yield from (kernel(element, name, width) for name in _NAMES for element, width in ELEMENTS_AND_WIDTHS)


def _silu_mul(gate_up: Tensor, *, isa: str = ISA) -> Tensor:
    assert gate_up.is_contiguous(), "gate_up is not contiguous"
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, size), dtype=gate_up.dtype)
    native.silu_mul(
        out.data_ptr(),
        gate_up.data_ptr(),
        num_tokens=num_tokens,
        size=size,
        is_bf16=gate_up.dtype == torch.bfloat16,
        num_threads=torch.get_num_threads(),
        isa=isa,
    )
    return out


def activation_mul_ref(gate_up: Tensor, activation: Activation) -> Tensor:
    """The truth for ``activation_mul``: float32, rounded once."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    result: Tensor = _FUNCTIONS[activation](gate) * up
    return result.to(gate_up.dtype)
