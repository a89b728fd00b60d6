"""``trioserve join HOST:PORT``: lends ranks of this machine to a server on another one, for as long as it is let.

Each rank has a connection of its own to the server's ``rank_listen``. When the server has enough of them it tells each
what to load; the connection is then handed to a process ``python -m trioserve.worker``, which speaks on it as any rank.
What stays here watches: it kills the process when the connection ends, closes the connection when the process does, and
joins anew, whatever happens to the server.
"""

import argparse
import contextlib
import logging
import os
import random
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Final, NoReturn

import trio

from trioserve import __version__
from trioserve.children import Process
from trioserve.core.frames import HEAD_BYTES, FrameReader, body_length, encode_frame
from trioserve.core.join import (
    ANSWER_BYTES,
    GREETING_BYTES,
    HANDSHAKE_S,
    MAX_JOIN_FRAME_BYTES,
    JoinAnswer,
    JoinRequest,
    is_answer,
    is_greeting,
    make_claim,
    model_digest,
    watch_link,
)
from trioserve.engine.checkpoint import open_model
from trioserve.errors import SettingsError, TrioserveError, WireError
from trioserve.executor.rank import worker_environment
from trioserve.logs import set_up_logs
from trioserve.settings import (
    EXIT_SETTINGS,
    Settings,
    load_settings,
    split_rank_address,
)

logger = logging.getLogger(__name__)

EXIT_ABORTED: Final = 75
"""A rank was ended that the server still used."""
_FLAGS: Final = {
    "model": "the server's model: a repository, a folder or builtin [builtin]",
    "revision": "branch, tag or commit of the repository",
    "download_dir": "the hub's cache folder, if not the usual one",
    "rank_key_file": "a file that holds the key",
    "rank_silence_timeout_s": "time after which a server that says nothing at all counts as lost [10]",
    "drain_timeout_s": "time that a rank in use has, after SIGTERM, until the server lets it go [300]",
    "log_level": "lines of less weight are left out [info]",
    "log_format": "text, json, or auto: text on a terminal [auto]",
}
"""The settings that count here; each is also a variable and a key of trioserve.toml, as for the server."""
_FIRST_DELAY_S: Final = 0.25
_LONGEST_DELAY_S: Final = 5.0
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class NotLetIn(TrioserveError):
    """The server did not let a rank in; asking again may help."""


