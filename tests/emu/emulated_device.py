"""A whole GPU that is the emulator: graphs that keep what they were told, events that are done late."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

import torch
from torch import Tensor
from torch._C._distributed_c10d import FakeWork, Work
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from trioserve.kernels.device import Event, MemoryInfo
from trioserve.kernels.gpu import Gpu
from trioserve.kernels.source import Kernel

Operation = Callable[[], None]
_LOOKS_AT_NUMBERS: Final = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default}
_META: Final = torch.device("meta")


class EmulatedDevice:
    """A ``Device`` on tensors of the CPU.

    What a graph was captured with is what it replays: the same tensors, and numbers that were the host's then. With
    ``deferring`` nothing is done before somebody waits for it, as if the device were slow: who writes too early into
    what a copy still needs, or reads before the end, has wrong tokens.
    """

    torch_device = torch.device("cpu")
    name = "emulated GPU"

    def __init__(self, gpu: Gpu, *, total_bytes: int = 4 << 30) -> None:
        self.emulator = gpu
        self.gpu: Gpu = _RecordingGpu(self, gpu)
        self.num_waits = 0
        """Times that somebody waited for what was not done yet."""
        self.num_replays = 0
        self.graphs_bytes = 0
        """Of the tensors that graphs have made for themselves."""
        self.launched: set[str] = set()
        """Kernels that have run, and so are built and loaded."""
        self._total_bytes = total_bytes
        self._recording = threading.local()
        self._queue: list[Operation] = []
        self._num_done = 0  # operations of the queue that are done, since the beginning
        self._num_queued = 0
        self._running = threading.Lock()

    # --- a Device ---

    def memory(self) -> MemoryInfo:
        return MemoryInfo(self._total_bytes, self._total_bytes)

    def peak_bytes(self, work: Callable[[], object]) -> int:
        with _Meter() as meter:
            work()
        peak_bytes: int = meter.peak_bytes
        return peak_bytes

    def kept_bytes(self, work: Callable[[], object]) -> int:
        before = self.graphs_bytes
        work()
        return self.graphs_bytes - before

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        with self._unrecorded():  # memory is there at once
            return torch.empty(shape, dtype=dtype)

    def record(self, *, timed: bool = False) -> "EmulatedEvent":
        event = EmulatedEvent(self, timed=timed)
        self.do(event.happen)
        event.number = self._num_queued
        return event

    def capture(self, work: Callable[[], object]) -> "EmulatedGraph":
        assert self._operations is None, "a graph is captured inside of another"
        graph = EmulatedGraph(self)
        with self._recorded_to(graph.operations, may_look=False):
            work()
        return graph

    # --- how it is emulated ---

    @contextmanager
    def deferring(self) -> Iterator[Self]:
        """What this thread starts inside of the block is done when somebody waits for it, and else at the end."""
        with self._recorded_to(self._queue, may_look=True):
            yield self
        self.run_until(self._num_queued)

    def do(self, operation: Operation) -> None:
        """Do it now, or note it where this thread is recorded."""
        operations = self._operations
        if operations is None:
            operation()
            return
        operations.append(operation)
        if operations is self._queue:
            self._num_queued += 1

    def wait_until(self, number: int) -> None:
        """Do what was queued first, so many operations since the beginning; whoever comes here waits."""
        if self._num_done < number:
            self.num_waits += 1
            self.run_until(number)

    def run_until(self, number: int) -> None:
        """The same, and nobody waits."""
        with self._running, self._unrecorded(), torch.inference_mode():
            while self._num_done < number:
                self._num_done += 1
                self._queue.pop(0)()

    def is_done(self, number: int) -> bool:
        return self._num_done >= number

    @property
    def num_queued(self) -> int:
        return self._num_queued

    @property
    def is_capturing(self) -> bool:
        """Whether this thread tells a graph."""
        operations = self._operations
        return operations is not None and operations is not self._queue

    @property
    def _operations(self) -> list[Operation] | None:
        return getattr(self._recording, "operations", None)

    @contextmanager
    def _recorded_to(self, operations: list[Operation], *, may_look: bool) -> Iterator[None]:
        before, self._recording.operations = self._operations, operations
        try:
            with _Recorder(self, may_look=may_look):
                yield
        finally:
            self._recording.operations = before

    @contextmanager
    def _unrecorded(self) -> Iterator[None]:
        before, self._recording.operations = self._operations, None
        try:
            with torch.utils._python_dispatch._disable_current_modes():
                yield
        finally:
            self._recording.operations = before


class EmulatedEvent:
    """A moment in an emulated device's queue."""

    def __init__(self, device: EmulatedDevice, *, timed: bool) -> None:
        self._device = device
        self._is_timed = timed
        self._happened_s: float | None = None
        self.number = 0

    def happen(self) -> None:
        self._happened_s = time.perf_counter()

    def wait(self) -> None:
        assert not self._device.is_capturing, "a graph waits for nobody"
        self._device.wait_until(self.number)

    @property
    def is_done(self) -> bool:
        return self._device.is_done(self.number)

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, EmulatedEvent)
        assert self._is_timed and earlier._is_timed, "nobody has taken the time"
        assert self._happened_s is not None and earlier._happened_s is not None, "it has not come yet"
        return self._happened_s - earlier._happened_s


