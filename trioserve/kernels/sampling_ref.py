"""The truth for sampling on a GPU: a row at a time, float64, everything sorted."""

import math
from typing import Final

import torch
from torch import Tensor

from trioserve.kernels.sampling_gpu import SEEN, RowTables, SlotTables

_LOWEST: Final = -9999.0
_FAINTEST: Final = -125.0
_BITS: Final = (1 << 64) - 1


def edit_logits_ref(logits: Tensor, rows: RowTables, slots: SlotTables) -> Tensor:
    """The truth for ``edit_logits_gpu``.

    Shapes:
        logits: [num_rows, vocab_size]
        result: [num_rows, vocab_size] float32
    """
    edited = torch.nan_to_num(logits.float(), nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    for row, slot in enumerate(rows.slots.tolist()):
        edited[row] = _penalized(_biased(_listed(edited[row], row, rows, slots), slot, slots), slot, slots)
    return edited


def _listed(x: Tensor, row: int, rows: RowTables, slots: SlotTables) -> Tensor:
    """Mask, allowed ids and bans; each counts only where it leaves something."""
    which, slot = int(rows.mask_of[row]), int(rows.slots[row])
    if which >= 0:
        mask = _bits(rows.masks[which], len(x))
        x = x.where(mask, -math.inf) if mask.any() else x
    if (which := int(slots.allowed_of[slot])) >= 0:
        x = _unless_nothing(x, ~_bits(slots.allowed[which], len(x)))
    banned = torch.zeros(len(x), dtype=torch.bool)
    for token_id, until in zip(slots.ban_ids[slot].tolist(), slots.ban_until[slot].tolist(), strict=True):
        if token_id < 0:
            break
        banned[token_id] = int(rows.positions[row]) < until
    return _unless_nothing(x, banned)


def _unless_nothing(x: Tensor, out: Tensor) -> Tensor:
    left = x.masked_fill(out, -math.inf)
    return left if bool((left > -math.inf).any()) else x


def _bits(words: Tensor, size: int) -> Tensor:
    ids = torch.arange(size)
    return (words[ids // 32].long() >> ids % 32 & 1).bool()


def _biased(x: Tensor, slot: int, slots: SlotTables) -> Tensor:
    x = x.clone()
    for token_id, bias in zip(slots.bias_ids[slot].tolist(), slots.biases[slot].tolist(), strict=True):
        if token_id < 0:
            break
        x[token_id] += bias
    return x


def _penalized(x: Tensor, slot: int, slots: SlotTables) -> Tensor:
    repetition, frequency, presence = slots.penalties[slot]
    counts = slots.counts[slot].int()
    times = (counts & (SEEN - 1)).float()
    lowered = torch.where(x > 0, x / repetition, x * repetition) - frequency * times - presence * (times > 0)
    return torch.where(counts >= SEEN, lowered, x)


def choose_tokens_ref(edited: Tensor, rows: RowTables, slots: SlotTables) -> Tensor:
    """The truth for ``choose_tokens_gpu``; counts stay.

    Shapes:
        edited: [num_rows, vocab_size] float32, from ``edit_logits_ref``
        result: [num_rows] int32
    """
    chosen = [_choice(edited[row], row, slot, rows, slots) for row, slot in enumerate(rows.slots.tolist())]
    return torch.tensor(chosen, dtype=torch.int32)


def _choice(x: Tensor, row: int, slot: int, rows: RowTables, slots: SlotTables) -> int:
    if not bool((x > -math.inf).any()):
        which = int(rows.mask_of[row])
        return int(_bits(rows.masks[which], len(x)).int().argmax()) if which >= 0 else 0
    scale = float(slots.scales[slot])
    weights = kept_weights(
        x, scale, int(slots.top_k[slot]), float(slots.top_p[slot]), float(slots.min_p[slot])
    )
    if scale == 0 or not bool(weights.any()):
        return int(x.argmax())
    sums = weights.cumsum(0)
    target = number_of(int(slots.seeds[slot]), int(rows.positions[row])) * sums[-1]
    return int((sums > target).nonzero()[0])


def kept_weights(x: Tensor, scale: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """What each logit weighs after the filters, in float64.

    Shapes:
        x, result: [vocab_size]
    """
    scaled = (x.double() - x.max()) * scale
    weights = torch.where(scaled >= _FAINTEST, torch.exp2(scaled), 0.0).nan_to_num()
    if 0 < top_k < len(x):
        weights[x < x.topk(top_k).values[-1]] = 0
    weights[weights < min_p] = 0
    if top_p < 1 and bool(weights.any()):
        ordered = weights.sort(descending=True).values
        is_enough = ordered.cumsum(0) >= top_p * ordered.sum()
        weights[weights < ordered[int(is_enough.int().argmax())]] = 0
    return weights


def number_of(seed: int, position: int) -> float:
    """The number in [0, 1) that the draw at ``position`` takes: splitmix64, the seed mixed before the position."""
    golden = 0x9E3779B97F4A7C15
    bits = _mixed((_mixed((seed + golden) & _BITS) + (position + 1) * golden) & _BITS)
    return (bits >> 11) * 2.0**-53


def _mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _BITS
    return z ^ (z >> 31)


def score_tokens_ref(
    token_ids: Tensor, edited: Tensor, rows: RowTables, slots: SlotTables, *, max_top: int
) -> tuple[Tensor, Tensor]:
    """The truth for ``score_tokens_gpu``, of rows that want to be scored; others have zeros.

    Shapes:
        token_ids: [num_rows]
        edited: [num_rows, vocab_size] float32, the logits as the model made them
    """
    logprobs = torch.zeros(len(edited), 1 + max_top, dtype=torch.float64)
    top_ids = torch.full((len(edited), max_top), -1, dtype=torch.int32)
    for row, slot in enumerate(rows.slots.tolist()):
        scale, count = float(slots.scope_scales[slot]), min(int(slots.num_top[slot]), max_top)
        if scale == 0:
            continue
        weights = kept_weights(edited[row], scale, 0, float(slots.scope_top_p[slot]), 0.0)
        all_of_row = (weights.log() - weights.sum().log()).nan_to_num(nan=_LOWEST).clamp(min=_LOWEST)
        order = edited[row].sort(descending=True, stable=True).indices[:count]
        logprobs[row] = _LOWEST
        logprobs[row, 0] = all_of_row[int(token_ids[row])]
        logprobs[row, 1 : 1 + count], top_ids[row, :count] = all_of_row[order], order.int()
    return logprobs, top_ids
