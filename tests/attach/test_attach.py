"""Processes that attach to an engine, that are slow, that leave and that are left: sockets and clock are real."""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack

import pytest
import trio

from tests.attach.pairs import Desk, attached, attached_process, owning, raw_link, to_the_end, until
from tests.engine.test_engine import make_engine, make_executor, read_all, sequence, supervised
from trioserve.attach import attachment, host, link
from trioserve.attach.attachment import Attachment
from trioserve.attach.host import Host
from trioserve.attach.link import Link, LinkLost
from trioserve.attach.peer import HANDED_OVER, PeerOutbox
from trioserve.attach.remote import RemoteOwner
from trioserve.attach.seat import Seat, make_seats
from trioserve.attach.wire import Call, Close, Counted, Deltas, HttpCounts, Refused, Stop, open_message, total
from trioserve.core.delta import OutputDelta, Usage
from trioserve.core.sequence import FinishReason
from trioserve.engine.checkpoint import ModelFolder
from trioserve.engine.lifecycle import Lifecycle, ServerState
from trioserve.errors import EngineError, NotReady, PromptTooLong, QueueFull, WorkerDied
from trioserve.http.traffic import Traffic
from trioserve.store.database import StoredCompletion


@pytest.fixture
def seats() -> Iterator[list[Seat]]:
    made = make_seats(3)
    yield made
    made[0].listener.close()


async def test_an_attached_process_gets_what_the_owner_would() -> None:
    async with owning() as owner, attached(owner.seats[1]) as engine:
        assert engine.model == owner.engine.model and engine.max_model_len == 256
        with engine.stream([sequence(0, 1), sequence(10, stop=("n",), max_tokens=50)]) as mailbox:
            await mailbox.wait_admitted()
            deltas = await read_all(mailbox)
        assert (deltas[0].text, deltas[0].token_ids) == ("cdefg", (2, 3, 4, 5, 6))
        assert (deltas[1].text, deltas[1].finish_reason, deltas[1].stop_reason) == (
            "lm",
            FinishReason.STOP,
            "n",
        )
        assert (deltas[0].usage.num_prompt_tokens, deltas[0].usage.num_output_tokens) == (2, 5)
        await until(lambda: engine.statistics().num_output_tokens >= 8)
        assert engine.statistics().num_blocks == 64


async def test_what_needs_no_owner_is_told_at_once() -> None:
    async with owning() as owner, attached(owner.seats[1]) as engine:
        assert engine.check(200) == 56
        with pytest.raises(PromptTooLong, match="has 256 tokens; the model takes 256"):
            engine.check(256)
        engine.lifecycle.begin_closing()
        with pytest.raises(Exception, match="shutting down"):
            engine.check(1)


async def test_admission_is_one_count() -> None:
    async with (
        owning(step_s=0.05, max_num_seqs=1, max_num_batched_tokens=64, max_num_queued_reqs=2) as owner,
        attached(owner.seats[1]) as one,
        attached(owner.seats[2]) as two,
    ):
        with ExitStack() as stack:
            await stack.enter_context(one.stream([sequence(0, max_tokens=200)])).receive()
            for engine in (owner.engine, two):
                await stack.enter_context(engine.stream([sequence(0, max_tokens=200)])).wait_admitted()
            with pytest.raises(QueueFull, match="2 sequences are waiting, the limit is 2"):
                owner.engine.check(1)
            for engine in (one, two):
                refused = stack.enter_context(engine.stream([sequence(0)]))
                with pytest.raises(QueueFull, match="2 sequences are waiting, the limit is 2") as caught:
                    await refused.wait_admitted()
                assert caught.value.retry_after_s >= 1
                with pytest.raises(QueueFull):
                    await refused.receive()
        await until(lambda: owner.engine.statistics().num_streams == 0)


async def test_leaving_the_stream_frees_the_blocks_also_in_the_queue() -> None:
    async with owning(max_num_seqs=1, max_num_batched_tokens=64, step_s=0.01) as owner:
        async with attached(owner.seats[1]) as engine:
            with engine.stream([sequence(*range(60), max_tokens=190)]) as running:
                await running.receive()
                with engine.stream([sequence(1)]) as waiting:
                    await waiting.wait_admitted()
                    assert owner.engine.statistics().num_waiting == 1
                await until(lambda: owner.engine.statistics().num_waiting == 0)
                assert owner.engine.statistics().num_running == 1
            await until(lambda: owner.engine.statistics().num_streams == 0)
            assert owner.engine.statistics().num_free_blocks == 64
            await until(lambda: engine.statistics().num_running == 0)


