"""How the ranks of one model meet: what every one of them must know alike, and sums of what each has computed.

All of them do the same in the same order, for they carry out the same plans; whoever comes first to a meeting waits. A
rank that is gone is the front's to notice: it ends the others wherever they wait. Sums run in the order of ranks and in
float32, whatever the batch, so they are the same bits on every rank and in every batch.
"""

import os
from datetime import timedelta
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import FileStore, ProcessGroup, ProcessGroupGloo, Work  # type: ignore[attr-defined] # theirs

from trioserve.errors import RankLost

_FOREVER: Final = timedelta(days=365)


class Ranks(Protocol):
    """All ranks as one of them sees them."""

    @property
    def tp_rank(self) -> int: ...

    @property
    def tp_size(self) -> int: ...

    def share(self, numbers: NDArray[np.int64]) -> None:
        """Make ``numbers``, contiguous and of one shape everywhere, those of rank 0."""

    def least(self, number: int) -> int:
        """The least of what all ranks say."""


class Sums(Protocol):
    """What torch's layers need of the other ranks."""

    def sum(self, x: Tensor) -> Tensor:
        """The sum of every rank's ``x``, which are of one shape; in its type, rounded once."""

    def join(self, columns: Tensor, sizes: list[int]) -> Tensor:
        """Every rank's ``columns`` side by side; rank ``i`` has ``sizes[i]`` of them.

        Shapes:
            columns: [num_rows, sizes[tp_rank]]
            result: [num_rows, sum(sizes)]
        """


class Alone:
    """The only rank."""

    tp_rank = 0
    tp_size = 1

    def share(self, numbers: NDArray[np.int64]) -> None:
        pass

    def least(self, number: int) -> int:
        return number


ALONE: Final = Alone()


class GroupRanks:
    """Ranks in a process group of torch, whatever it runs over."""

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self.tp_rank = group.rank()
        self.tp_size = group.size()

    def share(self, numbers: NDArray[np.int64]) -> None:
        _wait(self._group.broadcast(torch.from_numpy(numbers), 0))

    def least(self, number: int) -> int:
        return min(int(each) for each in self._gather(torch.tensor([number])))

    def sum(self, x: Tensor) -> Tensor:
        # not all_reduce: the order of its additions depends on where in the tensor a number stands
        total, *others = (part.float() for part in self._gather(x))
        for other in others:
            total += other
        return total.to(x.dtype)

    def join(self, columns: Tensor, sizes: list[int]) -> Tensor:
        padded = columns.new_zeros(len(columns), max(sizes))
        padded[:, : columns.shape[1]] = columns
        parts = self._gather(padded)
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)

    def _gather(self, x: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(x) for _ in range(self.tp_size)]
        _wait(self._group.allgather([parts], [x.contiguous()]))
        return parts


def _wait(work: Work) -> None:
    """Raises:
    RankLost: Another rank is gone.
    """
    try:
        work.wait()
    except RuntimeError as exc:
        raise RankLost(str(exc)) from exc


def join_gloo(meeting_fd: int, tp_rank: int, tp_size: int) -> GroupRanks:
    """Meet the other ranks of this machine over Gloo, bound to loopback; returns when all are there.

    Args:
        meeting_fd: Memory without a name that all of them have inherited and nobody else can open. They leave their
            addresses in it.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = FileStore(f"/proc/self/fd/{meeting_fd}", tp_size)
    group = ProcessGroupGloo(store, tp_rank, tp_size, _FOREVER)
    return GroupRanks(group)  # type: ignore[arg-type] # their stubs do not say that it is one
