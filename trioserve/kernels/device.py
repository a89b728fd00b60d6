"""A GPU beyond its kernels: memory, copies that nobody waits for, events, graphs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trioserve.kernels.gpu import Gpu


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Of a device, in bytes."""

    free_bytes: int
    """That anybody may take, what this process keeps for itself and does not use included."""
    total_bytes: int


class Event(Protocol):
    """A moment in what a device does."""

    def wait(self) -> None:
        """Return once all is done that was started before; other threads run meanwhile.

        Raises:
            KernelError: What was started failed.
        """

    @property
    def is_done(self) -> bool:
        """Whether ``wait`` would return at once."""
        ...

    def seconds_since(self, earlier: "Event") -> float:
        """From ``earlier`` to this one on the device's clock; both are timed and done."""
        ...


class Graph(Protocol):
    """What a device was once told, to be done again in one launch."""

    def replay(self) -> None:
        """Start all of it anew on the current stream: the same kernels, addresses and numbers; only what lies in the
        tensors is new."""


class Device(Protocol):
    """A GPU with all that the works need of it, or in the tests the emulator."""

    @property
    def gpu(self) -> Gpu:
        """What launches its kernels."""
        ...

    @property
    def torch_device(self) -> torch.device:
        """Where its tensors are."""
        ...

    @property
    def name(self) -> str:
        """For people, such as "NVIDIA H100"."""
        ...

    def memory(self) -> MemoryInfo:
        """What there is and what is free."""
        ...

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """The most that tensors took during ``work`` beyond what they took before; returns when all of it is done.

        Raises:
            torch.OutOfMemoryError: There was not enough.
        """
        ...

    def kept_bytes(self, work: Callable[[], object]) -> int:
        """What nobody else can have any more after ``work``, such as what its graphs keep for themselves."""
        ...

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Host memory that the device copies from and to without anybody's help; its contents are arbitrary.

        Raises:
            RuntimeError: The host does not have it.
        """
        ...

    def record(self, *, timed: bool = False) -> Event:
        """The moment at which all is done that was started so far on the current stream.

        Args:
            timed: Whether the device takes its time, which costs a little.
        """
        ...

    def capture(self, work: Callable[[], object]) -> Graph:
        """What ``work`` starts, as a graph; nothing is computed yet.

        ``work`` must have run once before, may not look at results, and tensors that it makes are the graph's own: they
        are written anew by each replay.
        """
        ...
