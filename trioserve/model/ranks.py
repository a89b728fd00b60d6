"""How the ranks of one model meet: what every one of them must know alike, and sums of what each has computed.

All of them do the same in the same order, for they carry out the same plans; whoever comes first to a meeting waits. A
rank that is gone is the front's to notice: it ends the others wherever they wait. Here sums run in the order of ranks
and in float32, whatever the batch, so they are the same bits on every rank and in every batch; ``nccl`` has those of
GPUs.
"""

import socket
from datetime import timedelta
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined] # theirs
    FileStore,
    PrefixStore,
    ProcessGroup,
    ProcessGroupGloo,
    Store,
    TCPStore,
    Work,
)

from trioserve.errors import RankLost

FOREVER: Final = timedelta(days=365)
"""A rank waits for the others as long as the front lets it."""
_LOOPBACK: Final = "127.0.0.1"


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
        """The sum of every rank's ``x``, which are of one shape; in its type. ``x`` may be overwritten."""

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
        self.group = group
        self.tp_rank = group.rank()
        self.tp_size = group.size()

    def share(self, numbers: NDArray[np.int64]) -> None:
        _wait(self.group.broadcast(torch.from_numpy(numbers), 0))

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
        _wait(self.group.allgather([parts], [x.contiguous()]))
        return parts


def _wait(work: Work) -> None:
    """Raises:
    RankLost: Another rank is gone.
    """
    try:
        work.wait()
    except RuntimeError as exc:
        raise RankLost(str(exc)) from exc


def open_store(meeting_fd: int, tp_rank: int, tp_size: int, address: str = "") -> Store:
    """Where ranks leave their addresses for each other.

    Args:
        meeting_fd: Memory without a name that all of them have inherited and nobody else can open. Where they are on
            several machines, on rank 0 the socket that listens at ``address``; it has that one from then on.
        address: HOST:PORT of rank 0, where they are on several machines.
    """
    if not address:
        return FileStore(f"/proc/self/fd/{meeting_fd}", tp_size)
    host, port = split_address(address)
    listen_fd = meeting_fd if tp_rank == 0 else None
    return TCPStore(
        host, port, tp_size, tp_rank == 0, FOREVER, wait_for_workers=False, master_listen_fd=listen_fd
    )


def join_gloo(meeting_fd: int, tp_rank: int, tp_size: int, address: str = "") -> GroupRanks:
    """Meet the other ranks over Gloo; returns when all are there. Arguments as for ``open_store``.

    On one machine it listens on loopback, else on the address from which this machine reaches rank 0.
    """
    store = open_store(meeting_fd, tp_rank, tp_size, address)
    return gloo_ranks(store, tp_rank, tp_size, own_address(address))


def gloo_ranks(store: Store, tp_rank: int, tp_size: int, host: str) -> GroupRanks:
    """Ranks that find each other in ``store`` and listen on ``host``, an address of this machine."""
    own = PrefixStore("gloo", store)
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined] # noqa: SLF001 # they have no other name
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]  # noqa: SLF001
    options._timeout = FOREVER  # noqa: SLF001
    # a group and not Gloo alone: what it does goes through torch's dispatcher, as NCCL's does, where others can see it
    group = ProcessGroup(own, tp_rank, tp_size)
    group._set_default_backend(ProcessGroup.BackendType.GLOO)  # noqa: SLF001
    group._register_backend(  # noqa: SLF001
        torch.device("cpu"),
        ProcessGroup.BackendType.GLOO,
        ProcessGroupGloo(own, tp_rank, tp_size, options),
    )
    return GroupRanks(group)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT; an IPv6 address is in brackets."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def own_address(address: str) -> str:
    """The address of this machine from which it reaches HOST:PORT; loopback where there is no other machine."""
    if not address:
        return _LOOPBACK
    host, port = split_address(address)
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as sock:
        sock.connect(target)  # sends nothing: it asks for the route
        own: str = sock.getsockname()[0]
        return own
