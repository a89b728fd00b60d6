"""A real GPU as the works see it: torch.cuda's memory, events and graphs. Never run on a GPU yet."""

import ctypes
import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from trioserve.errors import KernelError
from trioserve.kernels.device import Event, MemoryInfo
from trioserve.kernels.driver import gpu_of

_DRIVER: Final = "libcuda.so.1"
_LARGE_BYTES: Final = 64 << 20
"""Of pinned memory, from where on it is taken as it is: torch would make it a power of two, to use it again."""
_PORTABLE: Final = 1
"""cudaHostRegisterPortable: pinned for all devices of the process."""


def missing_for_cuda() -> str | None:
    """What keeps this machine from computing on a GPU, and what to do about it; None where nothing does."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install a build of torch that has it"
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return f"there is no NVIDIA driver ({_DRIVER}): install it, or let the container see it"
    if not torch.cuda.device_count():
        return (
            "the NVIDIA driver shows no GPU: look at CUDA_VISIBLE_DEVICES and at what the container may see"
        )
    return None


class CudaDevice:
    """A ``Device``; torch's current one of this process from then on."""

    def __init__(self, index: int) -> None:
        """``index``: which of the GPUs that this process sees.

        Raises:
            KernelError: It is too old, or its driver is not there.
        """
        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(self.torch_device)
        self.gpu = gpu_of(self.torch_device)
        self._pinned: list[Tensor] = []
        self._graph_pool = torch.cuda.graph_pool_handle()

    @property
    def name(self) -> str:
        """As the driver calls it."""
        name: str = torch.cuda.get_device_name(self.torch_device)
        return name

    def memory(self) -> MemoryInfo:
        """What there is; memory that torch keeps for later counts as free."""
        free, total = torch.cuda.mem_get_info(self.torch_device)
        kept = torch.cuda.memory_reserved(self.torch_device) - torch.cuda.memory_allocated(self.torch_device)
        return MemoryInfo(free + kept, total)

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """The most that tensors took during ``work`` beyond what they took before; returns when all of it is done.

        Raises:
            torch.OutOfMemoryError: There was not enough.
        """
        torch.cuda.synchronize(self.torch_device)
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        before = torch.cuda.memory_allocated(self.torch_device)
        work()
        torch.cuda.synchronize(self.torch_device)
        return torch.cuda.max_memory_allocated(self.torch_device) - before

    def kept_bytes(self, work: Callable[[], object]) -> int:
        """What nobody else can have any more after ``work``; torch counts as free what graphs keep, the driver does
        not."""
        before = self._free_bytes()
        work()
        return max(0, before - self._free_bytes())

    def _free_bytes(self) -> int:
        """Once torch has given back what it keeps for later."""
        torch.cuda.synchronize(self.torch_device)
        torch.cuda.empty_cache()
        free: int = torch.cuda.mem_get_info(self.torch_device)[0]
        return free

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Host memory that the device copies from and to without anybody's help; its contents are arbitrary. What is
        large stays pinned for as long as there is this device.

        Raises:
            RuntimeError: The host does not have it.
        """
        if math.prod(shape) * dtype.itemsize < _LARGE_BYTES:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        pinned = torch.empty(shape, dtype=dtype)
        error = int(torch.cuda.cudart().cudaHostRegister(pinned.data_ptr(), pinned.nbytes, _PORTABLE))  # type: ignore[no-untyped-call]
        if error:
            raise RuntimeError(f"{pinned.nbytes} bytes cannot be pinned, cudaHostRegister answers {error}")
        self._pinned.append(pinned)  # freed memory must not be pinned
        return pinned

    def record(self, *, timed: bool = False) -> Event:
        """The moment at which all is done that was started so far on the current stream."""
        # a thread that waits for it sleeps, so that the one that launches has the interpreter and a core
        event = torch.cuda.Event(enable_timing=timed, blocking=True)  # type: ignore[no-untyped-call] # theirs
        event.record(torch.cuda.current_stream(self.torch_device))
        return CudaEvent(event)

    def capture(self, work: Callable[[], object]) -> "CudaGraph":
        """What ``work`` starts, as a graph; all graphs have their tensors in one pool, so one is replayed at a time.

        Raises:
            RuntimeError: ``work`` does something that no graph can hold.
        """
        graph = torch.cuda.CUDAGraph()
        # other threads may make grammars meanwhile, and what they allocate is no business of the graph
        with torch.cuda.graph(graph, pool=self._graph_pool, capture_error_mode="thread_local"):
            work()
        return CudaGraph(graph)


class CudaEvent:
    """An ``Event`` of torch.cuda."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def wait(self) -> None:
        """Return once all is done that was started before; other threads run meanwhile.

        Raises:
            KernelError: What was started failed.
        """
        try:
            self.event.synchronize()
        except RuntimeError as exc:
            raise KernelError(f"the GPU failed: {exc}") from exc

    @property
    def is_done(self) -> bool:
        """Whether ``wait`` would return at once."""
        done: bool = self.event.query()  # type: ignore[no-untyped-call] # theirs
        return done

    def seconds_since(self, earlier: Event) -> float:
        """From ``earlier`` to this one on the device's clock; both are timed and done."""
        assert isinstance(earlier, CudaEvent), "events of two devices have no time between them"
        milliseconds: float = earlier.event.elapsed_time(self.event)
        return milliseconds / 1e3


class CudaGraph:
    """A ``Graph`` of torch.cuda."""

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph = graph

    def replay(self) -> None:
        """Start all of it anew on the current stream."""
        self._graph.replay()