class EmulatedGraph:
    """Operations with the tensors and numbers of the time when they were recorded."""

    def __init__(self, device: EmulatedDevice) -> None:
        self._device = device
        self.operations: list[Operation] = []

    def replay(self) -> None:
        self._device.num_replays += 1
        self._device.do(self._run)

    def _run(self) -> None:
        for operation in self.operations:
            operation()


class _RecordingGpu:
    """A ``Gpu`` whose launches are noted where others are."""

    def __init__(self, device: EmulatedDevice, gpu: Gpu) -> None:
        self._device = device
        self._gpu = gpu

    @property
    def num_multiprocessors(self) -> int:
        return self._gpu.num_multiprocessors

    @property
    def architecture(self) -> str:
        return self._gpu.architecture

    def launch(
        self,
        kernel: Kernel,
        *arguments: Tensor | float,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared_bytes: int = 0,
    ) -> None:
        device = self._device
        if device.is_capturing:
            assert kernel.name in device.launched, f"{kernel.name} has not run before it was captured"
        device.launched.add(kernel.name)
        device.do(
            lambda: self._gpu.launch(kernel, *arguments, grid=grid, block=block, shared_bytes=shared_bytes)
        )


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call] # theirs
    """Notes what torch is told. Results have their shapes at once and their numbers when it is done."""

    def __init__(self, device: EmulatedDevice, *, may_look: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # theirs
        self._device = device
        self._may_look = may_look

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "c10d":
            self._device.do(lambda: _meet(func, args, kwargs))
            return _promised(func, args)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode what is made of other operations comes here whole
                return func.decompose(*args, **kwargs)
        if func in _LOOKS_AT_NUMBERS:
            assert self._may_look, "a graph cannot look at numbers"
            self._device.wait_until(self._device.num_queued)
            return func(*args, **kwargs)
        returns = func._schema.returns
        if returns and all(each.alias_info is not None and not each.alias_info.is_write for each in returns):
            return func(*args, **kwargs)  # a view looks at no numbers
        if func._schema.is_mutable:
            self._device.do(lambda: func(*args, **kwargs))
            return self._changed(func, args, kwargs)
        made = tree_map(_empty_like, func(*_to_meta(args), **_to_meta(kwargs)))
        if self._device.is_capturing:
            self._device.graphs_bytes += sum(x.nbytes for x in tree_iter(made) if isinstance(x, Tensor))
        self._device.do(lambda: _fill(made, func(*args, **kwargs)))
        return made

    @staticmethod
    def _changed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments that an operation writes and returns."""
        named = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
        found = [
            named[each.name]
            for each in func._schema.arguments
            if each.alias_info is not None and each.alias_info.is_write
        ]
        count = len(func._schema.returns)
        return found[0] if count == 1 else tuple(found) if count else None


def _meet(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Do something with other ranks, and wait for them."""
    for found in tree_iter(func(*args, **kwargs)):
        if isinstance(found, torch.ScriptObject):
            Work.unbox(found).wait()


def _promised(func: Any, args: tuple[Any, ...]) -> Any:
    """What it returns before it is done: the tensors that it will write, which are its first argument, and its work."""
    work = FakeWork().boxed()
    return (args[0], work) if len(func._schema.returns) == 2 else work


def _to_meta(values: Any) -> Any:
    def on_meta(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=_META)
        return _META if isinstance(value, torch.device) else value

    return tree_map(on_meta, values)


def _empty_like(made: Any) -> Any:
    if not isinstance(made, Tensor):
        return made
    return torch.empty_strided(made.shape, made.stride(), dtype=made.dtype)


def _fill(made: Any, found: Any) -> None:
    for into, value in zip(tree_iter(made), tree_iter(found), strict=True):
        if isinstance(into, Tensor):
            into.copy_(value)


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call] # theirs
    """Adds up what the tensors take that are made while it is open."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # theirs
        self.peak_bytes = 0
        self._bytes = 0
        self._holders: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **kwargs or {})
        given = {
            each.untyped_storage().data_ptr()
            for each in tree_iter((args, kwargs))
            if isinstance(each, Tensor)
        }
        for tensor in tree_iter(found):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage.data_ptr() in given and storage.data_ptr() not in self._holders:
                continue  # what was there before
            self._hold(storage.data_ptr(), storage.nbytes())
            weakref.finalize(tensor, self._let_go, storage.data_ptr(), storage.nbytes())
        return found

    def _hold(self, address: int, num_bytes: int) -> None:
        self._holders[address] = self._holders.get(address, 0) + 1
        if self._holders[address] == 1:
            self._bytes += num_bytes
            self.peak_bytes = max(self.peak_bytes, self._bytes)

    def _let_go(self, address: int, num_bytes: int) -> None:
        self._holders[address] -= 1
        if not self._holders[address]:
            del self._holders[address]
            self._bytes -= num_bytes
