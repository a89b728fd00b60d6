"""Conversations as token batches of one size, without padding rows or attention across conversations."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from trioserve.builtin.corpus import EVERYTHING, conversations
from trioserve.builtin.network import Block
from trioserve.builtin.template import render
from trioserve.builtin.tokenizer import MARKERS, TURN_END, TURN_START

_STEP: Final = 16
"""Lengths are rounded up to a multiple of this, so that conversations fall into few blocks."""
_MAX_LENGTH: Final = 1024
_PROMPT_WEIGHT: Final = 0.1
_PROMPT_STRIDE: Final = 3
"""What every third token counts that the model need not write: they still teach what texts look like."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation; ``weights[i]`` is what predicting ``token_ids[i]`` counts."""

    token_ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    turn_starts: NDArray[np.int64]
    """Indices of the user turns after the first: where a gap in the positions may go."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens laid flat; all tensors are [num_tokens]."""

    token_ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    blocks: tuple[Block, ...]


class Encoder:
    """Conversations to weighted tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._start, self._end, self._think = map(tokenizer.token_to_id, (TURN_START, TURN_END, MARKERS[0]))
        self._assistant = tokenizer.encode(f"{TURN_START}assistant\n").ids[1]
        self._user = tokenizer.encode(f"{TURN_START}user\n").ids[1]

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Rendered conversations; those longer than the limit are left out."""
        encoded = (self._weighted(np.array(each.ids)) for each in self._tokenizer.encode_batch(list(texts)))
        return [each for each in encoded if len(each.token_ids) <= _MAX_LENGTH]

    def _weighted(self, token_ids: NDArray[np.int64]) -> Encoded:
        weights = np.zeros(len(token_ids), dtype=np.float32)
        weights[::_PROMPT_STRIDE] = _PROMPT_WEIGHT
        starts = np.flatnonzero(token_ids == self._start)
        ends = np.flatnonzero(token_ids == self._end)
        for start in starts[token_ids[starts + 1] == self._assistant]:
            end = ends[ends > start][0]
            weights[start + 2 : end + 1] = 1.0
            if token_ids[start + 2] == self._think:
                weights[start + 2 : start + 4] = 0.0  # the template writes these two when thinking is on
        users = starts[token_ids[starts + 1] == self._user]
        return Encoded(token_ids, weights, users[1:])


def batches(
    encoder: Encoder, seed: str, *, num_tokens: int, shares: Mapping[str, float] = EVERYTHING
) -> Iterator[Batch]:
    """Training batches of ``num_tokens`` without end; the same seed gives the same ones."""
    source = conversations(seed, shares)
    rng = random.Random(seed)
    chosen: list[Encoded] = []
    room = num_tokens
    while True:
        drawn = [render(each.messages, each.tools) for each in islice(source, 512)]
        for encoded in encoder.encode(drawn):
            size = _rounded(len(encoded.token_ids))
            if size > room:
                yield _lay_out(chosen, num_tokens, rng)
                chosen, room = [], num_tokens
            chosen.append(encoded)
            room -= size


def _rounded(length: int) -> int:
    """Up to the next step; coarser for long ones, which are few."""
    step = _STEP if length <= 128 else 2 * _STEP if length <= 256 else 4 * _STEP
    return -(-length // step) * step


def _lay_out(chosen: list[Encoded], num_tokens: int, rng: random.Random) -> Batch:
    """Conversations of one rounded length become a block; what is left of the axis, a block of nothing."""
    columns = np.zeros((3, num_tokens), dtype=np.int64)
    weights = np.zeros(num_tokens, dtype=np.float32)
    blocks: list[Block] = []
    at = 0
    for each in sorted(chosen, key=lambda each: _rounded(len(each.token_ids))):
        size, count = _rounded(len(each.token_ids)), len(each.token_ids)
        columns[0, at : at + count] = each.token_ids
        columns[1, at : at + count] = gapped_positions(each, rng)
        columns[2, at : at + count - 1] = each.token_ids[1:]
        weights[at : at + count - 1] = each.weights[1:]
        if blocks and blocks[-1].length == size:
            blocks[-1] = Block(blocks[-1].start, blocks[-1].rows + 1, size)
        else:
            blocks.append(Block(at, 1, size))
        at += size
    if at < num_tokens:
        blocks.append(Block(at, (num_tokens - at) // _STEP, _STEP))
    token_ids, positions, targets = torch.from_numpy(columns)
    return Batch(token_ids, positions, targets, torch.from_numpy(weights), tuple(blocks))


def gapped_positions(each: Encoded, rng: random.Random, *, limit: int = 8000) -> NDArray[np.int64]:
    """0, 1, 2, ..., in half of the longer dialogues with gaps before user turns.

    Rotary attention sees distances alone: the gaps teach it those of a long context at the price of a short
    one."""
    positions = np.arange(len(each.token_ids))
    if len(each.turn_starts) and rng.random() < 0.5:
        spare = (limit - len(positions)) // len(each.turn_starts)
        for start in each.turn_starts:
            positions[start:] += int(spare * rng.random() ** 3)
    return positions
