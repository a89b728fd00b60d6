"""What a step on a device reads: tables by slot that stay there, and the rows of the step itself."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trioserve.kernels.attention_plan import AttentionPlan
from trioserve.kernels.device import Device, Graph
from trioserve.kernels.staging import Packed, Region
from trioserve.model.batch import DeviceBatch
from trioserve.sampling.device_sampler import Choice

_MOST_GRAPHED: Final = 512
"""Sequences of a step beyond which launching one kernel after the other costs nothing beside the work."""
_BUCKET_STEP: Final = 8
_SMALL_BUCKETS: Final = (1, 2, 4)
GRAPHED_CHOICES: Final = (Choice.PLAIN, Choice.EDITED, Choice.SCORED)


class DeviceSlots:
    """Block tables and last tokens of all slots, and of one more for rows that only fill a batch.

    A step feeds the next one here: its tokens never leave the device to come back.
    """

    def __init__(self, device: Device, max_num_seqs: int, max_blocks: int) -> None:
        where = device.torch_device
        self.spare = max_num_seqs
        """The slot of nobody."""
        self.block_tables = torch.zeros(max_num_seqs + 1, max_blocks, dtype=torch.int32, device=where)
        self.last_tokens = torch.zeros(max_num_seqs + 1, dtype=torch.int64, device=where)
        self._places: list[int] = []
        self._block_ids: list[int] = []
        self._admitted: list[int] = []
        self._tokens: list[int] = []

    def extend(self, slot: int, start: int, block_ids: Sequence[int]) -> None:
        """A slot's blocks from number ``start`` on are these."""
        first = slot * self.block_tables.shape[1] + start
        self._places += range(first, first + len(block_ids))
        self._block_ids += block_ids

    def begin(self, slot: int, token_id: int) -> None:
        """A sequence enters a slot; ``token_id`` is its last so far."""
        self._admitted.append(slot)
        self._tokens.append(token_id)

    def send(self, region: Region) -> None:
        """Let the device know of what has changed since."""
        if self._places:
            places, block_ids = region.send(np.array((self._places, self._block_ids), np.int64))
            self.block_tables.view(-1).index_copy_(0, places, block_ids.int())
            self._places, self._block_ids = [], []
        if self._admitted:
            slots, tokens = region.send(np.array((self._admitted, self._tokens), np.int64))
            self.last_tokens.index_copy_(0, slots, tokens)
            self._admitted, self._tokens = [], []


