"""Root mean square normalisation, alone and with the residual sum before it."""

from collections.abc import Iterator
from functools import cache
from typing import Final

import torch
from torch import Tensor

from trioserve._speedups import elementwise as native
from trioserve.kernels.cpu import ISA, is_native
from trioserve.kernels.driver import gpu_of
from trioserve.kernels.gpu import ELEMENTS_AND_WIDTHS, Gpu, element_of, width_of
from trioserve.kernels.shapes import Shapes
from trioserve.kernels.source import Kernel

THREADS: Final = 256
"""That share a row in ``rms_norm.cu``; heads have a warp each."""
ROWS: Final = 8
"""Of a block of heads."""
_WARP: Final = 32


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0) -> Tensor:
    """``x`` at unit root mean square along its last dimension, times ``weight + offset``.

    Shapes:
        x, result: [num_tokens, hidden_size], or [num_tokens, num_heads, hidden_size] with heads contiguous
        weight: [hidden_size]
    Raises:
        ShapeError: The last dimension of ``x`` is not that of ``weight``.
    """
    spec = "num_tokens hidden_size" if x.dim() == 2 else "num_tokens num_heads hidden_size"
    size = Shapes(x=(x, spec), weight=(weight, "hidden_size"))["hidden_size"]
    if x.is_cuda:
        return rms_norm_gpu(gpu_of(x.device), x, weight, eps=eps, offset=offset)
    if offset or not is_native(x.dtype, size):
        return rms_norm_ref(x, weight, eps=eps, offset=offset)
    out = torch.empty(x.shape, dtype=x.dtype)
    _run(out, x, None, weight, eps)
    return out


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    *,
    eps: float,
    offset: float = 0.0,
    x_scale: float = 1.0,
) -> Tensor:
    """Add ``x_scale * x`` to ``residual`` in place and normalise the sum, as ``rms_norm`` does.

    Shapes:
        x, residual, result: [num_tokens, hidden_size]
        weight: [hidden_size]
    Raises:
        ShapeError: They do not fit each other.
    """
    size = Shapes(
        x=(x, "num_tokens hidden_size"),
        residual=(residual, "num_tokens hidden_size"),
        weight=(weight, "hidden_size"),
    )["hidden_size"]
    if x.is_cuda:
        return add_rms_norm_gpu(
            gpu_of(x.device), x, residual, weight, eps=eps, offset=offset, x_scale=x_scale
        )
    if offset or x_scale != 1.0 or not is_native(x.dtype, size):
        out, total = add_rms_norm_ref(x, residual, weight, eps=eps, offset=offset, x_scale=x_scale)
        residual.copy_(total)
        return out
    out = torch.empty(x.shape, dtype=x.dtype)
    _run(out, x, residual, weight, eps)
    return out


