"""Sequences with grammars wait until the ranks have them; the gate by itself, and the engine in virtual time."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.engine.test_engine import make_engine, make_executor, read_all, sequence, supervised
from trioserve.core.sampling import Grammar, SamplingParams, ThinkingBudget
from trioserve.core.sequence import FinishReason, Sequence
from trioserve.core.step import GrammarReady, GrammarRequest
from trioserve.engine.grammars import GrammarGate
from trioserve.engine.works import worker_config
from trioserve.errors import QueueFull, WorkerDied
from trioserve.settings import Settings


def grammar(name: str) -> Grammar:
    return Grammar("any", name, name.encode())


def make(name: str) -> Sequence:
    return Sequence([0], SamplingParams(max_tokens=1, grammar=grammar(name)))


def told(request: GrammarRequest | None) -> tuple[str, list[bytes]] | None:
    return None if request is None else (request.grammar.text, request.forgotten)


# --- the gate ---


def test_a_sequence_without_a_grammar_passes() -> None:
    gate, seq = GrammarGate(1), Sequence([0], SamplingParams(max_tokens=1))
    assert gate.enter(seq)
    gate.leave(seq)
    assert gate.next_request(0.0) is None


def test_a_grammar_is_requested_once_and_lets_all_pass_who_have_it_in_their_order() -> None:
    gate = GrammarGate(4)
    one, other, late = make("a"), make("a"), make("a")
    assert not gate.enter(one)
    assert told(gate.next_request(0.0)) == ("a", [])
    assert not gate.enter(other)
    assert gate.next_request(0.0) is None
    assert gate.answered(GrammarReady(b"a")) == [one, other]
    assert gate.enter(late)
    assert gate.next_request(0.0) is None


def test_a_grammar_that_nobody_wants_any_more_is_not_requested() -> None:
    gate, seq = GrammarGate(4), make("a")
    gate.enter(seq)
    gate.leave(seq)
    gate.leave(seq)
    assert gate.next_request(0.0) is None
    assert not gate.enter(make("a"))
    assert told(gate.next_request(0.0)) == ("a", [])


def test_who_left_is_not_let_pass_and_the_grammar_is_kept() -> None:
    gate, seq = GrammarGate(4), make("a")
    gate.enter(seq)
    gate.next_request(0.0)
    gate.leave(seq)
    assert gate.answered(GrammarReady(b"a")) == []
    assert gate.enter(make("a"))


def test_an_error_is_not_kept() -> None:
    gate, seq = GrammarGate(4), make("a")
    gate.enter(seq)
    gate.next_request(0.0)
    assert gate.answered(GrammarReady(b"a", "too large")) == [seq]
    assert not gate.enter(make("a"))
    assert told(gate.next_request(0.0)) == ("a", [])


def test_only_two_are_on_their_way_at_a_time() -> None:
    gate = GrammarGate(9)
    for name in "abcd":
        gate.enter(make(name))
    assert [told(gate.next_request(0.0)) for _ in range(3)] == [("a", []), ("b", []), None]
    gate.answered(GrammarReady(b"a"))
    assert told(gate.next_request(0.0)) == ("c", [])


def ready(gate: GrammarGate, seq: Sequence) -> list[bytes]:
    """Let a sequence with a new grammar pass; returns what is forgotten for it."""
    assert not gate.enter(seq)
    request = gate.next_request(0.0)
    assert request is not None and seq.params.grammar is not None
    assert gate.answered(GrammarReady(seq.params.grammar.key)) == [seq]
    return request.forgotten


def test_the_one_that_was_unused_for_longest_makes_room() -> None:
    gate = GrammarGate(3)
    seqs = [make(name) for name in "abc"]
    assert [ready(gate, seq) for seq in seqs] == [[], [], []]
    gate.leave(seqs[1])
    gate.leave(seqs[0])
    gate.leave(seqs[2])
    again = make("b")
    assert gate.enter(again)
    assert ready(gate, make("d")) == [b"a"]
    gate.leave(again)
    assert ready(gate, make("e")) == [b"c"]
    assert ready(gate, make("f")) == [b"b"]


def test_while_all_are_needed_new_ones_wait() -> None:
    gate = GrammarGate(2)
    one, two = make("a"), make("b")
    ready(gate, one)
    ready(gate, two)
    gate.enter(make("c"))
    assert gate.next_request(0.0) is None
    gate.leave(two)
    assert told(gate.next_request(0.0)) == ("c", [b"b"])


def test_what_takes_too_long_is_given_up_and_may_be_asked_for_again() -> None:
    gate = GrammarGate(2)
    one, other = make("a"), make("b")
    gate.enter(one)
    gate.next_request(10.0)
    gate.enter(other)
    gate.next_request(11.0)
    assert gate.overdue(10.0) == []
    assert gate.overdue(10.5) == [one]
    again = make("a")
    assert not gate.enter(again)
    assert gate.answered(GrammarReady(b"a")) == [], "the answer to the first request does not count"
    assert told(gate.next_request(12.0)) == ("a", [])
    assert gate.answered(GrammarReady(b"a")) == [again]
    assert gate.answered(GrammarReady(b"b")) == [other]


@given(st.lists(st.tuples(st.sampled_from(["enter", "leave", "tell", "answer", "fail"]), st.integers(0, 9))))
def test_ranks_keep_what_is_needed_and_never_too_much(acts: list[tuple[str, int]]) -> None:
    capacity = 3
    gate, live, unanswered = GrammarGate(capacity), list[Sequence](), list[bytes]()
    kept: set[bytes] = set()
    passed: set[int] = set()
    for act, number in acts:
        if act == "enter":
            seq = make("abcdef"[number % 6])
            live.append(seq)
            if gate.enter(seq):
                passed.add(seq.seq_id)
        elif act == "leave" and live:
            gate.leave(live.pop(number % len(live)))
        elif act == "tell" and (request := gate.next_request(0.0)) is not None:
            assert kept.issuperset(request.forgotten)
            kept -= set(request.forgotten)
            unanswered.append(request.grammar.key)
            assert len(kept) + len(unanswered) <= capacity
        elif act in ("answer", "fail") and unanswered:
            key = unanswered.pop(0)
            answer = GrammarReady(key, "too large" if act == "fail" else "")
            users = gate.answered(answer)
            assert users == [seq for seq in live if seq.params.grammar and seq.params.grammar.key == key]
            if answer.error:
                live = [seq for seq in live if seq not in users]
            else:
                kept.add(key)
                passed |= {seq.seq_id for seq in users}
        for seq in live:
            assert (seq.seq_id in passed) == (
                seq.params.grammar is not None and seq.params.grammar.key in kept
            )


# --- the engine ---


def asked(name: str, *prompt: int, **params: object) -> Sequence:
    return sequence(*(prompt or (0,)), grammar=grammar(name), **params)  # type: ignore[arg-type]  # any field


async def test_a_sequence_waits_for_its_grammar_and_others_do_not_wait_for_it(
    autojump_clock: MockClock,
) -> None:
    engine, executor = make_engine(), make_executor()
    executor.grammar_s = 5.0
    async with supervised(engine, executor):
        started_at = trio.current_time()
        with engine.stream([asked("a")]) as held, engine.stream([sequence(1)]) as free:
            assert (await read_all(free))[0].text == "cdefg"
            assert trio.current_time() - started_at < 1
            counts = engine.statistics()
            assert (counts.num_waiting, counts.num_waiting_tokens, counts.num_running) == (1, 1, 0)
            delta = (await read_all(held))[0]
        assert (delta.text, delta.finish_reason) == ("bcdef", FinishReason.LENGTH)
        assert 5 <= trio.current_time() - started_at < 6
        before = trio.current_time()
        with engine.stream([asked("a")]) as known:
            assert (await read_all(known))[0].text == "bcdef"
        assert trio.current_time() - before < 1
    assert [request.grammar.text for request in executor.requests] == ["a"]


async def test_forced_tokens_come_as_one_text(autojump_clock: MockClock) -> None:
    engine, executor = make_engine(), make_executor()
    executor.rank.forced = lambda token_ids: [token_ids[-1] + 1 + i for i in range(4)]
    async with supervised(engine, executor):
        with engine.stream([asked("a", max_tokens=18), sequence(9, max_tokens=3)]) as mailbox:
            deltas = await read_all(mailbox)
        assert (deltas[0].text, deltas[0].token_ids) == ("bcdefghijklmnopqrs", tuple(range(1, 19)))
        assert deltas[0].usage.num_output_tokens == 18
        assert deltas[1].text == "klm"
        meter = engine.meter
        assert meter.num_output_tokens == 21
        assert meter.inter_token_latency_s.count + meter.time_to_first_token_s.count == 21
        assert meter.num_steps < 8
        assert engine.statistics().num_free_blocks == 64


async def test_forced_tokens_have_log_probabilities_too(autojump_clock: MockClock) -> None:
    engine, executor = make_engine(), make_executor()
    executor.rank.forced = lambda token_ids: [token_ids[-1] + 1]
    async with supervised(engine, executor):
        with engine.stream([asked("a", max_tokens=4, logprobs=2)]) as mailbox:
            delta = (await read_all(mailbox))[0]
    assert [found.token_id for found in delta.logprobs] == list(delta.token_ids) == [1, 2, 3, 4]
    assert [found.logprob for found in delta.logprobs] == [-0.5, 0.0, -0.5, 0.0]
    assert [len(found.top) for found in delta.logprobs] == [2, 0, 2, 0]


async def test_a_stop_string_among_forced_tokens_ends_the_text(autojump_clock: MockClock) -> None:
    engine, executor = make_engine(), make_executor()
    executor.rank.forced = lambda token_ids: [token_ids[-1] + 1 + i for i in range(9)]
    async with supervised(engine, executor):
        with engine.stream([asked("a", max_tokens=80, stop=("de",))]) as mailbox:
            delta = (await read_all(mailbox))[0]
        assert (delta.text, delta.token_ids, delta.usage.num_output_tokens) == ("bc", (1, 2, 3, 4), 4)
        assert (delta.finish_reason, delta.stop_reason) == (FinishReason.STOP, "de")
        assert engine.statistics().num_free_blocks == 64


async def test_a_budget_of_thinking_is_counted_in_usage(autojump_clock: MockClock) -> None:
    thinking = ThinkingBudget(begins=(), ends=("ef",), is_open=True, max_tokens=3, forced_end=(3, 4))
    engine, executor = make_engine(), make_executor()
    async with supervised(engine, executor):
        with engine.stream([sequence(0, max_tokens=9, thinking=thinking)]) as mailbox:
            delta = (await read_all(mailbox))[0]
    assert (delta.text, delta.usage.num_reasoning_tokens) == ("bcdefghij", 5)
    assert executor.requests == [], "there is no grammar to wait for"


async def test_a_grammar_that_ranks_cannot_use_ends_those_who_wait_for_it(autojump_clock: MockClock) -> None:
    engine, executor = make_engine(), make_executor()
    executor.grammar_errors[b"bad"] = "it is too large"
    async with supervised(engine, executor):
        with engine.stream([asked("bad"), asked("good")]) as mailbox:
            deltas = await read_all(mailbox)
        assert (deltas[0].finish_reason, deltas[0].error) == (FinishReason.GRAMMAR, "it is too large")
        assert (deltas[1].finish_reason, deltas[1].text) == (FinishReason.LENGTH, "bcdef")
        assert engine.statistics().num_waiting == 0
        assert engine.meter.num_finished[FinishReason.GRAMMAR] == 1


async def test_a_grammar_that_cannot_go_on_ends_its_sequence_alone(autojump_clock: MockClock) -> None:
    engine, executor = make_engine(), make_executor()
    executor.rank.failure = lambda token_ids: "it is too complex" if token_ids[-1] == 3 else ""
    async with supervised(engine, executor):
        with engine.stream([asked("a", max_tokens=20), sequence(0, max_tokens=50)]) as mailbox:
            deltas = await read_all(mailbox)
        assert (deltas[0].finish_reason, deltas[0].error) == (FinishReason.GRAMMAR, "it is too complex")
        assert (deltas[0].text, deltas[0].usage.num_output_tokens) == ("bcd", 3)
        assert len(deltas[1].text) == 50
        assert engine.statistics().num_free_blocks == 64


async def test_who_leaves_while_it_is_held_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    engine, executor = make_engine(), make_executor()
    executor.grammar_s = 1.0
    async with supervised(engine, executor):
        for name in ("a", "b", "c"):  # the third is not even requested yet
            with trio.move_on_after(0.1), engine.stream([asked(name)]) as held:
                await held.receive()
        await trio.sleep(5)
        counts = engine.statistics()
        assert (counts.num_waiting, counts.num_waiting_tokens, counts.num_streams) == (0, 0, 0)
        with engine.stream([asked("d")]) as mailbox:
            assert (await read_all(mailbox))[0].text == "bcdef"
    assert [request.grammar.text for request in executor.requests] == ["a", "b", "d"]


async def test_held_sequences_count_in_the_queue(autojump_clock: MockClock) -> None:
    engine, executor = make_engine(max_num_queued_reqs=2), make_executor()
    executor.grammar_s = 50.0
    async with supervised(engine, executor):
        with engine.stream([asked("a", *range(9)), asked("b", *range(7))]):
            await trio.sleep(1)
            with pytest.raises(QueueFull, match="2 sequences are waiting, the limit is 2"):
                engine.check(1)
            counts = engine.statistics()
            assert (counts.num_waiting, counts.num_waiting_tokens) == (2, 16)
        engine.check(1)


async def test_sequences_run_in_the_order_in_which_they_came(autojump_clock: MockClock) -> None:
    engine, executor = make_engine(max_num_seqs=1, max_num_batched_tokens=64), make_executor()
    executor.grammar_s = 0.3
    order: list[int] = []
    async with supervised(engine, executor), trio.open_nursery() as nursery:

        async def run(number: int, seq: Sequence) -> None:
            with engine.stream([seq]) as mailbox:
                await read_all(mailbox)
            order.append(number)

        nursery.start_soon(run, 0, sequence(0, max_tokens=250))  # until all have their grammars
        for number, name in enumerate(["a", "b", "", "a", "", "c"], 1):
            await trio.sleep(0.01)
            nursery.start_soon(run, number, asked(name) if name else sequence(0))
    assert order == [0, 1, 2, 3, 4, 5, 6]


async def test_those_who_were_held_when_the_works_died_wait_for_the_next(
    autojump_clock: MockClock,
) -> None:
    engine = make_engine(max_num_seqs=1, max_num_batched_tokens=64)
    dying, next_one = make_executor(), make_executor()
    async with supervised(engine, dying, next_one):
        with engine.stream([asked("a")]) as known:
            await read_all(known)
        dying.grammar_s = 1e6
        with (
            engine.stream([sequence(0, max_tokens=250)]) as running,
            engine.stream([asked("a")]) as waiting,
            engine.stream([asked("b"), asked("b", 10)]) as held,
        ):
            await trio.sleep(0.1)
            dying.failure = WorkerDied("rank 0 was killed by SIGKILL")
            assert (await read_all(running))[0].finish_reason is FinishReason.ERROR
            assert (await read_all(waiting))[0].text == "bcdef"
            texts = {index: delta.text for index, delta in (await read_all(held)).items()}
            assert texts == {0: "bcdef", 1: "lmnop"}
    assert [request.grammar.text for request in next_one.requests] == ["a", "b"]


async def test_a_grammar_that_never_comes_ends_those_who_wait_and_no_step_is_late(
    autojump_clock: MockClock,
) -> None:
    engine, executor = make_engine(step_timeout_s=30, step_stacks_s=10), make_executor()
    executor.grammar_s = 1e6
    async with supervised(engine, executor):
        started_at = trio.current_time()
        with engine.stream([asked("a")]) as mailbox, engine.stream([sequence(0)]) as free:
            delta = (await read_all(mailbox))[0]
            assert (await read_all(free))[0].text == "bcdef"
        assert delta.error == "the grammar was not ready within 30 s"
        assert delta.finish_reason is FinishReason.GRAMMAR
        assert 30 <= trio.current_time() - started_at <= 32
        assert executor.num_stacks == 0 and engine.statistics().num_restarts == 0


async def test_more_grammars_than_can_be_kept_come_to_their_turn(autojump_clock: MockClock) -> None:
    engine, executor = make_engine(max_cached_grammars=2), make_executor()
    async with supervised(engine, executor):
        with engine.stream([asked(name, max_tokens=20) for name in "abcdefab"]) as mailbox:
            deltas = await read_all(mailbox)
    assert len(deltas) == 8 and all(delta.finish_reason is FinishReason.LENGTH for delta in deltas.values())
    assert len(executor.rank.grammars) == 2


@pytest.mark.parametrize(
    ("setting", "backend"), [("auto", "guidance"), ("off", ""), ("xgrammar", "xgrammar")]
)
def test_ranks_are_told_what_they_need_for_grammars(setting: str, backend: str) -> None:
    settings = Settings(guided_decoding_backend=setting, max_cached_grammars=7)
    config = worker_config(settings, make_engine().model)
    assert (config.grammar_backend, config.max_cached_grammars) == (backend, 7)
    assert (config.tokenizer_path, config.eos_token_ids) == ("unused", [])