def main(words: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    try:
        arguments = vars(_parser().parse_args(words))
        address, num_ranks = arguments.pop("ADDRESS"), arguments.pop("ranks")
        settings = load_settings(**{name: value for name, value in arguments.items() if value is not None})
        set_up_logs(settings)
        joiner = Joiner(address, num_ranks, settings)
        return trio.run(joiner.run)
    except SettingsError as exc:
        print(f"trioserve: {exc}", file=sys.stderr)
        return EXIT_SETTINGS


class _Parser(argparse.ArgumentParser):
    """Complains as settings do."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}: see trioserve join --help.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="trioserve join",
        description="Lend ranks of this machine to a server that was started with --rank-listen.",
        epilog="The key is TRIOSERVE_RANK_KEY, or in --rank-key-file. "
        "Each flag but --ranks is also a variable: TRIOSERVE_MODEL.",
        allow_abbrev=False,
    )
    parser.add_argument("ADDRESS", help="HOST:PORT, the server's rank_listen as this machine reaches it")
    parser.add_argument("--ranks", type=_count, default=1, help="how many ranks to lend [1]")
    for name, text in _FLAGS.items():
        metavar = "SECONDS" if name.endswith("_s") else name.rsplit("_", 1)[-1].upper()
        parser.add_argument("--" + name.replace("_", "-"), dest=name, metavar=metavar, help=text)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError("should be a number from 1 to 64")
    return int(text)


class Joiner:
    """Keeps a number of ranks joined to one server."""

    def __init__(self, address: str, num_ranks: int, settings: Settings) -> None:
        """Raises:
        SettingsError: The address, the key or the model cannot be used.
        """
        try:
            self._host, self._port = split_rank_address(address)
        except ValueError as exc:
            raise SettingsError(f"ADDRESS = {address!r}: {exc}.") from exc
        self._num_ranks = num_ranks
        self._key = settings.read_rank_key()
        self._folder = open_model(settings).path
        self._digest = model_digest(self._folder)
        self._silence_s = settings.rank_silence_timeout_s
        self._drain_s = settings.drain_timeout_s
        self._serving: dict[int, Process] = {}
        """By local rank, those that the server uses."""
        self._idle: set[trio.CancelScope] = set()
        """What a signal to end cuts short: waits of ranks that the server does not use."""
        self._is_ending = False
        self._was_aborted = False

    async def run(self) -> int:
        """Lend them until a signal says otherwise; returns the exit code.

        The first SIGTERM or SIGINT lends nothing more: ranks that the server uses go on until it lets them go, so that
        it can drain, at most ``drain_timeout_s``. The second ends them at once.

        Raises:
            SettingsError: The server refuses this machine's key, version or model for good.
        """
        try:
            with trio.open_signal_receiver(*_SIGNALS) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._obey, signals, nursery.cancel_scope)
                    async with trio.open_nursery() as ranks:
                        for local_rank in range(self._num_ranks):
                            ranks.start_soon(self._keep_joined, local_rank)
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            refusals, rest = group.split(SettingsError)
            if refusals is None or rest is not None:
                raise
            raise _first(refusals) from None
        return EXIT_ABORTED if self._was_aborted else 0

    async def _obey(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        async for number in signals:
            if number == signal.SIGQUIT:
                for process in self._serving.values():
                    process.send_signal(signal.SIGQUIT)
            elif self._is_ending:
                scope.cancel()
            else:
                self._is_ending = True
                scope.deadline = trio.current_time() + self._drain_s
                for idle in self._idle:
                    idle.cancel()

    async def _keep_joined(self, local_rank: int) -> None:
        while not self._is_ending:
            sock = None
            with trio.CancelScope() as scope:
                self._idle.add(scope)
                sock = await self._needed(local_rank)
            self._idle.remove(scope)
            if sock is not None:
                await self._serve(local_rank, sock)

    async def _needed(self, local_rank: int) -> socket.socket:
        """Wait, however long it takes, until the server has let the rank in and needs it.

        Raises:
            SettingsError: It refuses this machine for good.
        """
        delay_s, told = _FIRST_DELAY_S, ""
        while True:
            tried_at = trio.current_time()
            try:
                return await self._try_to_join(local_rank)
            except (OSError, NotLetIn, WireError, trio.BrokenResourceError) as exc:
                if told != (told := str(exc)):
                    logger.warning("%s:%d cannot be joined yet: %s", self._host, self._port, exc)
            if trio.current_time() > tried_at + _LONGEST_DELAY_S:
                delay_s = _FIRST_DELAY_S
            await trio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 # no secret
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    async def _try_to_join(self, local_rank: int) -> socket.socket:
        """A connection on which the server has begun to say what to load."""
        try:
            with trio.fail_after(HANDSHAKE_S):
                stream = await trio.open_tcp_stream(self._host, self._port)
        except trio.TooSlowError as exc:
            raise NotLetIn("it does not answer") from exc
        try:
            with trio.fail_after(HANDSHAKE_S):
                await self._introduce(stream, local_rank)
            logger.info("joined %s:%d, waiting until the rank is needed", self._host, self._port)
            await trio.lowlevel.wait_readable(stream.socket)
            if not await stream.socket.recv(1, socket.MSG_PEEK):
                raise NotLetIn("it has ended")
            return _blocking(stream)
        except trio.TooSlowError as exc:
            raise NotLetIn("it took too long to let a rank in") from exc
        finally:
            stream.socket.close()

    async def _introduce(self, stream: trio.SocketStream, local_rank: int) -> None:
        """Raises:
        SettingsError: The server has another key, or refuses this machine for good.
        NotLetIn: It is none, or refuses it for now.
        """
        watch_link(stream.socket, self._silence_s)
        greeting = await _receive_exactly(stream, GREETING_BYTES)
        if not is_greeting(greeting):
            raise NotLetIn("something else answers there")
        claim = make_claim(self._key, greeting)
        await stream.send_all(claim)
        if not is_answer(self._key, greeting, claim, await _receive_exactly(stream, ANSWER_BYTES)):
            raise SettingsError(
                f"{self._host}:{self._port} has another key: give both sides the same rank_key or rank_key_file."
            )
        request = JoinRequest(__version__, self._digest, local_rank, self._num_ranks)
        await stream.send_all(encode_frame(request))
        answer = await _receive_answer(stream)
        if answer.is_final:
            raise SettingsError(f"{self._host}:{self._port} refuses this rank: {answer.refusal}.")
        if answer.refusal:
            raise NotLetIn(answer.refusal)

    async def _serve(self, local_rank: int, sock: socket.socket) -> None:
        """Run the rank's process until the server lets it go, the link breaks or it ends."""
        process = Process("trioserve.worker", sock, str(self._folder), env=worker_environment())
        self._serving[local_rank] = process
        logger.info("a rank is needed: process %d", process.pid)
        is_over = False
        try:
            is_over = await _end_of_either(process, sock)
        finally:
            if not is_over:
                self._was_aborted = True
                process.send_signal(signal.SIGKILL)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # the process may be alive, and has it too
            sock.close()
            await process.aclose()
            del self._serving[local_rank]
        logger.info("process %d is not needed any more", process.pid)


async def _end_of_either(process: Process, sock: socket.socket) -> bool:
    """Wait until the process or the server has ended the connection; returns True.

    A process whose link broke is killed.
    """

    async def wait_link() -> None:
        with select.epoll() as watched:
            watched.register(sock, select.EPOLLRDHUP)
            await trio.lowlevel.wait_readable(watched.fileno())
            if any(events & select.EPOLLERR for _, events in watched.poll(0)):
                process.send_signal(signal.SIGKILL)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_link)
        await process.wait_ended()
        nursery.cancel_scope.cancel()
    return True


def _blocking(stream: trio.SocketStream) -> socket.socket:
    """The same connection as a socket that may block, for a process."""
    sock = socket.socket(fileno=os.dup(stream.socket.fileno()))
    sock.setblocking(True)
    return sock


async def _receive_answer(stream: trio.SocketStream) -> JoinAnswer:
    """It alone: what comes behind it is the rank's."""
    head = await _receive_exactly(stream, HEAD_BYTES)
    length = body_length(head, max_bytes=MAX_JOIN_FRAME_BYTES)
    body = await _receive_exactly(stream, length)
    (answer,) = FrameReader[JoinAnswer](JoinAnswer).feed(head + body)
    return answer


async def _receive_exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        some = await stream.receive_some(count - len(data))
        if not some:
            raise NotLetIn("it has ended the connection")
        data += some
    return data


def _first(group: BaseExceptionGroup[SettingsError]) -> SettingsError:
    failure = group.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
