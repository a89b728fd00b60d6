"""Products of a GPU's decoder: activations times a weight, in whatever form it lies there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from trioserve.kernels.gpu import Gpu
from trioserve.kernels.invariant_linear import invariant_linear_gpu
from trioserve.kernels.quantized_linear import PackedWeight, quantized_linear_gpu
from trioserve.kernels.unpack_weight import unpack_weight_gpu
from trioserve.model.device_quantization import TILE
from trioserve.model.ranks import Sums

MOST_BY_CODES: Final = 64
"""Tokens up to which codes are read once for each 16 of them, rather than unpacked.

Of codes of 8 bits that is four bytes a weight, of which the last three come out of the L2 cache where the matrix fits;
unpacked it is one read, two written and two read again.
"""
SCRATCH_ELEMENTS: Final = 1 << 24
"""Of the memory that weights are unpacked to, piece by piece: 32 MB, which a product finds in the L2 cache still."""


class Product(Protocol):
    """[num_tokens, in_size] -> [num_tokens, out_size], which are the sizes of this rank's part."""

    @property
    def num_bytes(self) -> int:
        """Memory of its weight, and bias."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Dense:
    """By torch, which is to say cuBLAS."""

    weight: Tensor
    """[out_size, in_size]"""
    bias: Tensor | None

    @property
    def num_bytes(self) -> int:
        """As ``Product`` says."""
        return self.weight.nbytes + _bytes_of(self.bias)

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Invariant:
    """By ``linear.cu``: a token's result is the same to the bit in any batch, which cuBLAS does not promise."""

    gpu: Gpu
    weight: Tensor
    """[out_size, in_size]"""
    bias: Tensor | None

    @property
    def num_bytes(self) -> int:
        """As ``Product`` says."""
        return self.weight.nbytes + _bytes_of(self.bias)

    def __call__(self, x: Tensor) -> Tensor:
        return invariant_linear_gpu(self.gpu, x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Quantized:
    """Few tokens by the weight's codes, more of them by a dense product with what is unpacked for it."""

    gpu: Gpu
    packed: PackedWeight
    bias: Tensor | None
    columns: Tensor | None
    """The order in which the weight has its columns, [in_size] int64; None: that of ``x``."""
    scratch: Tensor
    """[num_elements] of the activations' type, which all products of a decoder share: one runs after the other."""
    is_invariant: bool
    """Whether a token's sums must be the same to the bit in any batch: by codes then, however many there are."""

    @property
    def num_bytes(self) -> int:
        """As ``Product`` says."""
        return self.packed.num_bytes + _bytes_of(self.bias) + _bytes_of(self.columns)

    def __call__(self, x: Tensor) -> Tensor:
        if self.columns is not None:
            x = x.index_select(1, self.columns)
        if len(x) <= MOST_BY_CODES or self.is_invariant:
            return quantized_linear_gpu(
                self.gpu, x, self.packed, self.bias, batch_invariant=self.is_invariant
            )
        out = self._unpacked(x)
        return out if self.bias is None else out.add_(self.bias)

    def _unpacked(self, x: Tensor) -> Tensor:
        out = x.new_empty(len(x), self.packed.out_size)
        for start, piece in self._pieces():
            size = piece.out_size * piece.in_size
            dense = self.scratch[:size].view(piece.out_size, piece.in_size)
            unpack_weight_gpu(self.gpu, piece, dense)
            torch.mm(x, dense.t(), out=out[:, start : start + piece.out_size])
        return out

    def _pieces(self) -> Iterator[tuple[int, PackedWeight]]:
        """Tiles of rows that find room together in ``scratch``, and their first row."""
        packed = self.packed
        step = len(self.scratch) // (TILE * packed.in_size)
        for tile in range(0, len(packed.weight), step):
            tiles, start = slice(tile, tile + step), tile * TILE
            rows = tiles if packed.group_size else slice(start, start + step * TILE)
            out_size = min(packed.out_size - start, step * TILE)
            yield (
                start,
                replace(packed, weight=packed.weight[tiles], scales=packed.scales[rows], out_size=out_size),
            )


@dataclass(frozen=True, slots=True)
class Summed:
    """A product whose input features the ranks have shared out; one rank has the bias."""

    product: Product
    sums: Sums

    @property
    def num_bytes(self) -> int:
        """As ``Product`` says."""
        return self.product.num_bytes

    def __call__(self, x: Tensor) -> Tensor:
        return summed(self.product(x), self.sums)


def summed(x: Tensor, sums: Sums) -> Tensor:
    """``sums.sum``, which need not take place where there are no rows."""
    return sums.sum(x) if len(x) else x


def scratch_for(largest: int, deepest: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for ``Quantized``: a tile at least, and no more than the largest weight.

    Args:
        largest: Elements of that weight.
        deepest: Of one row of any of them.
    """
    size = max(min(largest, SCRATCH_ELEMENTS), TILE * deepest)
    return torch.empty(size, dtype=dtype, device=device)


def _bytes_of(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.nbytes