def rms_norm_gpu(gpu: Gpu, x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0) -> Tensor:
    """``rms_norm`` by ``rms_norm.cu``."""
    _check_rows(x, None, weight)
    num_tokens, num_heads, size = x.shape[0], x.shape[1] if x.dim() == 3 else 1, x.shape[-1]
    threads, rows = (_WARP, ROWS) if x.dim() == 3 else (THREADS, 1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    gpu.launch(
        norm_kernel(element_of(x.dtype), width_of(x.dtype, size, x.stride(0)), threads, rows),
        *(out, x, weight, num_tokens, num_heads, x.stride(0), size, offset, eps),
        grid=(-(-num_tokens * num_heads // rows),),
        block=(threads, rows),
    )
    return out


def add_rms_norm_gpu(
    gpu: Gpu,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    *,
    eps: float,
    offset: float = 0.0,
    x_scale: float = 1.0,
) -> Tensor:
    """``add_rms_norm`` by ``rms_norm.cu``."""
    _check_rows(x, residual, weight)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    gpu.launch(
        add_norm_kernel(element_of(x.dtype), width_of(x.dtype, x.shape[1], x.stride(0))),
        *(out, x, residual, weight, x.stride(0), x.shape[1], offset, x_scale, eps),
        grid=(x.shape[0],),
        block=(THREADS,),
    )
    return out


def add_normed_gpu(
    gpu: Gpu,
    x: Tensor,
    residual: Tensor,
    x_weight: Tensor,
    weight: Tensor | None,
    *,
    eps: float,
    offset: float = 0.0,
    x_scale: float = 1.0,
) -> Tensor:
    """Normalise ``x``, add ``x_scale`` times that to ``residual`` in place, and normalise the sum.

    Shapes:
        x, residual, result: [num_tokens, hidden_size]; without a ``weight`` the result is ``residual``
        x_weight, weight: [hidden_size]
    Raises:
        ShapeError: They do not fit each other.
    """
    spec = "num_tokens hidden_size"
    sizes = Shapes(x=(x, spec), residual=(residual, spec), x_weight=(x_weight, "hidden_size"))
    for each in (x_weight, x_weight if weight is None else weight):
        _check_rows(x, residual, each)
        Shapes(residual=(residual, spec), weight=(each, "hidden_size"))
    out = residual if weight is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    none = x.new_empty(0)
    gpu.launch(
        add_normed_kernel(element_of(x.dtype), width_of(x.dtype, x.shape[1], x.stride(0))),
        *(none if weight is None else out, x, residual, x_weight, none if weight is None else weight),
        *(x.stride(0), sizes["hidden_size"], int(weight is not None), offset, x_scale, eps),
        grid=(x.shape[0],),
        block=(THREADS,),
    )
    return out


@cache
def norm_kernel(element: str, width: int, threads: int, rows: int) -> Kernel:
    """``rms_norm``."""
    return Kernel("rms_norm.cu", f"rms_norm<{element}, {width}, {threads}, {rows}>")


@cache
def add_norm_kernel(element: str, width: int) -> Kernel:
    """``add_rms_norm``."""
    return Kernel("rms_norm.cu", f"add_rms_norm<{element}, {width}, {THREADS}>")


@cache
def add_normed_kernel(element: str, width: int) -> Kernel:
    """``add_normed``."""
    return Kernel("rms_norm.cu", f"add_normed<{element}, {width}, {THREADS}>")


def instances() -> Iterator[Kernel]:
    """Every kernel there is."""
    for element, width in ELEMENTS_AND_WIDTHS:
        yield norm_kernel(element, width, THREADS, 1)
        yield norm_kernel(element, width, _WARP, ROWS)
        yield add_norm_kernel(element, width)
        yield add_normed_kernel(element, width)


def _run(
    out: Tensor, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, *, isa: str = ISA
) -> None:
    size, inner = x.shape[-1], x.shape[1] if x.dim() == 3 else 1
    _check_rows(x, residual, weight)
    native.rms_norm(
        out.data_ptr(),
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        num_rows=x.shape[0] * inner,
        inner=inner,
        stride=x.stride(0),
        size=size,
        eps=eps,
        is_bf16=x.dtype == torch.bfloat16,
        num_threads=torch.get_num_threads(),
        isa=isa,
    )


def _check_rows(x: Tensor, residual: Tensor | None, weight: Tensor) -> None:
    assert x.stride(-1) == 1 and x.stride(-2) in (x.shape[-1], x.stride(0)), (
        "the rows of x are not contiguous"
    )
    assert weight.is_contiguous(), "weight is not contiguous"
    assert residual is None or residual.is_contiguous(), "residual is not contiguous"


def rms_norm_ref(x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0) -> Tensor:
    """The truth for ``rms_norm``: float32 throughout, rounded once."""
    wide = x.float()
    scale = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (wide * scale * (weight.float() + offset)).to(x.dtype)


def add_rms_norm_ref(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    *,
    eps: float,
    offset: float = 0.0,
    x_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The truth for ``add_rms_norm``: the normalised sum and the sum, nothing in place."""
    total = (x_scale * x.float() + residual.float()).to(x.dtype)
    return rms_norm_ref(total, weight, eps=eps, offset=offset), total


def add_normed_ref(
    x: Tensor,
    residual: Tensor,
    x_weight: Tensor,
    weight: Tensor | None,
    *,
    eps: float,
    offset: float = 0.0,
    x_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The truth for ``add_normed_gpu``: the result and the sum, nothing in place."""
    normed = rms_norm_ref(x, x_weight, eps=eps, offset=offset)
    total = (x_scale * normed.float() + residual.float()).to(x.dtype)
    return total if weight is None else rms_norm_ref(total, weight, eps=eps, offset=offset), total
