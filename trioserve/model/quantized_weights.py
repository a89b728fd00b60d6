"""A matrix whose checkpoint keeps it in few bits, and the forms in which it is multiplied.

Nothing is unpacked before it is needed: ``dense`` is the matrix itself, ``packed`` are its codes for the kernels of a
GPU, ``native`` those for the decoder on a CPU, where they fit what these have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from trioserve.kernels.quantized_linear import FP8, PackedWeight, pack_codes, pack_nibbles
from trioserve.model.quantized_storage import Storage
from trioserve.model.quantized_tensors import Grid, Span, Stored

NativeFormat = Literal["int8", "int4"]

_ROWS_AT_ONCE: Final = 512
"""Rows that become float32 together."""
_NATIVE_GROUP: Final = 32
"""``kScaleGroup`` of _speedups/panels.h."""
_BYTE_ZERO: Final = 128
"""``kByteZero``, likewise."""
_BYTE_SLAB: Final = 32
_NIBBLE_SLAB: Final = 64
"""Columns that kernels of a GPU take together."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows and columns of a stored matrix that a rank has."""

    stored: Stored
    rows: Span
    columns: Span

    def codes(self) -> Tensor:
        """``Stored.codes`` of them."""
        return self.stored.codes(self.rows, self.columns)

    def grid(self) -> Grid:
        """``Stored.grid`` of them."""
        return self.stored.grid(self.rows, self.columns)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """[rows, columns], computed in float32 and rounded once."""
        if not self.stored.storage.scales:
            return self.codes().to(dtype)
        out = torch.empty(self.rows.length, self.columns.length, dtype=dtype)
        for start in range(self.rows.start, self.rows.end, _ROWS_AT_ONCE):
            rows = Span(start, min(start + _ROWS_AT_ONCE, self.rows.end))
            part = Piece(self.stored, rows, self.columns)
            numbers, grid = part.codes().float(), part.grid()
            if grid.zeros is not None:
                numbers -= grid.spread(grid.zeros, self.columns.length)
            at = start - self.rows.start
            out[at : at + rows.length] = numbers.mul_(grid.spread(grid.scales, self.columns.length))
        return out

    @property
    def num_bytes(self) -> int:
        """About those of the files that are this part of the matrix."""
        whole = self.stored.out_size * self.stored.in_size
        share = self.rows.length * self.columns.length
        return sum(tensor.nbytes * share // whole for tensor in self.stored.tensors.values())


class NativeCodes(NamedTuple):
    """A matrix as the native decoder takes it without rounding its weights once more (_speedups/quantize.h)."""

    codes: Tensor
    """[out_size, in_size] uint8: of int8 128 more than they say, of int4 0 to 15."""
    grids: Tensor
    """Of int8 [out_size] float32 scales; of int4 [out_size, num_groups, 2] bfloat16, scale and least number."""


class QuantizedWeight:
    """A rank's part of one matrix, which may be several of the checkpoint one below the other."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        """``pieces`` have the same columns; one of them at least is quantized."""
        self._pieces = tuple(pieces)
        self._storages = {piece.stored.storage for piece in pieces}

    @property
    def name(self) -> str:
        """How it is kept, such as "awq int4"."""
        return " and ".join(sorted(each.name for each in self._storages if each.scales))

    @property
    def is_mixed(self) -> bool:
        """Whether some of it is not quantized."""
        return any(not each.scales for each in self._storages)

    @property
    def shape(self) -> tuple[int, int]:
        """out_size and in_size"""
        return sum(piece.rows.length for piece in self._pieces), self._pieces[0].columns.length

    @property
    def num_bytes(self) -> int:
        """Of the files that are this part, about."""
        return sum(piece.num_bytes for piece in self._pieces)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix [out_size, in_size]: what the codes stand for, rounded once."""
        return _joined([piece.dense(dtype) for piece in self._pieces])

    @cached_property
    def _grid(self) -> Grid | None:
        """That of all rows; None where the pieces are of several kinds, or have their columns in other groups."""
        if self._storage is None:
            return None
        grids = [piece.grid() for piece in self._pieces]
        first = grids[0]
        if not all(_is_same(grid.groups, first.groups) for grid in grids):
            return None
        zeros = [grid.zeros for grid in grids if grid.zeros is not None]
        return Grid(
            torch.cat([grid.scales for grid in grids]), torch.cat(zeros) if zeros else None, first.groups
        )

    def _codes(self) -> Tensor:
        return _joined([piece.codes() for piece in self._pieces])

    @property
    def _storage(self) -> Storage | None:
        """That of all pieces; None where there are several."""
        return next(iter(self._storages)) if len(self._storages) == 1 else None

    # ---- on a CPU ------------------------------------------------------------------------------------------------

    @property
    def native_format(self) -> NativeFormat | None:
        """What the native decoder can keep its codes as; None: they would be rounded once more.

        int4 where each 32 columns, in their order, have one scale; int8 where a row has one and its zero point is the
        middle.
        """
        grid, storage = self._grid, self._storage
        if grid is None or grid.groups is not None or grid.zeros is None or storage is None:
            return None
        if storage.bits == 4:
            size = self.shape[1] // grid.scales.shape[1]
            return "int4" if grid.scales.shape[1] == 1 or size % _NATIVE_GROUP == 0 else None
        is_symmetric = bool((grid.zeros == _BYTE_ZERO).all())
        return "int8" if grid.scales.shape[1] == 1 and is_symmetric else None

    def native(self) -> NativeCodes:
        """The codes of a matrix that has a ``native_format``; its scales are rounded to what that has.

        int8 has scales of float32. int4 has scales and least numbers of bfloat16, so that a weight is off by 1/256 of
        itself and of scale * zero point at most, and not at all where scales are bfloat16 and zero points 8.
        """
        grid = self._grid
        assert grid is not None and grid.zeros is not None, "such codes are not kept"
        if self.native_format == "int8":
            return NativeCodes(self._codes(), grid.scales[:, 0].float().contiguous())
        scales = grid.scales.bfloat16()
        least = (-scales.float() * grid.zeros.float()).bfloat16()
        in_size, num_groups = self.shape[1], -(-self.shape[1] // _NATIVE_GROUP)
        group_of = torch.arange(num_groups) * _NATIVE_GROUP * scales.shape[1] // in_size
        return NativeCodes(self._codes(), torch.stack([scales, least], dim=-1).index_select(1, group_of))

    # ---- on a GPU ------------------------------------------------------------------------------------------------

    @property
    def columns(self) -> Tensor | None:
        """The order in which ``packed`` has its columns, [in_size] int64; None: as they are.

        Groups of columns lie scattered where a checkpoint was made in the order of activations (``desc_act``).
        """
        grid = self._grid
        return None if grid is None or grid.groups is None else grid.groups.argsort(stable=True)

    def packed(self, dtype: torch.dtype) -> PackedWeight | None:
        """The codes as ``quantized_linear_gpu`` reads them; None where they do not fit, and there is ``dense`` alone.

        They are multiplied with ``x[:, columns]`` where ``columns`` is a tensor. A code of int8 that is -128, which the
        kernels do not have, becomes -127.

        Args:
            dtype: Of activations.
        """
        grid, order, storage = self._grid, self.columns, self._storage
        if grid is None or storage is None:
            return None
        if grid.groups is not None and order is not None:
            grid = grid._replace(groups=grid.groups[order]).evened()
        if grid.groups is not None:
            return None
        codes = self._codes()
        if order is not None:
            codes = codes[:, order]
        return _packed_nibbles(codes, grid, dtype) if storage.bits == 4 else _packed_bytes(codes, grid)


def _packed_bytes(codes: Tensor, grid: Grid) -> PackedWeight | None:
    if grid.scales.shape[1] != 1 or codes.shape[1] % _BYTE_SLAB:
        return None
    if codes.dtype != FP8:
        if grid.zeros is None or bool((grid.zeros != _BYTE_ZERO).any()):
            return None
        codes = (codes.short() - _BYTE_ZERO).clamp(min=-127).to(torch.int8)
    return pack_codes(codes, grid.scales[:, 0])


def _packed_nibbles(codes: Tensor, grid: Grid, dtype: torch.dtype) -> PackedWeight | None:
    in_size, num_groups = codes.shape[1], grid.scales.shape[1]
    size = in_size // num_groups
    if in_size % _NIBBLE_SLAB or size % _NATIVE_GROUP or grid.zeros is None:
        return None
    # groups of another size are several of 32
    parts = size // _NATIVE_GROUP if size % _NIBBLE_SLAB else 1
    scales, zeros = (each.repeat_interleave(parts, dim=1) for each in (grid.scales, grid.zeros))
    return pack_nibbles(codes, scales, zeros, has_zero_points=True, dtype=dtype)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _is_same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
