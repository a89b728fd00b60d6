"""From the logits of a step to its tokens on a GPU: edits, a draw, log probabilities; sampling_ref.py is the truth."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Final

import torch
from torch import Tensor

from trioserve.kernels.gpu import ELEMENTS_AND_WIDTHS, Gpu, element_of, width_of
from trioserve.kernels.shapes import ShapeError, Shapes
from trioserve.kernels.source import Kernel

GROUP: Final = 4096
"""Logits of a row that are one block's."""
RUN: Final = 128
"""Logits of which the maximum is kept."""
MOST_GROUPS: Final = 256
"""Of a row: a vocabulary of a million tokens."""
SEEN: Final = 0x8000
"""The bit of a count that says that the sequence has the token."""
_THREADS: Final = 256
"""Of a block that edits or weighs a group."""
_ROW_THREADS: Final = 512
"""Of a block that chooses for a row."""
_WIDEST: Final = 4
_EDIT_BYTES: Final = GROUP * 4
_DTYPES: Final[Mapping[str, torch.dtype]] = {
    **dict.fromkeys(
        ("slots", "mask_of", "masks", "top_k", "num_top", "allowed", "allowed_of", "ban_ids", "bias_ids"),
        torch.int32,
    ),
    **dict.fromkeys(("positions", "ban_until", "seeds"), torch.int64),
    **dict.fromkeys(
        ("scales", "top_p", "min_p", "biases", "penalties", "scope_scales", "scope_top_p"), torch.float32
    ),
    "counts": torch.uint16,
}


@dataclass(frozen=True, slots=True)
class RowTables:
    """What a step says of its rows."""

    slots: Tensor
    """[num_rows] int32"""
    positions: Tensor
    """[num_rows] int64, which token of its sequence a row's becomes, from 0"""
    masks: Tensor
    """[num_masks, num_words] int32, bit i % 32 of word i / 32 says whether the grammar allows token i"""
    mask_of: Tensor
    """[num_rows] int32, which of the masks, -1: none"""

    def __post_init__(self) -> None:
        """Check the shapes, which must fit each other, and the types."""
        _check_types(self)
        Shapes(
            slots=(self.slots, "num_rows"),
            positions=(self.positions, "num_rows"),
            masks=(self.masks, "num_masks num_words"),
            mask_of=(self.mask_of, "num_rows"),
        )


@dataclass(frozen=True, slots=True)
class SlotTables:
    """What the sequences want, by slot; kernels read it where it lies, so that a graph sees what is written here."""

    scales: Tensor
    """[num_slots] float32, log2(e) / temperature; 0: the likeliest token"""
    top_k: Tensor
    """[num_slots] int32, 0: off"""
    top_p: Tensor
    """[num_slots] float32, 1: off"""
    min_p: Tensor
    """[num_slots] float32, 0: off"""
    seeds: Tensor
    """[num_slots] int64, the 64 bits of a seed"""
    allowed: Tensor
    """[num_lists, num_words] int32, as masks"""
    allowed_of: Tensor
    """[num_slots] int32, which list of allowed ids, -1: all are"""
    ban_ids: Tensor
    """[num_slots, max_bans] int32, distinct; -1 ends a list"""
    ban_until: Tensor
    """[num_slots, max_bans] int64, the first position at which the id may be chosen"""
    bias_ids: Tensor
    """[num_slots, max_biases] int32, distinct; -1 ends a list"""
    biases: Tensor
    """[num_slots, max_biases] float32"""
    counts: Tensor
    """[num_slots, vocab_size] uint16: bit 15 says whether the sequence has the token, the rest how often its output"""
    penalties: Tensor
    """[num_slots, 3] float32: repetition, frequency, presence; 1, 0, 0: counts are neither read nor written"""
    num_top: Tensor
    """[num_slots] int32, alternatives to name"""
    scope_scales: Tensor
    """[num_slots] float32, log2(e) / temperature of log probabilities; 0: none are wanted"""
    scope_top_p: Tensor
    """[num_slots] float32, likewise; 1: of all tokens"""

    def __post_init__(self) -> None:
        """Check the shapes, which must fit each other, and the types."""
        _check_types(self)
        by_slot = "scales top_k top_p min_p seeds allowed_of num_top scope_scales scope_top_p".split()
        Shapes(
            **{name: (getattr(self, name), "num_slots") for name in by_slot},
            allowed=(self.allowed, "num_lists num_words"),
            ban_ids=(self.ban_ids, "num_slots max_bans"),
            ban_until=(self.ban_until, "num_slots max_bans"),
            bias_ids=(self.bias_ids, "num_slots max_biases"),
            biases=(self.biases, "num_slots max_biases"),
            counts=(self.counts, "num_slots vocab_size"),
            penalties=(self.penalties, "num_slots three"),
        ).expect("three", 3)