async def test_a_process_that_is_gone_frees_its_blocks_and_no_one_elses() -> None:
    async with owning(step_s=0.01) as owner, attached(owner.seats[1]) as stays:
        with stays.stream([sequence(0, max_tokens=100)]) as mailbox:
            await mailbox.receive()
            async with raw_link(owner.seats[2]) as raw:
                await raw.send([open_message(1, [sequence(*range(100), max_tokens=150)])])
                await until(lambda: owner.engine.statistics().num_streams == 2)
            await until(lambda: owner.engine.statistics().num_streams == 1, within_s=1)
            await until(lambda: owner.host.num_attached == 1)
            assert len((await read_all(mailbox))[0].token_ids) > 10
        await until(lambda: owner.engine.statistics().num_free_blocks == 64)


async def test_a_process_that_does_not_read_is_cut_off_and_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "SILENCE_S", 0.3)
    async with owning(num_blocks=512) as owner, attached(owner.seats[1]) as reads:
        async with raw_link(owner.seats[2]) as unread:
            much = [sequence(k, max_tokens=250, logprobs=20) for k in range(30)]
            await unread.send([open_message(1, much)])
            with reads.stream([sequence(0)]) as mailbox:
                assert (await read_all(mailbox))[0].text == "bcdef"
            await until(lambda: owner.host.num_attached == 1)
        await until(lambda: owner.engine.statistics().num_free_blocks == 512)
        with reads.stream([sequence(0)]) as mailbox:
            assert (await read_all(mailbox))[0].text == "bcdef"


async def test_the_deltas_of_a_slow_process_merge() -> None:
    outbox = PeerOutbox()
    for k in range(100):
        outbox.put_delta(1, k % 2, OutputDelta("x", (k,), (), Usage(1, 0, k)))
    outbox.put_delta(2, 0, OutputDelta("y", (5,), (), Usage(1, 0, 1)))
    outbox.forget(2)
    (told,) = await outbox.take()
    assert isinstance(told, Deltas)
    assert [(stream_id, index, delta.text) for stream_id, index, delta in told.items] == [
        (1, 0, "x" * 50),
        (1, 1, "x" * 50),
    ]


async def test_what_is_said_of_prompts_has_frames_of_its_own() -> None:
    outbox = PeerOutbox()
    usage = Usage(1, 0, 1)
    for ticket in (1, 2, 3):
        outbox.put_delta(
            ticket, 0, OutputDelta("x", (1,), (), usage, prompt_logprobs=(None,) * (ticket == 2))
        )
    told = [message.items for message in await outbox.take() if isinstance(message, Deltas)]
    assert [[ticket for ticket, _, _ in items] for items in told] == [[2], [1, 3]]


async def test_only_those_who_know_the_key_attach() -> None:
    async with owning() as owner:
        async with raw_link(owner.seats[1], key=b"x" * 32) as stranger:
            with pytest.raises(LinkLost):
                await stranger.receive()
        async with await trio.open_unix_socket(owner.seats[0].listener.getsockname()) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            with pytest.raises(LinkLost):
                await Link[object](stream, object).receive()
        assert owner.host.num_attached == 0
        async with attached(owner.seats[1]):
            assert owner.host.num_attached == 1


async def test_nonsense_after_the_key_cuts_off_and_frees() -> None:
    good = open_message(1, [sequence(0, max_tokens=200)])
    for nonsense in (good, Stop(1, [1]), Stop(1, [-1])):
        async with owning(step_s=0.01) as owner, raw_link(owner.seats[1]) as raw:
            await raw.send([good])
            await until(lambda: owner.engine.statistics().num_streams == 1)
            await raw.send([nonsense])  # the same ticket once more; a sequence that is not there
            with pytest.raises(LinkLost):
                await to_the_end(raw)
            await until(lambda: owner.engine.statistics().num_streams == 0)


