"""The engine over a rank without a model, in virtual time."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.fakes import FakeExecutor, FakeRank, counting_up, works_of
from trioserve._speedups.detokenizer import Vocabulary
from trioserve.core.delta import OutputDelta, merge
from trioserve.core.sampling import SamplingParams
from trioserve.core.sequence import FinishReason, Sequence
from trioserve.engine.checkpoint import ModelFolder
from trioserve.engine.engine import Engine
from trioserve.engine.lifecycle import Lifecycle, ServerState
from trioserve.engine.mailbox import Mailbox
from trioserve.engine.supervisor import supervise
from trioserve.errors import ModelError, NotReady, PromptTooLong, QueueFull, WorkerDied
from trioserve.settings import Settings

VOCABULARY = Vocabulary(
    [chr(97 + i % 26).encode() for i in range(2000)],
    [False] * 2000,
    byte_tokens=None,
    strip_leading_space=False,
)
"""Token 0 is "a", token 1 is "b" and so on, round and round."""


def make_executor(*, num_blocks: int = 64, num_host_blocks: int = 0, step_s: float = 0.01) -> FakeExecutor:
    rank = FakeRank(16, counting_up)
    return FakeExecutor(rank, num_blocks=num_blocks, num_host_blocks=num_host_blocks, step_s=step_s)


def make_engine(**settings: object) -> Engine:
    model = ModelFolder(
        name="counter",
        names=("counter",),
        path=Path("unused"),
        tokenizer_path=Path("unused"),
        max_model_len=256,
        vocab_size=2000,
        eos_token_ids=(),
        generation_config={},
        created=0,
    )
    return Engine(Settings(**settings), model, VOCABULARY, Lifecycle())  # type: ignore[arg-type]  # checked there


@asynccontextmanager
async def supervised(engine: Engine, *executors: FakeExecutor, max_restarts: int = 5) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await supervise(engine, works_of(*executors), engine.lifecycle, max_restarts=max_restarts)

        nursery.start_soon(run)
        while engine.lifecycle.state is ServerState.STARTING:
            await engine.lifecycle.wait_changed()
        yield
        nursery.cancel_scope.cancel()


def sequence(*prompt: int, max_tokens: int = 5, **params: object) -> Sequence:
    return Sequence(prompt, SamplingParams(max_tokens=max_tokens, **params))  # type: ignore[arg-type]  # any field


async def read_all(mailbox: Mailbox) -> dict[int, OutputDelta]:
    """Everything that a mailbox gets, one merged delta a choice."""
    deltas: dict[int, list[OutputDelta]] = {}
    while not mailbox.is_done:
        for index, delta in await mailbox.receive():
            deltas.setdefault(index, []).append(delta)
    return {index: merge(list_) for index, list_ in deltas.items()}


async def test_a_stream_gets_the_text_of_its_tokens(autojump_clock: MockClock) -> None:
    engine = make_engine()
    async with supervised(engine, make_executor()):
        with engine.stream([sequence(0, 1)]) as mailbox:
            delta = (await read_all(mailbox))[0]
    assert (delta.text, delta.token_ids, delta.finish_reason) == (
        "cdefg",
        (2, 3, 4, 5, 6),
        FinishReason.LENGTH,
    )
    assert (delta.usage.num_prompt_tokens, delta.usage.num_output_tokens) == (2, 5)


async def test_every_choice_has_its_own_index(autojump_clock: MockClock) -> None:
    engine = make_engine()
    async with supervised(engine, make_executor()):
        with engine.stream([sequence(0), sequence(10)]) as mailbox:
            deltas = await read_all(mailbox)
    assert {index: delta.text for index, delta in deltas.items()} == {0: "bcdef", 1: "lmnop"}


async def test_a_stop_string_ends_the_text_and_the_sequence(autojump_clock: MockClock) -> None:
    engine = make_engine()
    async with supervised(engine, make_executor()):
        with engine.stream([sequence(0, max_tokens=200, stop=("fg",))]) as mailbox:
            delta = (await read_all(mailbox))[0]
        assert engine.statistics().num_running == 0
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("bcde", FinishReason.STOP, "fg")


async def test_a_stop_string_does_not_count_before_min_tokens(autojump_clock: MockClock) -> None:
    engine = make_engine()
    async with supervised(engine, make_executor()):
        with engine.stream([sequence(0, max_tokens=80, stop=("fg",), min_tokens=10)]) as mailbox:
            delta = (await read_all(mailbox))[0]
    assert delta.text == "bcdefghijklmnopqrstuvwxyzabcde"


@pytest.mark.parametrize("include_stop", [False, True])
async def test_a_stop_token_shows_only_when_asked(include_stop: bool, autojump_clock: MockClock) -> None:
    engine = make_engine()
    async with supervised(engine, make_executor()):
        seq = sequence(0, max_tokens=80, stop_token_ids=(4,), include_stop=include_stop)
        with engine.stream([seq]) as mailbox:
            delta = (await read_all(mailbox))[0]
    assert (delta.text, delta.stop_reason) == ("bcde" if include_stop else "bcd", 4)


async def test_logprobs_come_with_their_tokens(autojump_clock: MockClock) -> None:
    engine = make_engine()
    async with supervised(engine, make_executor()):
        with engine.stream([sequence(0, max_tokens=2, logprobs=2)]) as mailbox:
            delta = (await read_all(mailbox))[0]
    assert [logprob.piece for logprob in delta.logprobs] == [b"b", b"c"]
    assert [top.logprob for top in delta.logprobs[0].top] == [-0.5, -1.5]


async def test_a_sequence_that_is_stopped_ends_like_any_other(autojump_clock: MockClock) -> None:
    engine = make_engine(max_num_seqs=1, max_num_batched_tokens=64)
    async with supervised(engine, make_executor()):
        running, waiting = sequence(0, max_tokens=200), sequence(1, max_tokens=200)
        with engine.stream([running, waiting]) as mailbox:
            first = (await mailbox.receive())[0][1]
            engine.stop([running, waiting, sequence(5)])
            counts = engine.statistics()
            assert (counts.num_streams, counts.num_running, counts.num_waiting) == (0, 0, 0)
            assert counts.num_free_blocks == counts.num_blocks
            deltas = await read_all(mailbox)
        engine.stop([running, waiting])
    assert first.text == "b" and {delta.finish_reason for delta in deltas.values()} == {FinishReason.STOP}
    assert [deltas[i].usage.num_output_tokens for i in (0, 1)] == [1, 0]


async def test_leaving_the_stream_frees_the_blocks(autojump_clock: MockClock) -> None:
    engine = make_engine()
    async with supervised(engine, make_executor(num_blocks=16)):
        with engine.stream([sequence(*range(100), max_tokens=100)]) as mailbox:
            await mailbox.receive()
            assert engine.statistics().num_free_blocks < 16
        statistics = engine.statistics()
        assert (statistics.num_free_blocks, statistics.num_streams, statistics.num_running) == (16, 0, 0)


async def test_a_cancelled_reader_leaves_nothing_behind_also_in_the_queue(autojump_clock: MockClock) -> None:
    engine = make_engine(max_num_seqs=1, max_num_batched_tokens=64)
    async with supervised(engine, make_executor()):
        with engine.stream([sequence(0, max_tokens=250)]), trio.move_on_after(0.05):
            with engine.stream([sequence(1)]) as waiting:
                await waiting.receive()
        assert engine.statistics().num_waiting == 0


async def test_a_slow_reader_gets_many_tokens_as_one_delta(autojump_clock: MockClock) -> None:
    engine = make_engine()
    async with supervised(engine, make_executor()):
        with engine.stream([sequence(0, max_tokens=20)]) as mailbox:
            await trio.sleep(10)
            received = await mailbox.receive()
    assert len(received) == 1 and len(received[0][1].token_ids) == 20


async def test_check_names_the_numbers(autojump_clock: MockClock) -> None:
    engine = make_engine(max_num_seqs=1, max_num_queued_reqs=1)
    with pytest.raises(NotReady, match="still loading"):
        engine.check(1)
    async with supervised(engine, make_executor()):
        assert engine.check(200) == 56
        with pytest.raises(PromptTooLong, match="has 256 tokens; the model takes 256"):
            engine.check(256)
        with engine.stream([sequence(0, max_tokens=250)]), engine.stream([sequence(1)]):
            await trio.sleep(0.1)
            with pytest.raises(QueueFull, match="the limit is 1") as caught:
                engine.check(1)
            assert caught.value.retry_after_s >= 1


async def test_a_rank_that_dies_fails_what_ran_and_the_queue_lives_on(autojump_clock: MockClock) -> None:
    engine = make_engine(max_num_seqs=1, max_num_batched_tokens=64)
    dying = make_executor()
    async with supervised(engine, dying, make_executor()):
        with engine.stream([sequence(0, max_tokens=250)]) as running, engine.stream([sequence(1)]) as waiting:
            await running.receive()
            dying.failure = WorkerDied("rank 0 was killed by SIGKILL")
            lost = (await read_all(running))[0]
            assert (lost.finish_reason, "ended" in (lost.error or "")) == (FinishReason.ERROR, True)
            assert "SIGKILL" not in (lost.error or "")
            assert (await read_all(waiting))[0].text == "cdefg"
        assert engine.lifecycle.state is ServerState.READY
        assert engine.statistics().num_restarts == 1


async def test_who_waited_for_lost_ranks_is_served_before_who_comes_after(autojump_clock: MockClock) -> None:
    engine = make_engine(max_num_seqs=1, max_num_batched_tokens=64)
    dying, order = make_executor(), list[str]()
    names = ["first", "running", *(f"waiting {number}" for number in range(6))]

    async def ask(name: str, max_tokens: int) -> None:
        with engine.stream([sequence(0, max_tokens=max_tokens)]) as mailbox:
            await read_all(mailbox)
            order.append(name)

    async with supervised(engine, dying, make_executor()), trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(ask, name, 250 if name == "running" else 20)
            await trio.sleep(0.001)
        while "first" not in order:  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.01)
        dying.failure = WorkerDied("rank 0 was killed by SIGKILL")
        while engine.statistics().num_restarts == 0 or engine.lifecycle.state is not ServerState.READY:
            await engine.lifecycle.wait_changed()
        nursery.start_soon(ask, "newcomer", 5)
    assert order == [*names, "newcomer"]


async def test_a_step_that_does_not_come_back_is_noticed_within_a_second(autojump_clock: MockClock) -> None:
    engine = make_engine(step_timeout_s=30, step_stacks_s=10)
    stalling = make_executor(step_s=1e6)
    async with supervised(engine, stalling, make_executor()):
        started_at = trio.current_time()
        with engine.stream([sequence(0)]) as mailbox:
            delta = (await read_all(mailbox))[0]
        assert delta.finish_reason is FinishReason.ERROR
        assert 30 <= trio.current_time() - started_at <= 31
        assert stalling.num_stacks == 1


async def test_works_that_fail_again_and_again_are_given_up(autojump_clock: MockClock) -> None:
    engine = make_engine()
    executors = [make_executor() for _ in range(3)]
    for executor in executors:
        executor.failure = WorkerDied("rank 0 ended with exit code 1")
    async with supervised(engine, *executors, max_restarts=2):
        for _ in range(3):
            while not engine.lifecycle.is_ready:
                await engine.lifecycle.wait_changed()
            with engine.stream([sequence(0)]) as mailbox:
                assert (await read_all(mailbox))[0].finish_reason is FinishReason.ERROR
        await engine.lifecycle.wait_failed()
        assert (engine.lifecycle.exit_code, engine.lifecycle.is_live) == (70, False)


async def test_a_model_that_cannot_be_served_ends_the_server_with_78(autojump_clock: MockClock) -> None:
    engine = make_engine()

    @asynccontextmanager
    async def start() -> AsyncIterator[FakeExecutor]:
        raise ModelError("the folder holds no weights")
        yield

    await supervise(engine, start, engine.lifecycle, max_restarts=5)
    assert (engine.lifecycle.exit_code, engine.lifecycle.failure) == (78, "the folder holds no weights")


async def test_a_model_that_was_served_before_is_tried_again(autojump_clock: MockClock) -> None:
    engine = make_engine()
    dying, working = make_executor(), make_executor()
    starts = 0

    @asynccontextmanager
    async def start() -> AsyncIterator[FakeExecutor]:
        nonlocal starts
        starts += 1
        if starts == 2:
            raise ModelError("the KV cache cannot be allocated")
        yield dying if starts == 1 else working

    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await supervise(engine, start, engine.lifecycle, max_restarts=5)

        dying.failure = WorkerDied("rank 0 was killed by SIGKILL")
        nursery.start_soon(run)
        await engine.lifecycle.wait_changed()
        with engine.stream([sequence(0)]) as mailbox:
            await read_all(mailbox)
        while starts < 3 or not engine.lifecycle.is_ready:
            await engine.lifecycle.wait_changed()
        with engine.stream([sequence(0)]) as mailbox:
            assert (await read_all(mailbox))[0].text == "bcdef"
        nursery.cancel_scope.cancel()


async def test_abort_ends_everyone_with_the_reason(autojump_clock: MockClock) -> None:
    engine = make_engine(max_num_seqs=1, max_num_batched_tokens=64)
    async with supervised(engine, make_executor()):
        with engine.stream([sequence(0, max_tokens=250)]) as one, engine.stream([sequence(0)]) as two:
            await one.receive()
            assert engine.abort("the server is shutting down") == 2
            for mailbox in (one, two):
                assert (await read_all(mailbox))[0].error == "the server is shutting down"
        assert engine.statistics().num_free_blocks == 64


async def test_steps_overlap(autojump_clock: MockClock) -> None:
    """While a step runs, the next one already lies with the rank."""
    engine = make_engine()
    executor = make_executor(step_s=1.0)
    seen: list[int] = []
    carry_out: Callable[..., object] = executor.rank.carry_out

    def watch(plan: object) -> object:
        seen.append(len(executor._plans))
        return carry_out(plan)

    executor.rank.carry_out = watch  # type: ignore[method-assign, assignment]
    async with supervised(engine, executor):
        with engine.stream([sequence(0, max_tokens=6)]) as mailbox:
            await read_all(mailbox)
    assert seen == [1, 1, 1, 1, 1, 0]


def told(delta: OutputDelta) -> list[float | None]:
    """The log probabilities of a prompt, rounded as the rank meant them."""
    return [None if score is None else round(score.logprob, 3) for score in delta.prompt_logprobs]


def meant(prompt: list[int]) -> list[float | None]:
    return [None, *(-token_id / 10 for token_id in prompt[1:])]


async def test_the_scores_of_a_prompt_come_with_its_first_token(autojump_clock: MockClock) -> None:
    engine = make_engine(max_num_seqs=4, max_num_batched_tokens=16)
    prompt = list(range(50))
    async with supervised(engine, make_executor()):
        for _ in range(2):  # the second finds all of it in the cache, and scores it all the same
            with engine.stream([sequence(*prompt, prompt_logprobs=2), sequence(*prompt)]) as mailbox:
                deltas = await read_all(mailbox)
            assert told(deltas[0]) == meant(prompt)
            assert deltas[0].usage.num_cached_tokens == 0
            (top,) = {
                tuple((t.token_id - p.token_id, t.logprob) for t in p.top)
                for p in deltas[0].prompt_logprobs
                if p
            }
            assert top == ((1, -1.0), (2, -2.0))
            assert deltas[0].text == deltas[1].text
            assert told(deltas[1]) == []


async def test_scores_outlive_preemptions(autojump_clock: MockClock) -> None:
    engine = make_engine(max_num_seqs=6, max_num_batched_tokens=16)
    prompts = [list(range(i, i + 40 + i)) for i in range(6)]
    async with supervised(engine, make_executor(num_blocks=20)):
        asked = [sequence(*prompt, max_tokens=60, prompt_logprobs=0) for prompt in prompts]
        with engine.stream(asked) as mailbox:
            deltas = await read_all(mailbox)
        assert engine.statistics().num_preemptions > 0
        assert [told(deltas[i]) for i in range(6)] == [meant(prompt) for prompt in prompts]


async def test_who_waited_while_the_works_died_is_scored_by_the_next(autojump_clock: MockClock) -> None:
    engine = make_engine(max_num_seqs=1, max_num_batched_tokens=16)
    dying = make_executor()
    prompt = list(range(40))
    async with supervised(engine, dying, make_executor()):
        with (
            engine.stream([sequence(0, max_tokens=250)]) as running,
            engine.stream([sequence(*prompt, prompt_logprobs=0)]) as waiting,
        ):
            await running.receive()
            dying.failure = WorkerDied("rank 0 was killed by SIGKILL")
            assert told((await read_all(waiting))[0]) == meant(prompt)


async def test_leaving_while_a_prompt_is_scored_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    engine = make_engine(max_num_seqs=4, max_num_batched_tokens=16)
    async with supervised(engine, make_executor()):
        with engine.stream([sequence(*range(200), prompt_logprobs=5)]):
            await trio.sleep(0.035)
        await trio.sleep(1)
        statistics = engine.statistics()
        assert (statistics.num_streams, statistics.num_running) == (0, 0)
        assert statistics.num_free_blocks == statistics.num_blocks
