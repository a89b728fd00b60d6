"""Where ranks of other machines come in, and wait until they are needed.

It is open to whoever reaches its port, so until somebody has shown that he has the key he gets a few bytes, a few
seconds and one of a few places, of which the one taken first is given away when all are. Each refusal is a line of the
log.
"""

import logging
from collections import deque
from typing import Final

import trio

from trioserve import __version__
from trioserve.core.frames import FrameReader, encode_frame
from trioserve.core.join import (
    CLAIM_BYTES,
    HANDSHAKE_S,
    MAX_JOIN_FRAME_BYTES,
    NO_ANSWER,
    JoinAnswer,
    JoinRequest,
    is_claim,
    make_answer,
    make_greeting,
    watch_link,
)
from trioserve.errors import WireError
from trioserve.executor.joined import Visitor, listen_on, peer_name

logger = logging.getLogger(__name__)

_MAX_STRANGERS: Final = 16
"""Connections at a time that have not shown yet that they have the key."""
_NO_FILES_S: Final = 0.2
"""Pause after no connection could be accepted, most likely for want of file descriptors."""
_REMIND_EVERY_S: Final = 30.0


class _Refused(Exception):
    """Who came may not stay; says why."""


class RankDoor:
    """Lets ranks in, as many as ``num_wanted`` at a time besides those that were taken."""

    def __init__(
        self, host: str, port: int, *, key: bytes, model_digest: str, num_wanted: int, silence_s: float
    ) -> None:
        """Listen; ``run`` lets them in.

        Raises:
            SettingsError: The address cannot be listened on.
        """
        self.host = host
        self._key = key
        self._model_digest = model_digest
        self._num_wanted = num_wanted
        self._silence_s = silence_s
        self._strangers: deque[trio.CancelScope] = deque()
        self._waiting: dict[Visitor, trio.CancelScope] = {}
        self._news = trio.Event()
        self._listener = trio.SocketListener(_listening(host, port))
        self.port: int = self._listener.socket.getsockname()[1]

    async def run(self) -> None:
        """Let ranks in until cancelled; those that nobody has taken are sent away then."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    nursery.start_soon(self._receive, await self._next())
        finally:
            self.close()

    def close(self) -> None:
        """Listen no more; nobody runs it."""
        self._listener.socket.close()

    async def _next(self) -> trio.SocketStream:
        """Whoever comes next; not ``trio.serve_listeners``, which closes what its handler has done with."""
        while True:
            try:
                return await self._listener.accept()
            except OSError as exc:
                logger.warning("no rank can be let in: %s", exc.strerror)
                await trio.sleep(_NO_FILES_S)

    async def take(self, count: int) -> list[Visitor]:
        """Wait until so many are there, however long it takes."""
        while len(self._waiting) < count:
            logger.info(
                "waiting for ranks to join at %s:%d: %d of %d are here",
                self.host,
                self.port,
                len(self._waiting),
                count,
            )
            with trio.move_on_after(_REMIND_EVERY_S):
                self._news = trio.Event()
                await self._news.wait()
        taken = list(self._waiting)[:count]
        for visitor in taken:
            self._waiting.pop(visitor).cancel()
        return taken

    async def _receive(self, stream: trio.SocketStream) -> None:
        name, is_taken = peer_name(stream), False
        try:
            visitor = await self._examine(stream)
            is_taken = await self._host_until_taken(visitor)
        except _Refused as exc:
            logger.warning("a rank from %s was refused: %s", name, exc)
        except (trio.BrokenResourceError, OSError):
            logger.warning("a rank from %s was refused: it left before it had shown anything", name)
        finally:
            if not is_taken:
                stream.socket.close()

    async def _examine(self, stream: trio.SocketStream) -> Visitor:
        """Raises:
        _Refused: It has not shown in time that it has the key, or it cannot be used.
        """
        if len(self._strangers) >= _MAX_STRANGERS:
            self._strangers.popleft().cancel()
        with trio.move_on_after(HANDSHAKE_S) as scope:
            self._strangers.append(scope)
            try:
                request = await self._acquaint(stream)
            finally:
                if scope in self._strangers:
                    self._strangers.remove(scope)
            await self._judge(stream, request)
            return Visitor(stream, request)
        is_late = trio.current_time() >= scope.deadline
        raise _Refused("it took too long" if is_late else "too many others came who had shown no key")

    async def _acquaint(self, stream: trio.SocketStream) -> JoinRequest:
        """Exchange proofs and hear what the rank says of itself."""
        watch_link(stream.socket, self._silence_s)
        greeting = make_greeting()
        await stream.send_all(greeting)
        claim = await _receive_exactly(stream, CLAIM_BYTES)
        if not is_claim(self._key, greeting, claim):
            await stream.send_all(NO_ANSWER)
            raise _Refused("it does not have the key")
        await stream.send_all(make_answer(self._key, greeting, claim))
        reader = FrameReader[JoinRequest](JoinRequest, max_bytes=MAX_JOIN_FRAME_BYTES)
        try:
            while not (requests := reader.feed(await _receive_some(stream, MAX_JOIN_FRAME_BYTES))):
                pass
        except WireError as exc:
            raise _Refused(str(exc)) from exc
        return requests[0]

    async def _judge(self, stream: trio.SocketStream, request: JoinRequest) -> None:
        """Tell it whether it may stay."""
        answer = JoinAnswer()
        if request.version != __version__:
            answer = JoinAnswer(f"it is trioserve {request.version}, this is {__version__}", is_final=True)
        elif request.model_digest != self._model_digest:
            answer = JoinAnswer("its model is another one than that of the front", is_final=True)
        elif len(self._waiting) >= self._num_wanted:
            answer = JoinAnswer(f"{self._num_wanted} wait already, no more are needed")
        await stream.send_all(encode_frame(answer))
        if answer.refusal:
            raise _Refused(answer.refusal)

    async def _host_until_taken(self, visitor: Visitor) -> bool:
        """Returns whether it was taken.

        It says nothing before it is told of a model; if it does, or is gone, it is let go.
        """
        logger.info("a rank from %s has joined", visitor.name)
        with trio.CancelScope() as scope:
            self._waiting[visitor] = scope
            self._news.set()
            try:
                await trio.lowlevel.wait_readable(visitor.stream.socket)
            finally:
                self._waiting.pop(visitor, None)
            logger.info("a rank from %s has left before it was needed", visitor.name)
        return scope.cancelled_caught


def _listening(host: str, port: int) -> trio.socket.SocketType:
    return trio.socket.from_stdlib_socket(listen_on(host, port))


async def _receive_some(stream: trio.SocketStream, most: int) -> bytes:
    data = await stream.receive_some(most)
    if not data:
        raise _Refused("it left in the middle of what it had to say")
    return bytes(data)


async def _receive_exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await _receive_some(stream, count - len(data))
    return data