async def test_a_lost_owner_fails_what_ran_and_the_next_one_serves(seats: list[Seat]) -> None:
    async with trio.open_nursery() as nursery:
        dies = trio.CancelScope()
        is_up = trio.Event()

        async def first() -> None:
            with dies:
                async with owning(step_s=0.01, seats=seats):
                    is_up.set()
                    await trio.sleep_forever()

        nursery.start_soon(first)
        await is_up.wait()
        async with attached(seats[1]) as engine:
            with engine.stream([sequence(0, max_tokens=200)]) as mailbox:
                await mailbox.receive()
                dies.cancel()
                with pytest.raises(EngineError, match="ended while it worked on this request"):
                    await read_all(mailbox)
            assert engine.lifecycle.state is ServerState.RECOVERING
            with pytest.raises(NotReady, match="being restarted"):
                engine.check(1)
            with pytest.raises(NotReady), engine.stream([sequence(0)]):
                pass
            async with owning(seats=seats):
                await until(lambda: engine.lifecycle.is_ready)
                with engine.stream([sequence(0)]) as mailbox:
                    assert (await read_all(mailbox))[0].text == "bcdef"


async def test_an_answer_that_is_whole_outlives_its_owner(seats: list[Seat]) -> None:
    async with owning(seats=seats), attached(seats[1]) as engine:
        with engine.stream([sequence(0)]) as mailbox:
            await until(lambda: mailbox._unfinished == 0)
            engine._attachment._lose()
            assert (await read_all(mailbox))[0].text == "bcdef"


async def test_an_owner_that_says_nothing_is_a_lost_one(
    seats: list[Seat], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "SILENCE_S", 0.1)
    taken: list[trio.SocketStream] = []

    async def take(stream: trio.SocketStream) -> None:
        taken.append(stream)
        await trio.sleep_forever()

    async def load(model: ModelFolder) -> None:
        raise AssertionError("no model was told of")

    async with trio.open_nursery() as nursery:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(seats[0].listener.dup()))
        nursery.start_soon(trio.serve_listeners, take, [listener])
        nursery.start_soon(Attachment(Lifecycle()).run, seats[1], load, Traffic())
        await until(lambda: len(taken) >= 2)
        nursery.cancel_scope.cancel()


async def test_the_works_are_mirrored(seats: list[Seat]) -> None:
    owner, dying = make_engine(), make_executor(step_s=0.01)
    host = Host(seats[0], owner.lifecycle, Desk())
    host.serve(owner)
    async with supervised(owner, dying, make_executor(), max_restarts=1), trio.open_nursery() as nursery:
        nursery.start_soon(host.run)
        async with attached(seats[1]) as engine:
            with engine.stream([sequence(0, max_tokens=200)]) as mailbox:
                await mailbox.receive()
                dying.failure = WorkerDied("rank 0 was killed by SIGKILL")
                lost = (await read_all(mailbox))[0]
            assert lost.finish_reason is FinishReason.ERROR
            await until(lambda: engine.lifecycle.is_ready and engine.statistics().num_restarts == 1)
            owner.lifecycle.fail("no memory left", exit_code=70)
            await until(lambda: not engine.lifecycle.is_live)
            assert (engine.lifecycle.failure, engine.lifecycle.exit_code) == ("no memory left", 70)
            await until(lambda: owner.lifecycle.state is ServerState.FAILED)
        async with raw_link(seats[2]) as raw:
            await raw.send([open_message(9, [sequence(0)])])
            refused: list[object] = []
            while not refused:
                refused = [message for message in await raw.receive() if isinstance(message, Refused)]
            assert refused == [Refused(9, "NotReady", "the engine has failed", 5.0, None)]
        nursery.cancel_scope.cancel()


async def test_abort_ends_the_requests_of_this_process_only() -> None:
    async with owning(step_s=0.01) as owner, attached(owner.seats[1]) as one, attached(owner.seats[2]) as two:
        with (
            one.stream([sequence(0, max_tokens=200)]) as ends,
            two.stream([sequence(0, max_tokens=30)]) as goes_on,
        ):
            await ends.receive()
            assert one.abort("the server is shutting down") == 1
            with pytest.raises(EngineError, match="shutting down"):
                await ends.receive()
            assert len((await read_all(goes_on))[0].token_ids) == 30
        await until(lambda: owner.engine.statistics().num_streams == 0)


