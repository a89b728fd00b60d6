"""One rank: the stream to it and what was heard from it, and its process where that is on this machine."""

import os
import signal
from typing import ClassVar, Protocol

import msgspec

from trioserve.children import Child, FrameStream, SocketClosed
from trioserve.core.frames import encode_frame
from trioserve.core.step import FromWorker, WorkerConfig, WorkerError
from trioserve.errors import ModelError, SettingsError, WorkerDied, WorkerFailed
from trioserve.settings import SECRET_VARIABLES, find_gpus


class Rank(Protocol):
    """A rank, wherever it is."""

    tp_rank: int

    async def send_bytes(self, frame: bytes) -> None:
        """Send a frame that is encoded already, for all ranks alike.

        Raises:
            WorkerDied: The rank has closed its socket.
        """

    async def receive(self) -> FromWorker:
        """Wait for the next message.

        Raises:
            ModelError: The rank says that the model cannot be served.
            WorkerFailed: The rank says that it failed.
            WorkerDied: The rank is gone without a word.
            WireError: It sent something that is no message.
        """

    def write_stacks(self) -> None:
        """Have the process write the stacks of its threads to its standard error, where that can be done."""

    def kill(self) -> None:
        """End the process at once, whatever it waits for."""

    async def aclose(self) -> None:
        """Close the socket, which ends the process, soon and whatever it is at."""


class LocalRank:
    """A process ``python -m trioserve.worker`` on this machine."""

    module: ClassVar = "trioserve.worker"
    """What runs in it."""

    def __init__(self, config: WorkerConfig) -> None:
        """Start it; it loads what ``config`` names."""
        self.tp_rank = config.tp_rank
        self._child: Child[FromWorker] = Child(
            self.module,
            FromWorker,
            env=worker_environment(),
            first_frame=encode_frame(config),
            inherited_fds=[config.meeting_fd] if config.meeting_fd >= 0 else [],
        )

    @property
    def pid(self) -> int:
        return self._child.process.pid

    async def send_bytes(self, frame: bytes) -> None:
        await send_to(self._child, self.tp_rank, frame)

    async def receive(self) -> FromWorker:
        try:
            return judged(await self._child.receive())
        except SocketClosed as exc:
            raise WorkerDied(f"rank {self.tp_rank} {await self._child.process.end()}") from exc

    async def wait_ended(self) -> None:
        """Wait for the process to end, by whatever cause."""
        await self._child.process.wait_ended()

    def write_stacks(self) -> None:
        self._child.process.send_signal(signal.SIGQUIT)

    def kill(self) -> None:
        self._child.process.send_signal(signal.SIGKILL)

    async def aclose(self) -> None:
        """Close the socket, which ends the process; kill it if it has not ended within a second."""
        await self._child.aclose()


async def send_to(frames: FrameStream[FromWorker], tp_rank: int, frame: bytes) -> None:
    """``Rank.send_bytes``."""
    try:
        await frames.send_bytes(frame)
    except SocketClosed as exc:
        raise WorkerDied(f"rank {tp_rank} closed its socket") from exc


def judged(message: FromWorker) -> FromWorker:
    """A rank's message, unless it is that it failed, which is raised."""
    if isinstance(message, WorkerError):
        raise ModelError(message.message) if message.kind == "model" else WorkerFailed(message.message)
    return message


def worker_environment() -> dict[str, str]:
    """What a rank's process inherits: no secrets."""
    return {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}


def launch_ranks(config: WorkerConfig) -> list[LocalRank]:
    """Start all ranks, which load at once; whoever runs them must close them.

    Several meet in memory that has no name, so nobody else can. Rank 0 chooses the tokens, so it alone is told of what
    grammars need.

    Raises:
        SettingsError: They are more than GPUs, or than CPUs where these compute.
    """
    refuse_crowd(config.tp_size, "tensor_parallel_size", config.device)
    if config.tp_size == 1:
        return [LocalRank(config)]
    meeting_fd = os.memfd_create("trioserve-ranks")
    config = msgspec.structs.replace(config, meeting_fd=meeting_fd)
    try:
        return [LocalRank(config_of(config, tp_rank)) for tp_rank in range(config.tp_size)]
    finally:
        os.close(meeting_fd)


def config_of(config: WorkerConfig, tp_rank: int) -> WorkerConfig:
    """What rank ``tp_rank`` is told of what all are told."""
    if tp_rank == 0:
        return config
    return msgspec.structs.replace(config, tp_rank=tp_rank, tokenizer_path="", grammar_backend="")


def refuse_crowd(num_ranks: int, setting: str, device: str) -> None:
    """See to it that each of several ranks of this machine has something to compute on.

    Raises:
        SettingsError: There are fewer CPUs or GPUs; names the setting.
    """
    if device == "cuda":
        there, needed, count = "GPU", "a GPU", find_gpus().count
    else:
        there, needed, count = "CPU", "a core", len(os.sched_getaffinity(0))
    if 1 < num_ranks > count:
        raise SettingsError(
            f"{setting} = {num_ranks}: each rank needs {needed}, and there "
            f"{'is' if count == 1 else 'are'} {count} {there}{'' if count == 1 else 's'}; lower it"
        )
