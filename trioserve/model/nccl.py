"""Ranks on GPUs: what layers add up and join, on the device and in the order of its stream.

All of it can be captured in a graph: nothing here looks at a number or waits. Host-side numbers go over Gloo
(``ranks.GroupRanks``), so that a captured graph is never mixed with the host's traffic. Sums are made in one of three
ways, chosen at the start for all ranks together:

* small ones in one shot, where every GPU can read the others' memory: each leaves its part in a buffer that all of them
  have mapped, and every one adds up all parts in the order of ranks, in the model's type;
* others by NCCL's all-reduce, whose order of additions depends on the size and on where in the tensor a number stands;
* with ``batch_invariant``, all of them by collecting the parts and adding them up in the order of ranks, in float32.
  NCCL's ring begins each piece of the tensor at another rank, and the order of its tree is its own affair. Each rank
  reads every other's part whole, ``tp_size / 2`` times what an all-reduce moves.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import torch
from torch import Tensor, distributed
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllreduceOptions,
    BroadcastOptions,
    PrefixStore,
    ProcessGroup,
    Work,
)

from trioserve.errors import ModelError, RankLost
from trioserve.model.ranks import FOREVER, GroupRanks, Ranks, gloo_ranks, open_store, own_address

_ONE_SHOT_BYTES: Final = 2 << 20
"""What one GPU reads of all others in one shot at most; beyond it NCCL, which moves less, is expected to be faster. Not
measured: it was never run on several GPUs."""
_ONE_SHOT_DTYPES: Final = (torch.bfloat16, torch.float32)
_ALIGNMENT: Final = 16
"""Bytes that a GPU's thread adds up at once."""

_ENVIRONMENT: Final = {
    # The front ends ranks whose peer is gone. NCCL's own guards would abort or dump first, and its watchdog looks at
    # work that a captured graph owns.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
}

T = TypeVar("T")


class QuickSums(Protocol):
    """A quicker way to add up what is small."""

    def takes(self, x: Tensor) -> bool:
        """Whether ``x`` may be added up by it; the same on every rank for the same shape and type."""

    def sum(self, x: Tensor) -> Tensor:
        """``Sums.sum``."""


class DeviceSums:
    """``ranks.Sums`` on the tensors of a device, over a process group of torch."""

    def __init__(
        self, group: ProcessGroup, *, quick: QuickSums | None = None, batch_invariant: bool = False
    ) -> None:
        """``batch_invariant``: all sums run in the order of ranks and in float32, and ``quick`` is not used."""
        self.group = group
        self._quick = None if batch_invariant else quick
        self._is_ordered = batch_invariant
        self.tp_rank: int = group.rank()
        self.tp_size: int = group.size()

    @property
    def description(self) -> str:
        """For people: how sums are made."""
        if self._is_ordered:
            return "sums in the order of ranks"
        return "sums by NCCL" if self._quick is None else "small sums in one shot, others by NCCL"

    def sum(self, x: Tensor) -> Tensor:
        """``Sums.sum``; ``x`` may be overwritten."""
        if self._quick is not None and self._quick.takes(x):
            return self._quick.sum(x)
        if self._is_ordered:
            return self._ordered_sum(x)
        total, options = x.contiguous(), AllreduceOptions()
        options.asyncOp = False
        _wait(self.group.allreduce([total], options))
        return total

    def join(self, columns: Tensor, sizes: list[int]) -> Tensor:
        """``Sums.join``."""
        widest = max(sizes)
        if columns.shape[1] < widest:
            padded = columns.new_empty(
                len(columns), widest
            )  # what is behind a rank's columns is left out again
            padded[:, : columns.shape[1]] = columns
            columns = padded
        parts = self._gather(columns)
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)

    def share_tokens(self, token_ids: Tensor) -> None:
        """Make ``token_ids``, contiguous and of one shape everywhere, those of rank 0, in place."""
        options = BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        options.asyncOp = False
        _wait(self.group.broadcast([token_ids], options))

    def _ordered_sum(self, x: Tensor) -> Tensor:
        parts = self._gather(x)
        total = parts[0].float()
        for part in parts[1:]:
            total += part
        return total.to(x.dtype)

    def _gather(self, x: Tensor) -> Tensor:
        """[tp_size, ...]: every rank's ``x``."""
        options = AllgatherOptions()
        options.asyncOp = False
        parts = x.new_empty(self.tp_size * x.shape[0], *x.shape[1:])
        _wait(self.group._allgather_base(parts, x.contiguous(), options))  # noqa: SLF001 # into one tensor
        return parts.view(self.tp_size, *x.shape)


def _wait(work: Work | None) -> None:
    """On a GPU: let the current stream wait, where it is not the one that works.

    Raises:
        RankLost: Another rank is gone.
    """
    try:
        if work is not None:
            work.wait()
    except RuntimeError as exc:
        raise RankLost(str(exc)) from exc