async def test_stopped_sequences_end_as_if_their_answers_had() -> None:
    async with owning(step_s=0.005) as owner, attached(owner.seats[1]) as engine:
        sequences = [sequence(0, max_tokens=200), sequence(50, max_tokens=30)]
        with engine.stream(sequences) as mailbox:
            await mailbox.receive()
            engine.stop(sequences[:1])
            answers = await read_all(mailbox)
            stopped, whole = answers[0], answers[1]
        assert stopped.finish_reason is FinishReason.STOP and stopped.usage.num_output_tokens < 200
        assert (whole.finish_reason, whole.usage.num_output_tokens) == (FinishReason.LENGTH, 30)
        engine.stop(sequences)  # of no effect once they are gone
        await until(lambda: owner.engine.statistics().num_free_blocks == 64)
        assert owner.engine.meter.num_finished[FinishReason.STOP] == 1


async def test_the_logprobs_of_a_prompt_cross() -> None:
    asked = {"max_tokens": 2, "prompt_logprobs": 1}
    async with owning() as owner, attached(owner.seats[1]) as engine:
        with owner.engine.stream([sequence(0, 1, 2, **asked)]) as mailbox:
            expected = (await read_all(mailbox))[0].prompt_logprobs
        with engine.stream([sequence(0, 1, 2, **asked), sequence(5, 6, **asked)]) as mailbox:
            answers = await read_all(mailbox)
            first, second = answers[0], answers[1]
    assert first.prompt_logprobs == expected and len(expected) == 3 and expected[1] is not None
    assert len(second.prompt_logprobs) == 2


async def test_permits_are_one_count_and_come_back_however_they_are_lost() -> None:
    async with owning() as owner, attached_process(owner.seats[1]) as one:
        async with attached_process(owner.seats[2]) as two:
            give_back, _ = await one.owner.permit("a")
            await two.owner.permit("a")
            with pytest.raises(QueueFull, match="2 requests are served, the limit is 2"):
                owner.desk.permits.take("a")
            for process in (one, two):
                with pytest.raises(QueueFull, match="2 requests are served, the limit is 2"):
                    await process.owner.permit("a")
            give_back()
            give_back()  # of no effect
            await until(lambda: owner.desk.permits.num_taken == 1)
            await one.owner.permit("a")
        await until(lambda: owner.desk.permits.num_taken == 1)  # the other's went with it
    assert owner.desk.permits.num_taken == 0


async def test_who_waits_for_a_permit_and_leaves_has_none() -> None:
    async with owning() as owner, attached_process(owner.seats[1]) as process:
        with trio.move_on_after(0) as scope:
            await process.owner.permit("a")
        assert scope.cancelled_caught
        await until(lambda: owner.desk.permits.num_taken == 0)
        await process.owner.permit("a")
        assert owner.desk.permits.num_taken == 1


async def test_an_answer_to_be_kept_is_there_when_the_wait_is_over(caplog: pytest.LogCaptureFixture) -> None:
    record = StoredCompletion("chatcmpl-1", "me", "m", {"a": "b"}, b"{}", (b"1", b"2"))
    async with owning() as owner, attached_process(owner.seats[1]) as process:
        await process.owner.keep(record)
        assert owner.desk.kept == [record]
        process.attachment._lose()
        await process.owner.keep(record)  # lost, and no fault of the answer
    assert "an answer is not stored: the engine is being restarted" in caplog.text


async def rest_of(parts: AsyncGenerator[bytes, None]) -> bytes:
    return b"".join([part async for part in parts])


def call_of(path: str, body: bytes = b"") -> Callable[[int], Call]:
    return lambda ticket: Call(
        ticket, "POST", "http", path, path.encode(), b"q=1", "", [(b"x-a", b"\xe9")], body
    )


async def test_a_call_is_answered_by_the_owners_app() -> None:
    async with owning() as owner, attached_process(owner.seats[1]) as process:
        with process.owner.call(call_of("/echo", b"hi")) as call:
            head = await call.head()
            assert (head.status, head.headers) == (201, [(b"a", b"b")])
            assert [part async for part in call.parts()] == [b"hi", b"!"]
        (scope,) = owner.desk.calls
        assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/echo", b"q=1")
        assert scope["headers"] == [(b"x-a", b"\xe9")] and scope[HANDED_OVER]


async def test_a_call_makes_its_next_part_when_the_last_is_taken() -> None:
    async with owning() as owner, attached_process(owner.seats[1]) as process:
        with process.owner.call(call_of("/flood")) as call:
            await call.head()
            parts = call.parts()
            for _ in range(3):
                assert await anext(parts) == b"x"
            await trio.sleep(0.1)
            assert owner.desk.num_parts == 2
            await parts.aclose()
        await until(lambda: owner.desk.ended == ["/flood"])


