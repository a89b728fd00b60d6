"""The tensors of a quantized matrix, and what is read from them: codes that count from 0, scales and zero points.

They stay where the files are mapped; of what a rank does not have nothing is read but the rest of a word.
"""

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from trioserve.errors import ModelError
from trioserve.kernels.quantized_linear import FP8
from trioserve.model.quantized_storage import Packing, Storage

_WIDE: Final = (torch.bfloat16, torch.float16, torch.float32)
_LEAST_GROUP: Final = 32
"""Columns; into smaller groups none are split."""


class Span(NamedTuple):
    """``start`` to ``end`` of rows or columns."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """How many they are."""
        return self.end - self.start


class Grid(NamedTuple):
    """What codes stand for: weight = scale * (code - zero point)."""

    scales: Tensor
    """[out_size, num_groups], of 16 bits or more."""
    zeros: Tensor | None
    """[out_size, num_groups] int16; None: 0, of numbers of e4m3."""
    groups: Tensor | None
    """[in_size] int64, the group of each column; None: groups of one size follow each other."""

    def spread(self, numbers: Tensor, in_size: int) -> Tensor:
        """[num_rows, num_groups] -> [num_rows, in_size] float32."""
        if self.groups is not None:
            return numbers.float().index_select(1, self.groups)
        return numbers.float().repeat_interleave(in_size // numbers.shape[1], dim=1)

    def evened(self) -> "Grid":
        """The same with groups of one size, where they are not scattered; those that a cut has split become smaller."""
        if self.groups is None:
            return self
        changes = torch.nonzero(self.groups.diff()).flatten() + 1
        size = math.gcd(len(self.groups), *changes.tolist())
        if size < min(_LEAST_GROUP, len(self.groups)):
            return self
        chosen = self.groups[::size]
        zeros = None if self.zeros is None else self.zeros.index_select(1, chosen)
        return Grid(self.scales.index_select(1, chosen), zeros, None)


@dataclass(frozen=True, slots=True)
class Stored:
    """One matrix of a checkpoint, which may be one that is not quantized."""

    module: str
    storage: Storage
    out_size: int
    in_size: int
    tensors: dict[str, Tensor]
    """By their names behind the module's."""

    # ---- whether they are what they should be --------------------------------------------------------------------

    def refuse_misshapen(self) -> None:
        """See to it that the tensors are those of such a matrix.

        Raises:
            ModelError: One is of another shape or type; names both.
        """
        storage = self.storage
        codes_type = torch.int32 if storage.packing else FP8 if storage.is_float else torch.int8
        zeros_type = torch.int32 if storage.zero_packing else torch.int8
        shape = self._laid(self.out_size, self.in_size)
        self._expect(
            storage.codes, (codes_type,) if storage.scales else _WIDE, _packed(shape, storage.packing)
        )
        if not storage.scales:
            return
        grid = self._laid(*self._grid_shape)
        self._expect(storage.scales, (*_WIDE, torch.float8_e8m0fnu), *self._scales_shapes())
        if storage.zero_points:
            self._expect(storage.zero_points, (zeros_type,), _packed(grid, storage.zero_packing))
        if storage.group_index in self.tensors:
            self._expect(storage.group_index, (torch.int32, torch.int64), [self.in_size])
            self._refuse_index(self.tensors[storage.group_index])

    def _expect(self, name: str, types: tuple[torch.dtype, ...], *shapes: list[int]) -> None:
        tensor, said = self.tensors[name], f"tensor {self.module}.{name}"
        if list(tensor.shape) not in shapes:
            raise ModelError(f"{said} has shape {list(tensor.shape)}, the config says {shapes[0]}")
        if tensor.dtype not in types:
            names = " or ".join(str(each).removeprefix("torch.") for each in types)
            raise ModelError(f"{said} is of type {str(tensor.dtype).removeprefix('torch.')}, not {names}")

    def _scales_shapes(self) -> list[list[int]]:
        shape = self._grid_shape
        single = [[], [1], [1, 1]] if self.storage.group_size is None else []
        flat = [[self.out_size]] if shape == [self.out_size, 1] else []
        return [self._laid(*shape), *single, *flat]

    def _refuse_index(self, index: Tensor) -> None:
        most, num_groups = int(index.max()), self._grid_shape[1]
        if most >= num_groups:
            name = f"{self.module}.{self.storage.group_index}"
            raise ModelError(f"tensor {name} names group {most}, there are {num_groups}")

    @property
    def _grid_shape(self) -> list[int]:
        """Of scales, before blocks of rows are spread."""
        columns = self.storage.group_size or self.in_size
        return [-(-self.out_size // self.storage.block_rows), -(-self.in_size // columns)]

    def _laid(self, rows: int, columns: int) -> list[int]:
        return [columns, rows] if self.storage.is_transposed else [rows, columns]

    # ---- what they say -------------------------------------------------------------------------------------------

    def codes(self, rows: Span, columns: Span) -> Tensor:
        """Some of the codes, uint8 that count from 0 or e4m3; the weights themselves where they are not quantized."""
        codes = self._cut(self.storage.codes, self.storage.packing, rows, columns)
        return codes.view(torch.uint8) + self.storage.middle if codes.dtype == torch.int8 else codes

    def grid(self, rows: Span, columns: Span) -> Grid:
        """What they stand for, of a matrix that is quantized."""
        return Grid(self._scales(rows), self._zeros(rows), self._groups(columns)).evened()

    def _scales(self, rows: Span) -> Tensor:
        scales = self.tensors[self.storage.scales]
        if scales.dtype == torch.float8_e8m0fnu:
            scales = scales.float()
        if scales.numel() == 1:
            return scales.reshape(1, 1).expand(rows.length, 1)
        if scales.dim() == 1:
            return scales[rows.start : rows.end, None]
        if self.storage.is_transposed:
            scales = scales.T
        return scales.index_select(0, torch.arange(rows.start, rows.end) // self.storage.block_rows)

    def _zeros(self, rows: Span) -> Tensor | None:
        storage, num_groups = self.storage, self._grid_shape[1]
        if storage.is_float:
            return None
        if not storage.zero_points:
            return torch.tensor(storage.middle, dtype=torch.int16).expand(rows.length, num_groups)
        zeros = self._cut(storage.zero_points, storage.zero_packing, rows, Span(0, num_groups))
        return zeros.short() + (storage.middle if zeros.dtype == torch.int8 else 0)

    def _groups(self, columns: Span) -> Tensor | None:
        size, index = self.storage.group_size, self.tensors.get(self.storage.group_index)
        if size is None:
            return None
        if index is not None and int(index.min()) >= 0:
            return index[columns.start : columns.end].long()
        return torch.arange(columns.start, columns.end) // size

    def _cut(self, name: str, packing: Packing | None, rows: Span, columns: Span) -> Tensor:
        """Some rows and columns of a tensor that lies as the codes do, contiguous."""
        stored, is_transposed = self.tensors[name], self.storage.is_transposed
        if is_transposed:
            stored = stored.T
        if packing is None:
            return stored[rows.start : rows.end, columns.start : columns.end].contiguous()
        if (packing.dim == 0) != is_transposed:
            return _below(stored[:, columns.start : columns.end], packing, rows)
        return _beside(stored[rows.start : rows.end], packing, columns)


def _packed(shape: list[int], packing: Packing | None) -> list[int]:
    if packing is None:
        return shape
    return [-(-size // packing.per_word) if dim == packing.dim else size for dim, size in enumerate(shape)]


def _below(words: Tensor, packing: Packing, rows: Span) -> Tensor:
    """Codes, uint8, of words that have neighbours of one column; ``rows`` are of codes."""
    first, per_word = rows.start // packing.per_word, packing.per_word
    words = _bared(words[first : -(-rows.end // per_word)], packing)
    codes = torch.empty(len(words), per_word, words.shape[1], dtype=torch.uint8)
    for place, neighbour in enumerate(packing.places or range(per_word)):
        codes[:, neighbour] = words >> packing.bits * place & (1 << packing.bits) - 1
    start = rows.start - first * per_word
    return codes.flatten(0, 1)[start : start + rows.length]


def _beside(words: Tensor, packing: Packing, columns: Span) -> Tensor:
    """The same of neighbours of one row, which are in order, so that the bytes of a row are too."""
    assert not packing.places, "neighbours of one row are in order"
    first, per_word = columns.start // packing.per_word, packing.per_word
    codes = _bared(words[:, first : -(-columns.end // per_word)], packing).view(torch.uint8)
    if packing.bits == 4:
        halves = torch.empty(*codes.shape, 2, dtype=torch.uint8)
        halves[..., 0], halves[..., 1] = codes & 15, codes >> 4
        codes = halves.flatten(1)
    start = columns.start - first * per_word
    return codes[:, start : start + columns.length].contiguous()


def _bared(words: Tensor, packing: Packing) -> Tensor:
    """A copy that follows itself in memory, with what was taken from each code. That is added to whole words, as it was
    taken: where a zero point was 0 it was borrowed from the neighbour."""
    words = words.clone(memory_format=torch.contiguous_format)
    if packing.less:
        words += sum(packing.less << place for place in range(0, 32, packing.bits))
    return words
