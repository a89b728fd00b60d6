"""How checkpoints keep a matrix in few bits, as data: which tensors make it up, and how the codes lie in them.

A weight is scale * (code - zero point). Whoever wrote the checkpoint, this is what its tensors say.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Packing:
    """Several codes in a word of int32."""

    bits: int
    """Of a code."""
    dim: int
    """Along which the codes of a word are neighbours, in the tensor as it is stored."""
    places: tuple[int, ...] = ()
    """Which of these neighbours each place of a word holds, from its lowest bits on; empty: they are in order."""
    less: int = 0
    """What was taken from each before they were stored."""

    @property
    def per_word(self) -> int:
        """Codes of a word."""
        return 32 // self.bits


@dataclass(frozen=True, slots=True)
class Storage:
    """How one matrix [out_size, in_size] is kept; tensors are named as they are behind the module's name."""

    method: str
    """Who wrote it, as config.json calls it."""
    bits: int
    """Of a code; 16 or more: the matrix is not quantized."""
    codes: str
    scales: str = ""
    """Its tensor has a number for each row and group, or for each block, or one for the whole matrix."""
    is_float: bool = False
    """Whether a code is a number of e4m3; otherwise it is a whole number."""
    is_transposed: bool = False
    """Whether codes, scales and zero points are [in_size, out_size]."""
    packing: Packing | None = None
    """None: a code is an element of int8 or e4m3."""
    group_size: int | None = None
    """Columns that have a scale together; None: all of a row."""
    block_rows: int = 1
    """Rows that have it together."""
    zero_points: str = ""
    """Empty: the zero point is ``middle``."""
    zero_packing: Packing | None = None
    middle: int = 0
    """The code that stands for 0, counting from 0; elements of int8 are as much less."""
    group_index: str = ""
    """A tensor that names the group of each column; it may be absent: columns are in the order of their groups."""
    unneeded: tuple[str, ...] = ()
    """Tensors that may be there too."""

    @property
    def name(self) -> str:
        """Such as "awq int4" or "fp8"."""
        form = f"fp{self.bits}" if self.is_float else f"int{self.bits}"
        return form if self.method == form else f"{self.method} {form}"

    @property
    def needed(self) -> tuple[str, ...]:
        """The tensors without which there is no matrix."""
        return tuple(name for name in (self.codes, self.scales, self.zero_points) if name)

    @property
    def known(self) -> tuple[str, ...]:
        """All that may be there."""
        return (*self.needed, *((self.group_index,) if self.group_index else ()), *self.unneeded)


PLAIN: Final = Storage(method="", bits=16, codes="weight")
"""Beside quantized matrices, one that is not."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How the matrices of some modules may be kept."""

    storages: tuple[Storage, ...]
    """Whichever the files hold."""
    pattern: str = ""
    """A regular expression that the module's name begins with; empty: of all modules."""


@dataclass(frozen=True, slots=True)
class CheckpointQuantization:
    """How the matrices of a checkpoint are kept. Which of them are quantized, the files say, which hold its codes."""

    method: str
    rules: tuple[Rule, ...]
    """The first that fits counts."""

    def storage_of(self, module: str, stored: Collection[str]) -> Storage | None:
        """How the matrix of ``module`` is kept in files that hold the tensors ``stored``; None: it is not quantized."""
        for rule in self.rules:
            if not rule.pattern or re.match(rule.pattern, module):
                return next(
                    (
                        each
                        for each in rule.storages
                        if all(f"{module}.{name}" in stored for name in (each.codes, each.scales))
                    ),
                    None,
                )
        return None
