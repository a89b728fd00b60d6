"""What the sequences in the slots of a device want of their tokens, written at their admission."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trioserve.core.sampling import SamplingParams
from trioserve.kernels.device import Device
from trioserve.kernels.sampling_gpu import SEEN, SlotTables
from trioserve.kernels.staging import Packed, Region
from trioserve.sampling.logprobs import Scope

USUAL_ENTRIES: Final = 320
"""Bans and biases of a slot that the tables have room for from the beginning; OpenAI's API lets a request bias 300."""
FOREVER: Final = 1 << 62
"""A position that no token has."""
_LOG2_E: Final = 1.4426950408889634
_FIELDS: Final[dict[str, type[np.generic]]] = {
    "seeds": np.int64,
    "scales": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "allowed_of": np.int32,
    "num_top": np.int32,
    "scope_scales": np.float32,
    "scope_top_p": np.float32,
    "own_scales": np.float32,
    "ones": np.float32,
    "zeros": np.int32,
}
"""One number a slot; ``own_scales`` as ``scope_scales``, of slots that want to know how certain the model is."""
_MOST_COUNTED: Final = SEEN - 1


class DeviceTables:
    """``SlotTables`` on a device. What is written goes there with ``send``, in the order of the steps.

    There is one slot more than sequences: that of rows which only fill a batch. It wants the likeliest token.
    """

    def __init__(self, device: Device, max_num_seqs: int, vocab_size: int) -> None:
        self._device = device
        self._vocab_size = vocab_size
        num_slots, num_words = max_num_seqs + 1, -(-vocab_size // 32)
        shapes: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
            name: (kind, (num_slots,)) for name, kind in _FIELDS.items()
        }
        self._packed = Packed(device, shapes | {"penalties": (np.float32, (num_slots, 3))})
        host: dict[str, NDArray[Any]] = self._packed.host
        host["allowed_of"][:] = -1
        host["ones"][:] = host["top_p"][:] = host["scope_top_p"][:] = host["penalties"][:, 0] = 1.0
        self._host = host
        self._is_changed = True
        on_device = {name: self._packed.device[name] for name in _FIELDS if name in SlotTables.__slots__}
        self.slots = SlotTables(
            **on_device,
            **self._lists(num_slots, USUAL_ENTRIES),
            penalties=self._packed.device["penalties"],
            allowed=self._full((num_slots, num_words), 0, torch.int32),
            # few operations of torch know uint16 on every device; zeros are zeros
            counts=self._full((num_slots, vocab_size), 0, torch.int16).view(torch.uint16),
        )
        self.wide: SlotTables | None = None
        """The same with room for more bans and biases, once a sequence has needed that."""
        self._num_entries = {name: np.ones(num_slots, np.int64) for name in ("ban_ids", "bias_ids")}
        """[num_slots], of each list, its end counted"""
        self.is_wide = np.zeros(num_slots, np.bool_)
        """[num_slots], whether only the wide tables have all that a slot wants."""

    def own(self, tables: SlotTables) -> SlotTables:
        """``tables``, for the model's own probability of the chosen tokens, where slots want to know it."""
        device = self._packed.device
        return replace(
            tables,
            scope_scales=device["own_scales"],
            scope_top_p=device["ones"],
            num_top=device["zeros"],
        )

    @property
    def of_all(self) -> SlotTables:
        """Tables that have all that any slot wants."""
        return self.slots if self.wide is None else self.wide

    def write(self, slot: int, params: SamplingParams, num_top: int | None) -> None:
        """Note the numbers of a slot; ``num_top``: alternatives to name, None: no log probabilities are wanted."""
        host, scope = self._host, Scope.of(params)
        host["scales"][slot] = 0.0 if params.is_greedy else _LOG2_E / params.temperature
        host["top_k"][slot] = min(params.top_k, self._vocab_size)
        host["top_p"][slot], host["min_p"][slot] = params.top_p, params.min_p
        host["seeds"][slot] = np.uint64(params.seed & (1 << 64) - 1).astype(np.int64)
        host["penalties"][slot] = penalties_of(params)
        host["num_top"][slot] = num_top or 0
        host["scope_scales"][slot] = 0.0 if num_top is None else _LOG2_E / scope.temperature
        host["scope_top_p"][slot] = scope.top_p
        host["own_scales"][slot] = 0.0 if params.early_stop is None else _LOG2_E
        host["allowed_of"][slot] = -1
        self._is_changed = True

    def allow(self, slot: int, token_ids: Sequence[int], region: Region) -> None:
        """Let a slot have these ids alone; none: all."""
        if token_ids:
            self._host["allowed_of"][slot] = slot
            self.slots.allowed[slot].copy_(
                region.put(words_of(token_ids, self._vocab_size)), non_blocking=True
            )

    def ban(self, slot: int, until: dict[int, int], region: Region) -> None:
        """Let a slot have each of these ids at the position beside it and later, not before."""
        if until or self._num_entries["ban_ids"][slot] > 1:
            positions = np.fromiter(until.values(), np.int64)
            self._write_list(slot, list(until), positions, ("ban_ids", "ban_until"), region)

    def bias(self, slot: int, biases: Iterable[tuple[int, float]], region: Region) -> None:
        """Add to the logits of a slot; of an id that comes twice the last counts."""
        found = {token_id: value for token_id, value in biases if 0 <= token_id < self._vocab_size}
        if found or self._num_entries["bias_ids"][slot] > 1:
            values = np.fromiter(found.values(), np.float32)
            self._write_list(slot, list(found), values, ("bias_ids", "biases"), region)

    def count(self, slot: int, token_ids: NDArray[np.int32], num_prompt_tokens: int, region: Region) -> None:
        """Let a slot's counts be of ``token_ids``, of which the first are its prompt."""
        inside = (token_ids >= 0) & (token_ids < self._vocab_size)
        output = token_ids[num_prompt_tokens:][inside[num_prompt_tokens:]]
        counts = np.minimum(np.bincount(output, minlength=self._vocab_size), _MOST_COUNTED).astype(np.uint16)
        counts[token_ids[inside]] |= SEEN
        self.slots.counts[slot].copy_(region.put(counts), non_blocking=True)

    def send(self, region: Region) -> None:
        """Let the device have the numbers that have changed since."""
        if self._is_changed:
            self._packed.send(region)
            self._is_changed = False

    def _write_list(
        self,
        slot: int,
        ids: list[int],
        values: NDArray[np.generic],
        names: tuple[str, str],
        region: Region,
    ) -> None:
        """Write ids, ends over all that was there, since threads look each at entries of its own, and what belongs
        to them."""
        num_entries = len(ids) + 1
        num_ends = max(1, int(self._num_entries[names[0]][slot]) - len(ids))
        ended = region.put(np.array([*ids, *[-1] * num_ends], np.int32))
        beside = region.put(values)
        self._widen(num_entries)
        self._num_entries[names[0]][slot] = num_entries
        self.is_wide[slot] = max(each[slot] for each in self._num_entries.values()) > USUAL_ENTRIES
        for tables in (self.slots, self.wide):
            if tables is None:
                continue
            width = getattr(tables, names[0]).shape[1]
            getattr(tables, names[0])[slot, : len(ended)].copy_(ended[:width], non_blocking=True)
            getattr(tables, names[1])[slot, : len(beside)].copy_(beside[:width], non_blocking=True)

    def _widen(self, num_entries: int) -> None:
        """See to it that some tables have room for so many entries."""
        if num_entries <= self.of_all.ban_ids.shape[1]:
            return
        before = self.of_all
        width = 1 << (num_entries - 1).bit_length()
        lists = self._lists(len(before.ban_ids), width)
        for name, table in lists.items():
            table[:, : getattr(before, name).shape[1]].copy_(getattr(before, name))
        self.wide = replace(self.slots, **lists)

    def _lists(self, num_slots: int, width: int) -> dict[str, Tensor]:
        shape = num_slots, width
        return {
            "ban_ids": self._full(shape, -1, torch.int32),
            "ban_until": self._full(shape, 0, torch.int64),
            "bias_ids": self._full(shape, -1, torch.int32),
            "biases": self._full(shape, 0, torch.float32),
        }

    def _full(self, shape: tuple[int, ...], value: float, dtype: torch.dtype) -> Tensor:
        return torch.full(shape, value, dtype=dtype, device=self._device.torch_device)


def penalties_of(params: SamplingParams) -> tuple[float, float, float]:
    """Repetition, frequency, presence."""
    return params.repetition_penalty, params.frequency_penalty, params.presence_penalty


def words_of(token_ids: Iterable[int], vocab_size: int) -> NDArray[np.int32]:
    """[num_words], a bit for each token, set for ``token_ids``, which are in the vocabulary."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[list(token_ids)] = 1
    words: NDArray[np.int32] = np.packbits(bits, bitorder="little").view(np.int32)
    return words