@pytest.mark.parametrize("path", ["/silent", "/flood"])
async def test_a_call_whose_process_leaves_ends(path: str) -> None:
    async with owning() as owner:
        async with raw_link(owner.seats[1]) as raw:
            await raw.send([call_of(path)(1)])
            await until(lambda: len(owner.desk.calls) == 1)
        await until(lambda: owner.desk.ended == [path])


async def test_a_call_whose_owner_leaves_or_fails_is_told() -> None:
    async with owning() as owner, attached_process(owner.seats[1]) as process:
        with process.owner.call(call_of("/fault")) as call:
            with pytest.raises(EngineError, match="failed to answer this request"):
                await call.head()
        with process.owner.call(call_of("/flood")) as call:
            await call.head()
            parts = call.parts()
            assert await anext(parts) == b"x"
            assert process.engine.abort("the server is shutting down") == 1
            with pytest.raises(EngineError, match="shutting down"):
                await rest_of(parts)
        with process.owner.call(call_of("/silent")) as call:
            process.attachment._lose()
            with pytest.raises(EngineError, match="the engine's process ended"):
                await call.head()


async def test_http_requests_are_counted_together_whoever_had_them() -> None:
    async with owning() as owner, attached_process(owner.seats[1]) as stays:
        stays.traffic.num_requests["GET", "/a", 200] += 2
        stays.traffic.duration_s["/a"].observe(0.5, 2)
        stays.traffic.num_running = 1
        async with attached_process(owner.seats[2]) as leaves:
            leaves.traffic.num_requests["GET", "/a", 200] += 3
            leaves.traffic.num_running = 4
            of_all = total(await owner.host.counts())
            assert (of_all.num_running, of_all.requests) == (5, [("GET", "/a", 200, 5)])
        await until(lambda: owner.host.num_attached == 1)
        stays.traffic.num_requests["GET", "/a", 404] += 1
        of_all = total(await owner.host.counts())
        assert of_all.num_running == 1
        assert sorted(of_all.requests) == [("GET", "/a", 200, 5), ("GET", "/a", 404, 1)]
        ((route, buckets, seconds),) = of_all.durations
        assert (route, sum(buckets), seconds) == ("/a", 2, 1.0)


async def test_a_new_owner_counts_from_zero_as_its_engine_does(seats: list[Seat]) -> None:
    async with owning(seats=seats) as owner, attached_process(seats[1]) as process:
        process.traffic.num_requests["GET", "/a", 200] += 2
        assert total(await owner.host.counts()).requests == [("GET", "/a", 200, 2)]
        process.attachment._lose()
        assert process.traffic.report() == HttpCounts()


async def test_a_process_that_does_not_tell_its_counts_holds_no_scrape_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "_COUNT_S", 0.2)
    async with owning() as owner, raw_link(owner.seats[1]) as raw:
        await raw.send([Counted(0, HttpCounts(1, [("GET", "/a", 200, 7)], []))])
        await until(lambda: any(peer.counts.num_running for peer in owner.host._peers))
        with trio.fail_after(1):
            assert total(await owner.host.counts()).requests == [("GET", "/a", 200, 7)]
        await raw.send([Close(5)])  # of nothing: no harm
        await raw.send([Counted(9, HttpCounts(0, [("GET", "/a", 200, 8)], []))])
        await until(lambda: any(peer._counted == 9 for peer in owner.host._peers))


async def test_a_process_is_ready_when_it_has_loaded_and_may_ask_before(seats: list[Seat]) -> None:
    may_load = trio.Event()
    process = Attachment(Lifecycle())

    async def load(model: ModelFolder) -> None:
        await may_load.wait()

    async with owning(seats=seats) as owner, trio.open_nursery() as nursery:
        with pytest.raises(NotReady, match="still loading"):
            process.check()
        nursery.start_soon(process.run, seats[1], load, Traffic())
        await until(lambda: owner.host.num_attached == 1)
        with RemoteOwner(process).call(call_of("/echo", b"hi")) as call:
            assert (await call.head()).status == 201
        assert process.lifecycle.state is ServerState.STARTING
        may_load.set()
        await until(lambda: process.lifecycle.is_ready)
        nursery.cancel_scope.cancel()
