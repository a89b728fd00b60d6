"""One rank: its process, its socket and what was heard from it."""

import os
import signal

import msgspec

from trioserve.children import Child, SocketClosed
from trioserve.core.frames import encode_frame
from trioserve.core.step import FromWorker, WorkerConfig, WorkerError
from trioserve.errors import ModelError, SettingsError, WorkerDied, WorkerFailed
from trioserve.settings import SECRET_VARIABLES, find_gpus


class Rank:
    """A process ``python -m trioserve.worker`` and the stream socket to it."""

    def __init__(self, config: WorkerConfig) -> None:
        """Start it; it loads what ``config`` names."""
        self.tp_rank = config.tp_rank
        env = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
        self._child: Child[FromWorker] = Child(
            "trioserve.worker",
            FromWorker,
            env=env,
            first_frame=encode_frame(config),
            inherited_fds=[config.meeting_fd] if config.meeting_fd >= 0 else [],
        )

    @property
    def pid(self) -> int:
        return self._child.pid

    async def send_bytes(self, frame: bytes) -> None:
        """Send a frame that is encoded already, for all ranks alike.

        Raises:
            WorkerDied: The rank has closed its socket.
        """
        try:
            await self._child.send_bytes(frame)
        except SocketClosed as exc:
            raise WorkerDied(f"rank {self.tp_rank} closed its socket") from exc

    async def receive(self) -> FromWorker:
        """Wait for the next message.

        Raises:
            ModelError: The rank says that the model cannot be served.
            WorkerFailed: The rank says that it failed.
            WorkerDied: The rank is gone without a word.
            WireError: It sent something that is no message.
        """
        try:
            message = await self._child.receive()
        except SocketClosed as exc:
            raise WorkerDied(f"rank {self.tp_rank} {await self._child.end()}") from exc
        if isinstance(message, WorkerError):
            raise ModelError(message.message) if message.kind == "model" else WorkerFailed(message.message)
        return message

    async def wait_ended(self) -> None:
        """Wait for the process to end, by whatever cause."""
        await self._child.wait_ended()

    def write_stacks(self) -> None:
        """Have the process write the stacks of its threads to its standard error."""
        self._child.send_signal(signal.SIGQUIT)

    def kill(self) -> None:
        """End the process at once, whatever it waits for."""
        self._child.send_signal(signal.SIGKILL)

    async def aclose(self) -> None:
        """Close the socket, which ends the process; kill it if it has not ended within a second."""
        await self._child.aclose()


def launch_ranks(config: WorkerConfig) -> list[Rank]:
    """Start all ranks, which load at once; whoever runs them must close them.

    Several meet in memory that has no name, so nobody else can. Rank 0 chooses the tokens, so it alone is told of what
    grammars need.

    Raises:
        SettingsError: They are more than GPUs, or than CPUs where these compute.
    """
    if config.tp_size == 1:
        return [Rank(config)]
    _refuse_crowd(config)
    meeting_fd = os.memfd_create("trioserve-ranks")
    config = msgspec.structs.replace(config, meeting_fd=meeting_fd)
    follower = msgspec.structs.replace(config, tokenizer_path="", grammar_backend="")
    try:
        return [
            Rank(msgspec.structs.replace(follower if tp_rank else config, tp_rank=tp_rank))
            for tp_rank in range(config.tp_size)
        ]
    finally:
        os.close(meeting_fd)


def _refuse_crowd(config: WorkerConfig) -> None:
    if config.device == "cuda":
        there, count = "GPU", find_gpus().count
    else:
        there, count = "CPU", len(os.sched_getaffinity(0))
    if config.tp_size > count:
        needed = "a GPU" if config.device == "cuda" else "a core"
        raise SettingsError(
            f"tensor_parallel_size = {config.tp_size}: each rank needs {needed}, and there "
            f"{'is' if count == 1 else 'are'} {count} {there}{'' if count == 1 else 's'}; lower it"
        )
