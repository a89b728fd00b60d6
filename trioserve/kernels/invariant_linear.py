"""Dense products on a GPU whose rows have the same bits in every batch, where the usual libraries' have not."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from torch import Tensor

from trioserve.kernels.gpu import Gpu, element_of
from trioserve.kernels.shapes import ShapeError, Shapes
from trioserve.kernels.source import Kernel

_DEPTH: Final = 64
"""Columns of a stage."""
_WARP: Final = 32


@dataclass(frozen=True, slots=True)
class Tile:
    """What a block computes, and by how many warps."""

    row_warps: int
    token_warps: int
    row_parts: int
    """Of 16 rows, of a warp."""
    token_parts: int
    """Of 8 tokens, of a warp."""
    stages: int

    @property
    def rows(self) -> int:
        """Of the weight."""
        return self.row_warps * self.row_parts * 16

    @property
    def tokens(self) -> int:
        """Of ``x``."""
        return self.token_warps * self.token_parts * 8

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.row_warps * self.token_warps * _WARP

    @property
    def shared_bytes(self) -> int:
        """What the stages take."""
        return self.stages * (self.rows + self.tokens) * _DEPTH * 2

    def count(self, num_tokens: int, out_size: int) -> int:
        """Blocks of a product."""
        return -(-num_tokens // self.tokens) * -(-out_size // self.rows)


FEW: Final = Tile(row_warps=2, token_warps=1, row_parts=1, token_parts=2, stages=6)
"""Narrow, so that few tokens have as many blocks as possible to read the weights."""
SOME: Final = Tile(row_warps=2, token_warps=2, row_parts=1, token_parts=4, stages=4)
MANY: Final = Tile(row_warps=4, token_warps=2, row_parts=2, token_parts=8, stages=3)
TILES: Final = (FEW, SOME, MANY)


def tile_for(num_tokens: int, out_size: int, num_multiprocessors: int) -> Tile:
    """The tile that is likely fastest; the bits of a result are the same with any."""
    if num_tokens <= FEW.tokens:
        return FEW
    return MANY if MANY.count(num_tokens, out_size) >= num_multiprocessors else SOME


def invariant_linear_gpu(gpu: Gpu, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear`` by ``linear.cu``: a row's bits depend on that row alone.

    Shapes:
        x: [num_tokens, in_size] bfloat16 or float16, in_size a multiple of 8
        weight: [out_size, in_size], of x's type
        bias: [out_size], of x's type
        result: [num_tokens, out_size]
    Raises:
        ShapeError: They do not fit each other.
        KernelError: No kernel takes their type.
    """
    tensors = {"x": (x, "num_tokens in_size"), "weight": (weight, "out_size in_size")}
    shapes = Shapes(**tensors, **({} if bias is None else {"bias": (bias, "out_size")}))
    num_tokens, in_size, out_size = (shapes[name] for name in ("num_tokens", "in_size", "out_size"))
    _check_rows(x, weight, bias)
    tile = tile_for(num_tokens, out_size, gpu.num_multiprocessors)
    out = torch.empty(num_tokens, out_size, dtype=x.dtype, device=x.device)
    gpu.launch(
        kernel(element_of(x.dtype, "bf16", "fp16"), tile),
        *(out, x, weight, x.new_empty(0) if bias is None else bias),
        *(num_tokens, in_size, out_size, int(bias is not None), x.stride(0)),
        grid=(tile.count(num_tokens, out_size),),
        block=(tile.threads,),
        shared_bytes=tile.shared_bytes,
    )
    return out


def invariant_linear_ref(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The truth for ``invariant_linear_gpu``: float64, rounded once."""
    exact = x.double() @ weight.double().T
    return (exact if bias is None else exact + bias.double()).to(x.dtype)


@cache
def kernel(element: str, tile: Tile) -> Kernel:
    """``invariant_linear``."""
    warps = f"{tile.row_warps}, {tile.token_warps}, {tile.row_parts}, {tile.token_parts}"
    return Kernel("linear.cu", f"invariant_linear<{element}, {warps}, {tile.stages}>")


def instances() -> Iterator[Kernel]:
    """Every kernel there is."""
    for element in ("bf16", "fp16"):
        yield from (kernel(element, tile) for tile in TILES)


def shared_bytes(of: Kernel) -> int:
    """Shared memory that a launch of ``of`` asks for."""
    return Tile(*map(int, of.choices[1:])).shared_bytes


def _check_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.shape[1] % 8:
        raise ShapeError(f"in_size is {x.shape[1]}, no multiple of 8")
    for name, other in (("weight", weight), ("bias", bias)):
        if other is not None and other.dtype != x.dtype:
            raise ShapeError(f"{name} is {other.dtype}, and x is {x.dtype}")
    assert x.stride(1) == 1 and x.stride(0) % 8 == 0, "the rows of x are not vectors of 16 bytes"
    assert weight.is_contiguous(), "weight is not contiguous"
    assert bias is None or bias.is_contiguous(), "bias is not contiguous"
