"""What waits for a request's task, or is taken before it wakes."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trioserve.core.delta import OutputDelta, Usage
from trioserve.core.sequence import FinishReason
from trioserve.engine.mailbox import Deltas, Mailbox


def delta(text: str, finish_reason: FinishReason | None = None) -> OutputDelta:
    return OutputDelta(text, (), (), Usage(1, 0, 1), finish_reason=finish_reason)


class Taker:
    """Takes what comes while it is willing, and notes it; gathers what wakes the reader."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self.is_willing = True
        self.taken: list[str] = []
        self.received: list[str] = []

    def take(self, deltas: Deltas) -> bool:
        if self.is_willing:
            self.taken += [each.text for _, each in deltas]
        return self.is_willing

    async def run(self) -> None:
        while not self.mailbox.is_done:
            self.received += [each.text for _, each in await self.mailbox.receive(self.take)]

    def put(self, *texts: str, finish_reason: FinishReason | None = None) -> None:
        for text in texts:
            self.mailbox.put_nowait(0, delta(text, finish_reason))
        self.mailbox.hand_over()


async def test_what_is_taken_wakes_nobody_and_what_comes_in_one_moment_is_one_delta() -> None:
    taker = Taker(Mailbox(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taker.run)
        await wait_all_tasks_blocked()
        taker.put("a", "b")
        taker.put("c")
        assert (taker.taken, taker.received) == (["ab", "c"], [])
        taker.is_willing = False
        taker.put("d")
        taker.put("e")
        await wait_all_tasks_blocked()
        taker.is_willing = True
        taker.put("f")
        taker.is_willing = False
        taker.put("g", finish_reason=FinishReason.STOP)
    assert (taker.taken, taker.received) == (["ab", "c", "f"], ["de", "g"])


async def test_nothing_is_taken_past_a_reader_that_is_busy() -> None:
    taker = Taker(Mailbox(1))
    taker.put("a")
    taker.put("b", finish_reason=FinishReason.STOP)
    await taker.run()
    assert (taker.taken, taker.received) == ([], ["ab"])


async def test_what_goes_wrong_in_taking_is_the_readers_affair_and_not_the_engines() -> None:
    mailbox = Mailbox(1)

    def fail(deltas: Deltas) -> bool:
        raise KeyError(deltas[0][1].text)

    async def read() -> None:
        with pytest.raises(KeyError, match="a"):
            await mailbox.receive(fail)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        mailbox.put_nowait(0, delta("a"))
        mailbox.hand_over()
        mailbox.put_nowait(0, delta("b"))
        mailbox.hand_over()