@dataclass(frozen=True, slots=True)
class Edited:
    """Rows as the choice reads them: float32, whole groups, and the maxima of their runs."""

    edited: Tensor
    """[num_rows, num_groups * 4096] float32"""
    maxima: Tensor
    """[num_rows, num_groups * 32] float32"""

    @property
    def num_groups(self) -> int:
        """Of a row."""
        return self.edited.shape[1] // GROUP


def edit_logits_gpu(
    gpu: Gpu,
    logits: Tensor,
    rows: RowTables,
    slots: SlotTables,
    *,
    has_edits: bool = True,
    has_lists: bool = True,
) -> Edited:
    """Logits with all that the slots ask for, by ``edit_logits.cu``.

    Args:
        has_edits: Whether any slot asks for any; False: the rows are what the model made.
        has_lists: Whether there are masks, allowed ids or bans among them.
    Shapes:
        logits: [num_rows, vocab_size]
    Raises:
        ShapeError: The tables do not fit the logits.
    """
    num_rows, vocab_size = _check_rows(logits, rows, slots)
    groups = -(-vocab_size // GROUP)
    element, width = element_of(logits.dtype), _width(logits)
    outcomes = torch.empty(num_rows, groups, dtype=torch.int32, device=logits.device)
    lists = (
        *(rows.slots, rows.positions, rows.masks, rows.mask_of),
        *(slots.allowed, slots.allowed_of, slots.ban_ids, slots.ban_until),
    )
    sizes = vocab_size, rows.masks.shape[1], slots.ban_ids.shape[1]
    if has_edits and has_lists:
        gpu.launch(
            survey_kernel(element, width),
            *(outcomes, logits, *lists, *sizes),
            grid=(groups, num_rows),
            block=(_THREADS,),
        )
    edited = torch.empty(num_rows, groups * GROUP, device=logits.device)
    maxima = torch.empty(num_rows, groups * GROUP // RUN, device=logits.device)
    gpu.launch(
        edit_kernel(element, width),
        *(
            edited,
            maxima,
            logits,
            *lists,
            slots.bias_ids,
            slots.biases,
            slots.counts,
            slots.penalties,
            outcomes,
        ),
        *(*sizes, slots.bias_ids.shape[1], int(has_edits), int(has_lists)),
        grid=(groups, num_rows),
        block=(_THREADS,),
        shared_bytes=_EDIT_BYTES,
    )
    return Edited(edited, maxima)


def choose_tokens_gpu(gpu: Gpu, edited: Edited, rows: RowTables, slots: SlotTables) -> Tensor:
    """A token for each row, by ``choose_tokens.cu``; the counts of slots with penalties grow by it.

    Shapes:
        result: [num_rows] int32
    """
    num_rows = len(edited.edited)
    token_ids = torch.empty(num_rows, dtype=torch.int32, device=edited.edited.device)
    sums = _weigh(gpu, edited, rows.slots, slots.scales)
    gpu.launch(
        CHOOSE,
        *(
            token_ids,
            slots.counts,
            edited.edited,
            edited.maxima,
            sums,
            rows.slots,
            rows.positions,
            slots.scales,
        ),
        *(slots.top_k, slots.top_p, slots.min_p, slots.seeds, rows.masks, rows.mask_of, slots.penalties),
        *(slots.counts.shape[1], rows.masks.shape[1], edited.num_groups),
        grid=(num_rows,),
        block=(_ROW_THREADS,),
    )
    return token_ids


def score_tokens_gpu(
    gpu: Gpu, token_ids: Tensor, edited: Edited, rows: RowTables, slots: SlotTables, *, max_top: int
) -> tuple[Tensor, Tensor]:
    """Log probabilities of the chosen tokens and of the likeliest; rows whose slot wants none stay as they are.

    Args:
        edited: Of the logits as the model made them, from ``edit_logits_gpu`` with ``has_edits`` False.
        max_top: The most alternatives that a slot may name; of others the first so many are named.
    Shapes:
        token_ids: [num_rows] int32
        result: [num_rows, 1 + max_top] float32, that of the token first; [num_rows, max_top] int32
    """
    num_rows, device = len(edited.edited), edited.edited.device
    logprobs = torch.empty(num_rows, 1 + max_top, device=device)
    top_ids = torch.empty(num_rows, max_top, dtype=torch.int32, device=device)
    sums = _weigh(gpu, edited, rows.slots, slots.scope_scales)
    gpu.launch(
        SCORE,
        *(logprobs, top_ids, token_ids, edited.edited, edited.maxima, sums, rows.slots, slots.scope_scales),
        *(slots.scope_top_p, slots.num_top, max_top, edited.num_groups),
        grid=(num_rows,),
        block=(_ROW_THREADS,),
    )
    return logprobs, top_ids


def _weigh(gpu: Gpu, edited: Edited, slots: Tensor, scales: Tensor) -> Tensor:
    """The sums of the weights of each group; rows whose scale is 0 have none."""
    num_rows = len(edited.edited)
    sums = torch.empty(num_rows, edited.num_groups, dtype=torch.int64, device=edited.edited.device)
    gpu.launch(
        WEIGH,
        *(sums, edited.edited, edited.maxima, slots, scales),
        grid=(edited.num_groups, num_rows),
        block=(_THREADS,),
    )
    return sums


WEIGH: Final = Kernel("choose_tokens.cu", f"weigh_logits<{_THREADS}>")
CHOOSE: Final = Kernel("choose_tokens.cu", f"choose_tokens<{_ROW_THREADS}>")
SCORE: Final = Kernel("choose_tokens.cu", f"score_tokens<{_ROW_THREADS}>")


@cache
def survey_kernel(element: str, width: int) -> Kernel:
    """``survey_logits``."""
    return Kernel("edit_logits.cu", f"survey_logits<{element}, {width}, {_THREADS}>")


@cache
def edit_kernel(element: str, width: int) -> Kernel:
    """``edit_logits``."""
    return Kernel("edit_logits.cu", f"edit_logits<{element}, {width}, {_THREADS}>")


def instances() -> Iterator[Kernel]:
    """Every kernel there is."""
    for element, width in ELEMENTS_AND_WIDTHS:
        if width <= _WIDEST:
            yield survey_kernel(element, width)
            yield edit_kernel(element, width)
    yield from (WEIGH, CHOOSE, SCORE)


def shared_bytes(kernel: Kernel) -> int:
    """What a launch of ``kernel`` asks for."""
    return _EDIT_BYTES if kernel.base == "edit_logits" else 0


def _width(logits: Tensor) -> int:
    return min(_WIDEST, width_of(logits.dtype, logits.shape[1]))


def _check_rows(logits: Tensor, rows: RowTables, slots: SlotTables) -> tuple[int, int]:
    shapes = Shapes(
        logits=(logits, "num_rows vocab_size"),
        slots=(rows.slots, "num_rows"),
        counts=(slots.counts, "num_slots vocab_size"),
        masks=(rows.masks, "num_masks num_words"),
        allowed=(slots.allowed, "num_lists num_words"),
    )
    shapes.expect("num_words", -(-shapes["vocab_size"] // 32))
    if shapes["vocab_size"] > MOST_GROUPS * GROUP:
        raise ShapeError(
            f"vocab_size is {shapes['vocab_size']}, at most {MOST_GROUPS * GROUP} can be chosen from"
        )
    assert logits.is_contiguous(), "logits are not contiguous"
    return shapes["num_rows"], shapes["vocab_size"]


def _check_types(tables: RowTables | SlotTables) -> None:
    for field in fields(tables):
        table = getattr(tables, field.name)
        if table.dtype != _DTYPES[field.name]:
            raise ShapeError(f"{field.name} is {table.dtype}, expected {_DTYPES[field.name]}")
        assert table.is_contiguous(), f"{field.name} is not contiguous"
