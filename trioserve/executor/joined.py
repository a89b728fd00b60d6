"""Ranks of other machines as the front sees them: connections that were let in, and the ranks that they become."""

import contextlib
import socket
import struct
from collections.abc import Sequence
from typing import Final

import trio
from msgspec import structs

from trioserve.children import FrameStream, SocketClosed
from trioserve.core.frames import encode_frame
from trioserve.core.join import JoinRequest
from trioserve.core.step import FromWorker, Spread, WorkerConfig
from trioserve.errors import SettingsError, WorkerDied
from trioserve.executor.executor import close_ranks
from trioserve.executor.rank import LocalRank, Rank, config_of, judged, send_to

_RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)


class Visitor:
    """A connection that was let in, of a rank that waits to be told of a model."""

    def __init__(self, stream: trio.SocketStream, request: JoinRequest) -> None:
        self.stream = stream
        self.request = request

    @property
    def name(self) -> str:
        """Of the machine, for people."""
        return peer_name(self.stream)

    @property
    def our_host(self) -> str:
        """This machine's address as the rank has reached it."""
        host: str = self.stream.socket.getsockname()[0]
        return host


class JoinedRank:
    """A rank that ``trioserve join`` runs on another machine."""

    def __init__(self, visitor: Visitor, tp_rank: int) -> None:
        self.tp_rank = tp_rank
        self._name = visitor.name
        self._socket = visitor.stream.socket
        self._frames: FrameStream[FromWorker] = FrameStream(visitor.stream, FromWorker)

    async def send_bytes(self, frame: bytes) -> None:
        await send_to(self._frames, self.tp_rank, frame)

    async def receive(self) -> FromWorker:
        try:
            return judged(await self._frames.receive())
        except SocketClosed as exc:
            raise WorkerDied(f"rank {self.tp_rank} on {self._name} is gone") from exc

    def write_stacks(self) -> None:
        """Only who is on its machine can have that, by SIGQUIT to ``trioserve join``."""

    def kill(self) -> None:
        """By a reset instead of an orderly end, at which ``trioserve join`` kills its process."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        self._socket.close()

    async def aclose(self) -> None:
        await self._frames.aclose()


def peer_name(stream: trio.SocketStream) -> str:
    """The address of who is at the other end."""
    try:
        name: str = stream.socket.getpeername()[0]
    except OSError:
        return "somewhere"
    return name


async def launch_spread_ranks(
    config: WorkerConfig, visitors: Sequence[Visitor], *, num_local: int, host: str
) -> list[Rank]:
    """Start the first ``num_local`` ranks here and make the others of ``visitors``; whoever runs them must close them.

    They meet at a socket of rank 0, at a port that is free, on ``host``.

    Raises:
        SettingsError: Nothing can listen there.
        WorkerDied: A visitor has left.
    """
    joined = [JoinedRank(visitor, num_local + number) for number, visitor in enumerate(visitors)]
    ranks: list[Rank] = [*joined]
    try:
        with listen_on(host, 0) as meeting:
            port = meeting.getsockname()[1]
            for rank, visitor in zip(joined, visitors, strict=True):
                place = Spread(
                    _address(visitor.our_host, port),
                    visitor.request.local_rank,
                    visitor.request.num_local_ranks,
                )
                there = structs.replace(config_of(config, rank.tp_rank), model_path="", spread=place)
                await rank.send_bytes(encode_frame(there))
            ranks += _launch_local(config, _address(visitors[0].our_host, port), meeting.fileno(), num_local)
    except BaseException:
        await close_ranks(ranks)
        raise
    return sorted(ranks, key=lambda rank: rank.tp_rank)


def _launch_local(config: WorkerConfig, address: str, meeting_fd: int, num_local: int) -> list[LocalRank]:
    """The ranks of this machine; rank 0 has the socket at which all meet."""
    places = [
        structs.replace(
            config,
            meeting_fd=-1 if tp_rank else meeting_fd,
            spread=Spread(address, tp_rank, num_local),
        )
        for tp_rank in range(num_local)
    ]
    return [LocalRank(config_of(place, tp_rank)) for tp_rank, place in enumerate(places)]


def listen_on(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        SettingsError: It cannot, there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=64)
    except OSError as exc:
        raise SettingsError(
            f"rank_listen: {_address(host, port)} cannot be listened on: {exc.strerror}"
        ) from exc


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
