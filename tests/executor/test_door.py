"""The door for ranks of other machines, over real sockets: who gets in, and what it costs to knock."""

import contextlib
import itertools
import logging
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from trioserve import __version__
from trioserve.core.frames import FrameReader, encode_frame
from trioserve.core.join import (
    ANSWER_BYTES,
    GREETING_BYTES,
    NO_ANSWER,
    JoinAnswer,
    JoinRequest,
    is_answer,
    make_claim,
)
from trioserve.errors import SettingsError
from trioserve.executor import door as door_module
from trioserve.executor.door import RankDoor
from trioserve.executor.joined import Visitor

KEY = b"a key of both sides"
DIGEST = "of a model"


class Guest:
    """Who knocks."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def prove(self, key: bytes = KEY) -> bytes:
        """What the door answers to a claim."""
        greeting = await self.read(GREETING_BYTES)
        claim = make_claim(key, greeting)
        await self.stream.send_all(claim)
        answer = await self.read(ANSWER_BYTES)
        assert is_answer(KEY, greeting, claim, answer) is (key == KEY)
        return answer

    async def ask(self, *, version: str = __version__, digest: str = DIGEST) -> JoinAnswer:
        await self.prove()
        await self.stream.send_all(encode_frame(JoinRequest(version, digest, 0, 1)))
        reader = FrameReader[JoinAnswer](JoinAnswer)
        while not (answers := reader.feed(await self.stream.receive_some())):
            pass
        return answers[0]

    async def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            some = await self.stream.receive_some(count - len(data))
            assert some, "the door was shut"
            data += some
        return data

    async def is_sent_away(self) -> bool:
        """Wait for the end of the connection, whatever still comes."""
        try:
            while await self.stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
        return True


class House:
    """An open door, and everybody who has come."""

    def __init__(self, num_wanted: int, silence_s: float) -> None:
        self.door = RankDoor(
            "127.0.0.1", 0, key=KEY, model_digest=DIGEST, num_wanted=num_wanted, silence_s=silence_s
        )
        self._sockets: list[trio.socket.SocketType] = []

    async def come(self) -> Guest:
        stream = await trio.open_tcp_stream("127.0.0.1", self.door.port)
        self._sockets.append(stream.socket)
        return Guest(stream)

    async def take(self, count: int) -> list[Visitor]:
        visitors = await self.door.take(count)
        self._sockets += [visitor.stream.socket for visitor in visitors]
        return visitors

    def clear(self) -> None:
        for sock in self._sockets:
            sock.close()


@asynccontextmanager
async def open_house(num_wanted: int = 2, silence_s: float = 10) -> AsyncIterator[House]:
    house = House(num_wanted, silence_s)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.door.run)
            with trio.fail_after(20):
                yield house
            nursery.cancel_scope.cancel()
    finally:
        house.clear()


async def test_a_rank_with_the_key_waits_until_it_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    async with open_house() as house:
        guest = await house.come()
        assert await guest.ask() == JoinAnswer()
        (visitor,) = await house.take(1)
        assert visitor.request == JoinRequest(__version__, DIGEST, 0, 1)
        await visitor.stream.send_all(b"what to load")
        assert await guest.read(12) == b"what to load"
        for option in (socket.TCP_NODELAY, socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE):
            assert visitor.stream.socket.getsockopt(socket.IPPROTO_TCP, option) > 0


async def test_nobody_else_gets_in_and_each_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with open_house(num_wanted=1) as house:
        stranger = await house.come()
        assert await stranger.prove(b"a key of somebody's") == NO_ANSWER
        assert await stranger.is_sent_away()
        other = await (await house.come()).ask(digest="of another")
        assert (other.is_final, other.refusal) == (True, "its model is another one than that of the front")
        old = await (await house.come()).ask(version="0.0.1")
        assert old.is_final and "it is trioserve 0.0.1" in old.refusal
        assert await (await house.come()).ask() == JoinAnswer()
        spare = await (await house.come()).ask()
        assert not spare.is_final and "1 wait already" in spare.refusal
    refusals = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(refusals) == 4
    assert refusals[0] == "a rank from 127.0.0.1 was refused: it does not have the key"


@settings(max_examples=30, deadline=None)
@given(has_key=st.booleans(), said=st.binary(max_size=300))
def test_garbage_is_refused_and_the_door_stays_open(has_key: bool, said: bytes) -> None:
    async def visit() -> None:
        async with open_house() as house:
            guest = await house.come()
            if has_key:
                await guest.prove()
            await guest.stream.send_all(said + b"\xff" * 100)
            with contextlib.suppress(trio.BrokenResourceError):
                await guest.stream.send_eof()
            assert await guest.is_sent_away()
            assert await (await house.come()).ask() == JoinAnswer()

    trio.run(visit)


async def test_who_is_slow_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "HANDSHAKE_S", 0.2)
    async with open_house() as house:
        silent, slow = await house.come(), await house.come()
        await slow.prove()
        started = trio.current_time()
        assert await silent.is_sent_away() and await slow.is_sent_away()
        assert trio.current_time() - started < 2


async def test_many_who_say_nothing_keep_nobody_out() -> None:
    async with open_house() as house:
        silent = [await house.come() for _ in range(20)]
        assert await (await house.come()).ask() == JoinAnswer()
        for first in silent[:4]:
            assert await first.is_sent_away()


async def test_who_left_while_he_waited_is_not_taken() -> None:
    async with open_house() as house:
        first = await house.come()
        assert await first.ask() == JoinAnswer()
        await first.stream.aclose()
        async with trio.open_nursery() as nursery:
            taken = []

            async def take() -> None:
                taken.extend(await house.take(2))

            await trio.sleep(0.05)
            nursery.start_soon(take)
            guests = [await house.come() for _ in range(2)]
            for guest in guests:
                assert await guest.ask() == JoinAnswer()
        for visitor, guest in itertools.product(taken, guests):
            if visitor.stream.socket.getpeername() == guest.stream.socket.getsockname():
                await visitor.stream.send_all(b"!")
        assert [await guest.read(1) for guest in guests] == [b"!", b"!"]


async def test_who_waits_is_sent_away_when_the_door_is_shut() -> None:
    async with open_house() as house:
        guest = Guest(await trio.open_tcp_stream("127.0.0.1", house.door.port))
        assert await guest.ask() == JoinAnswer()
    async with guest.stream:
        assert await guest.is_sent_away()


def test_an_address_that_is_taken_stops_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            SettingsError, match=f"127.0.0.1:{port} cannot be listened on: Address already in use"
        ):
            RankDoor("127.0.0.1", port, key=KEY, model_digest=DIGEST, num_wanted=1, silence_s=10)


PULLED = """
    import subprocess, time, trio
    from tests.executor.test_door import open_house
    from trioserve.errors import WorkerDied
    from trioserve.executor.joined import JoinedRank

    async def main():
        async with open_house(silence_s=3) as house:
            guest = await house.come()
            await guest.ask()
            rank = JoinedRank((await house.take(1))[0], 1)
            subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
            pulled_at = time.monotonic()
            try:
                with trio.fail_after(8):
                    await rank.receive()
            except WorkerDied as exc:
                print(f"{time.monotonic() - pulled_at:.1f} {exc}")

    trio.run(main)
"""


def test_a_pulled_cable_is_noticed_although_there_is_nothing_to_send() -> None:
    """In a network of its own, whose only device is shut down."""
    network = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("no unshare or ip")
    if subprocess.run(
        [*network, "ip", "link", "set", "lo", "up"], capture_output=True, check=False
    ).returncode:
        pytest.skip("no network of one's own can be made here")
    program = f'ip link set lo up && exec {sys.executable} -c "$0"'
    ran = subprocess.run(
        [*network, "sh", "-c", program, textwrap.dedent(PULLED)], capture_output=True, text=True, check=True
    )
    seconds, _, told = ran.stdout.strip().partition(" ")
    assert told == "rank 1 on 127.0.0.1 is gone"
    assert 0.5 < float(seconds) < 5