class StepInputs:
    """The rows of a step that decodes, or of the sampled tokens of any, where graphs find them."""

    def __init__(self, device: Device, most_rows: int, slots: DeviceSlots, block_size: int) -> None:
        self._slots = slots
        self._block_size = block_size
        rows = (most_rows,)
        self._packed = Packed(
            device,
            {
                "slot_ids": (np.int64, rows),
                "positions": (np.int64, rows),
                "num_known": (np.int64, rows),
                "slot_mapping": (np.int64, rows),
                "slots": (np.int32, rows),
                "seq_lens": (np.int32, rows),
                "split_size": (np.int32, (1,)),
            },
        )
        self._there = self._packed.device
        self._rows = torch.arange(most_rows, device=device.torch_device)
        self._bounds = torch.arange(most_rows + 1, dtype=torch.int32, device=device.torch_device)

    def send_decodes(
        self,
        slots: NDArray[np.int64],
        ends: NDArray[np.int64],
        block_ids: NDArray[np.int64],
        num_rows: int,
        split_size: int,
        region: Region,
    ) -> None:
        """Let a step have one token for each of ``slots``, and rows that only fill it.

        Shapes:
            slots, ends, block_ids: [num_seqs], tokens computed after the step, and the block of the last of them
        """
        host: dict[str, NDArray[Any]] = self._packed.host
        count, last = len(slots), ends - 1
        host["positions"][:count] = last
        host["slot_mapping"][:count] = block_ids * self._block_size + last % self._block_size
        host["seq_lens"][:count] = ends
        host["positions"][count:num_rows] = host["seq_lens"][count:num_rows] = 0
        host["slot_mapping"][count:num_rows] = -1
        host["split_size"][0] = split_size
        self.send_samples(slots, ends, num_rows, region)

    def send_samples(
        self, slots: NDArray[np.int64], num_known: NDArray[np.int64], num_rows: int, region: Region
    ) -> None:
        """Let the choice know whose rows it has, and how many tokens these have; both [num_seqs]."""
        host, count = self._packed.host, len(slots)
        for name in ("slots", "slot_ids"):
            host[name][:count], host[name][count:num_rows] = slots, self._slots.spare
        host["num_known"][:count], host["num_known"][count:num_rows] = num_known, 0
        self._packed.send(region)

    def decodes(self, num_rows: int, num_splits: int) -> DeviceBatch:
        """The step that was sent, with the tokens that the device itself has chosen; device work, for a graph too."""
        there, slot_ids = self._there, self._there["slot_ids"][:num_rows]
        return DeviceBatch(
            token_ids=self._slots.last_tokens.index_select(0, slot_ids),
            positions=there["positions"][:num_rows],
            slot_mapping=there["slot_mapping"][:num_rows],
            sample_rows=self._rows[:num_rows],
            attention=AttentionPlan(
                cu_seqlens_q=self._bounds[: num_rows + 1],
                seq_lens=there["seq_lens"][:num_rows],
                block_tables=self._slots.block_tables.index_select(0, slot_ids),
                split_size=there["split_size"],
                num_splits=num_splits,
                has_decodes=True,
                has_prefills=False,
            ),
        )

    def samples(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Slots and positions of the rows that were sent, as the sampler takes them."""
        return self._there["slots"][:num_rows], self._there["num_known"][:num_rows]

    def keep(self, token_ids: Tensor) -> None:
        """``token_ids`` [num_rows] are the last ones of the slots of the rows that were sent."""
        slot_ids = self._there["slot_ids"][: len(token_ids)]
        self._slots.last_tokens.index_copy_(0, slot_ids, token_ids.long())


class DecodeGraphs:
    """Graphs of decode steps, for each of some numbers of rows: one up to the logits, and one for each kind of choice.

    They are two because masks of grammars are made while the first runs, and because the first holds all layers: a
    choice costs a graph of a dozen kernels, and so all kinds are captured at the start, where nobody waits for a token.
    Between them there is nothing but a launch, which is started long before.
    """

    def __init__(
        self,
        device: Device,
        forward: Callable[[int], Tensor],
        choose: Callable[[Tensor, int, Choice], None],
    ) -> None:
        """
        Args:
            forward: Starts a step of so many rows, returns their logits.
            choose: Starts the choice from logits of so many rows.
        """
        self._device = device
        self._forward = forward
        self._choose = choose
        self._graphs: dict[int, tuple[Graph, list[Graph]]] = {}
        self._buckets: list[int] = []

    def capture(self, max_num_seqs: int, progress: Callable[[int, int], None]) -> None:
        """Capture all; ``progress`` hears how many of how many are done.

        The largest is first: the others take their tensors from what it left in the pool of all graphs.
        """
        buckets = buckets_up_to(max_num_seqs)
        for done, num_rows in enumerate(reversed(buckets)):
            progress(done, len(buckets))
            self._graphs[num_rows] = self._captured(num_rows)
        progress(len(buckets), len(buckets))
        self._buckets = buckets

    @property
    def num_graphs(self) -> int:
        """How many there are."""
        return sum(1 + len(choices) for _, choices in self._graphs.values())

    def bucket_for(self, num_rows: int) -> int | None:
        """The rows of the smallest graphs that have room for so many; None: there are none."""
        at = int(np.searchsorted(self._buckets, num_rows))
        return self._buckets[at] if at < len(self._buckets) else None

    def forward(self, bucket: int) -> None:
        """Start the step that was sent, up to the logits."""
        self._graphs[bucket][0].replay()

    def choose(self, bucket: int, choice: Choice) -> None:
        """Start the choice from the logits of the ``forward`` before."""
        self._graphs[bucket][1][choice].replay()

    def try_largest(self, max_num_seqs: int) -> None:
        """Start what the largest graphs will hold, without them."""
        self._try(buckets_up_to(max_num_seqs)[-1])

    def _try(self, num_rows: int) -> None:
        logits = self._forward(num_rows)
        for choice in GRAPHED_CHOICES:
            self._choose(logits, num_rows, choice)

    def _captured(self, num_rows: int) -> tuple[Graph, list[Graph]]:
        self._try(num_rows)  # so that all kernels are loaded
        made: list[Tensor] = []
        forward = self._device.capture(lambda: made.append(self._forward(num_rows)))
        logits = made.pop()
        choices = [
            self._device.capture(lambda choice=choice: self._choose(logits, num_rows, choice))  # type: ignore[misc]
            for choice in GRAPHED_CHOICES
        ]
        # no one else's hands on the logits: their memory is the next graphs'
        return forward, choices


def buckets_up_to(max_num_seqs: int) -> list[int]:
    """Numbers of rows that have graphs: few and close together where steps are short."""
    most = min(max_num_seqs, _MOST_GRAPHED)
    found = [size for size in (*_SMALL_BUCKETS, *range(_BUCKET_STEP, most, _BUCKET_STEP)) if size < most]
    return [*found, most]