def together(ranks: Ranks, attempt: Callable[[], T]) -> T | None:
    """What ``attempt`` gives, if no rank's raised RuntimeError; None on all ranks otherwise."""
    try:
        result = attempt()
    except RuntimeError:
        ranks.least(0)
        return None
    return result if ranks.least(1) else None


@dataclass(frozen=True, slots=True)
class OneShotSums:
    """Sums in one kernel, over memory of all GPUs that each of them has mapped."""

    buffer: Tensor
    """[num_elements] in the model's type: where this rank leaves its part."""
    group_name: str

    @property
    def dtype(self) -> torch.dtype:
        return self.buffer.dtype

    def takes(self, x: Tensor) -> bool:
        return fits_one_shot(x, self.buffer.numel(), self.buffer.dtype)

    def sum(self, x: Tensor) -> Tensor:
        part = self.buffer[: x.numel()].view(x.shape)
        part.copy_(x)
        total: Tensor = torch.ops.symm_mem.one_shot_all_reduce(part, "sum", self.group_name)
        return total


def fits_one_shot(x: Tensor, num_elements: int, dtype: torch.dtype) -> bool:
    """Whether ``x`` is of the buffer's type, fits it and is a whole number of what a thread adds up at once."""
    return x.dtype == dtype and 0 < x.numel() <= num_elements and x.nbytes % _ALIGNMENT == 0


def one_shot_elements(tp_size: int, dtype: torch.dtype) -> int:
    """Elements of a part that are added up in one shot at most; 0: the kernel does not take the type."""
    return _ONE_SHOT_BYTES // tp_size // dtype.itemsize if dtype in _ONE_SHOT_DTYPES else 0


def one_shot_sums(
    ranks: Ranks, group: ProcessGroup, device: torch.device, dtype: torch.dtype
) -> QuickSums | None:
    """Sums in one shot where the GPUs of all ranks can have them, tried out once; None everywhere otherwise.

    Each step may fail on one rank alone, so all of them agree before the next: whoever is left alone in a rendezvous
    would wait for good.
    """
    count = one_shot_elements(ranks.tp_size, dtype)
    if count == 0:
        return None
    from torch.distributed import _symmetric_memory as symmetric  # a lot of code, for GPUs alone

    buffer = together(ranks, lambda: symmetric.empty(count, dtype=dtype, device=device))
    if buffer is None:
        return None
    return together(ranks, lambda: _tried_out(buffer, group, symmetric.rendezvous))


def _tried_out(buffer: Tensor, group: ProcessGroup, rendezvous: Callable[..., object]) -> OneShotSums:
    """Raises:
    RuntimeError: The memory cannot be mapped, or its sums are wrong.
    """
    rendezvous(buffer, group.group_name)
    sums = OneShotSums(buffer, group.group_name)
    size = group.size()
    total = sums.sum(
        torch.full((_ALIGNMENT,), float(group.rank() + 1), dtype=buffer.dtype, device=buffer.device)
    )
    if not bool((total == size * (size + 1) / 2).all()):
        raise RuntimeError("sums in one shot are wrong")
    return sums


def join_nccl(
    meeting_fd: int,
    tp_rank: int,
    tp_size: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    address: str = "",
    batch_invariant: bool = False,
) -> tuple[GroupRanks, DeviceSums]:
    """Meet the other ranks, each on a GPU of its own; returns when all are there. Once in a process.

    Args:
        meeting_fd, address: As for ``ranks.open_store``.
        device: This rank's, such as ``cuda:1``.
        dtype: Of what is added up.
    Raises:
        ModelError: There is no such GPU.
    """
    if device.index not in range(torch.cuda.device_count()):
        raise ModelError(
            f"rank {tp_rank} needs {device}, this machine has {torch.cuda.device_count()} GPUs: lower "
            "tensor_parallel_size, or let ranks of other machines join"
        )
    os.environ.update(nccl_environment(os.environ, address))
    torch.cuda.set_device(device)
    store = open_store(meeting_fd, tp_rank, tp_size, address)
    ranks = gloo_ranks(store, tp_rank, tp_size, own_address(address))
    distributed.init_process_group(
        "nccl",
        store=PrefixStore("nccl", store),
        rank=tp_rank,
        world_size=tp_size,
        timeout=FOREVER,
        device_id=device,
    )
    group = _whole_world()
    one_shot = None if batch_invariant or address else one_shot_sums(ranks, group, device, dtype)
    return ranks, DeviceSums(group, quick=one_shot, batch_invariant=batch_invariant)


def _whole_world() -> ProcessGroup:
    world = distributed.group.WORLD
    assert world is not None
    return world


def nccl_environment(given: Mapping[str, str], address: str) -> dict[str, str]:
    """Variables to set before NCCL starts; an operator's choice of network is left alone.

    On one machine NCCL's ranks find each other over loopback, and nobody else finds them.
    """
    chosen = dict(_ENVIRONMENT)
    if not address and "NCCL_SOCKET_IFNAME" not in given:
        chosen["NCCL_SOCKET_IFNAME"] = "=lo"
    return chosen
