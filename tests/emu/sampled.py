"""Steps to sample, told once to the kernels' tables and to the CPU's sampler."""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from trioserve._speedups.sampling import Recipes
from trioserve.kernels.cpu import ISA
from trioserve.kernels.sampling_gpu import SEEN, RowTables, SlotTables

LOG2_E: Final = 1.4426950408889634
_ENDS: Final = -1


@dataclass(frozen=True, slots=True)
class Wish:
    """What one row's sequence asks for."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    position: int = 5
    mask: tuple[int, ...] | None = None
    allowed: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()
    """Banned before position 10."""
    bias: dict[int, float] = field(default_factory=dict)
    penalties: tuple[float, float, float] = (1.0, 0.0, 0.0)
    prompt: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    num_top: int = -1
    scope: tuple[float, float] = (1.0, 1.0)


def tables(wishes: list[Wish], vocab_size: int) -> tuple[RowTables, SlotTables]:
    """Row i is of slot n - 1 - i."""
    slots, num_words = wishes[::-1], -(-vocab_size // 32)
    masks = [words_of(wish.mask, num_words) for wish in wishes if wish.mask is not None]
    lists = [words_of(wish.allowed, num_words) for wish in slots if wish.allowed]
    counts = torch.zeros(len(slots), vocab_size, dtype=torch.int32)
    for slot, wish in enumerate(slots):
        counts[slot, list(wish.prompt + wish.output)] |= SEEN
        counts[slot] += torch.bincount(torch.tensor(wish.output, dtype=torch.int64), minlength=vocab_size)
    rows = RowTables(
        torch.arange(len(slots)).flip(0).int(),
        torch.tensor([wish.position for wish in wishes]),
        torch.stack([*masks, torch.zeros(num_words, dtype=torch.int32)]),
        numbered([wish.mask is not None for wish in wishes]),
    )
    bans, biases = max(len(w.stops) for w in slots) + 1, max(len(w.bias) for w in slots) + 1
    return rows, SlotTables(
        scales=torch.tensor([LOG2_E / wish.temperature if wish.temperature else 0.0 for wish in slots]),
        top_k=torch.tensor([wish.top_k for wish in slots]).int(),
        top_p=torch.tensor([wish.top_p for wish in slots]),
        min_p=torch.tensor([wish.min_p for wish in slots]),
        seeds=torch.tensor([wish.seed for wish in slots]),
        allowed=torch.stack([*lists, torch.zeros(num_words, dtype=torch.int32)]),
        allowed_of=numbered([bool(wish.allowed) for wish in slots]),
        ban_ids=torch.tensor([padded(wish.stops, bans) for wish in slots]).int(),
        ban_until=torch.full((len(slots), bans), 10),
        bias_ids=torch.tensor([padded(tuple(wish.bias), biases) for wish in slots]).int(),
        biases=torch.tensor([padded(tuple(wish.bias.values()), biases) for wish in slots]).float(),
        counts=counts.to(torch.uint16),
        penalties=torch.tensor([wish.penalties for wish in slots]),
        num_top=torch.tensor([max(wish.num_top, 0) for wish in slots]).int(),
        scope_scales=torch.tensor([LOG2_E / w.scope[0] if w.num_top >= 0 else 0.0 for w in slots]),
        scope_top_p=torch.tensor([wish.scope[1] for wish in slots]),
    )


def numbered(has: list[bool]) -> Tensor:
    """0, 1, .. for those that have one, -1 for others."""
    places = torch.tensor(has).int().cumsum(0).int() - 1
    return torch.where(torch.tensor(has), places, _ENDS)


def padded(values: tuple[float, ...], size: int) -> list[float]:
    return [*values, *[_ENDS] * (size - len(values))]


def words_of(ids: tuple[int, ...], num_words: int) -> Tensor:
    bits = np.zeros(num_words * 32, np.uint8)
    bits[list(ids)] = 1
    return torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32).copy())


def choose_on_cpu(wishes: list[Wish], logits: Tensor) -> tuple[list[int], Tensor, Tensor]:
    """Tokens, log probabilities and the likeliest, as the CPU's sampler has them."""
    num_rows, vocab_size = logits.shape
    recipes, most_top = Recipes(num_rows, vocab_size), max(0, *(wish.num_top for wish in wishes))
    rows, _ = tables(wishes, vocab_size)
    for slot, wish in enumerate(wishes):
        recipes.admit(
            slot,
            is_greedy=wish.temperature == 0,
            temperature=wish.temperature or 1.0,
            top_k=wish.top_k,
            top_p=wish.top_p,
            min_p=wish.min_p,
            seed=wish.seed & (1 << 64) - 1,
            num_top=wish.num_top,
            scope_temperature=wish.scope[0],
            scope_top_p=wish.scope[1],
            certain_above=1.0,
        )
        recipes.edit(
            slot,
            np.array(wish.prompt + wish.output, np.int32),
            len(wish.prompt),
            allowed_ids=wish.allowed,
            stop_ids=wish.stops,
            first_stop=10,
            bias=wish.bias.items(),
            bad_words=(),
            repetition=wish.penalties[0],
            frequency=wish.penalties[1],
            presence=wish.penalties[2],
        )
    token_ids = np.full(num_rows, -1)
    logprobs, top_ids = np.full((num_rows, 1 + most_top), math.nan), np.full((num_rows, most_top), -1)
    recipes.choose(
        logits.float().numpy().copy(),
        *(np.arange(num_rows), rows.positions.numpy(), rows.masks.numpy(), rows.mask_of.long().numpy()),
        *(token_ids, logprobs, top_ids, np.zeros(num_rows, np.uint8)),
        num_threads=1,
        isa=ISA,
    )
    return token_ids.tolist(), torch.from_numpy(logprobs), torch.from_numpy(top_ids)
