"""The engine: takes sequences in, runs them step by step on the ranks, and hands their text out.

``supervisor.py`` starts the ranks and calls ``Engine.run`` with them, again and again if need be.
"""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import trio

from trioserve._speedups.detokenizer import Vocabulary
from trioserve.core.sequence import FinishReason, Sequence
from trioserve.core.step import StepPlan, StepResult, WorkerReady
from trioserve.engine.checkpoint import ModelFolder
from trioserve.engine.grammars import GrammarGate
from trioserve.engine.lifecycle import Lifecycle
from trioserve.engine.mailbox import Mailbox, Receiver
from trioserve.engine.meter import Meter, Timeline
from trioserve.errors import NotReady, Overloaded, WorkerStalled
from trioserve.executor.executor import Executor
from trioserve.output.stream import OutputStream
from trioserve.scheduler.host_tier import max_moved_blocks
from trioserve.scheduler.limits import NOTHING_SCHEDULED, SchedulerLimits, SchedulerStatistics
from trioserve.scheduler.scheduler import Booked, Scheduler
from trioserve.settings import Settings

_STEPS_IN_FLIGHT = 2
"""The step that runs and the one that waits for it in the ranks' sockets."""
_WATCH_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """A moment's counts, for /health, metrics and tests."""

    num_requests: int
    """That someone waits for; a request may have several sequences."""
    num_streams: int
    """Sequences that someone reads."""
    num_waiting: int
    num_waiting_tokens: int
    num_running: int
    num_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    num_host_blocks: int
    num_cached_host_blocks: int
    num_preemptions: int
    """This and what follows: since the start."""
    num_prompt_tokens: int
    """Of all sequences admitted; cached ones included."""
    num_cached_tokens: int
    num_swapped_out: int
    """KV blocks."""
    num_swapped_in: int
    num_output_tokens: int
    num_steps: int
    """Steps whose results are back."""
    last_step_age_s: float | None
    """Seconds since a result came, or None before the first."""
    num_restarts: int
    """Of the works."""


@dataclass(slots=True)
class _Stream(Timeline):
    """A sequence, where its deltas go and as which choice, and when it came how far."""

    output: OutputStream
    receiver: Receiver
    index: int


class Engine:
    """One model, served: ``check`` and ``stream`` are what requests use."""

    def __init__(
        self,
        settings: Settings,
        model: ModelFolder,
        vocabulary: Vocabulary,
        lifecycle: Lifecycle,
    ) -> None:
        self.model = model
        self.lifecycle = lifecycle
        self.meter = Meter(max_model_len=model.max_model_len)
        self.works: WorkerReady | None = None
        """What the ranks said of themselves when they had loaded; None before that."""
        self._settings = settings
        self._vocabulary = vocabulary
        self._scheduler: Scheduler | None = None
        self._gate = GrammarGate(settings.max_cached_grammars)
        self._streams: dict[int, _Stream] = {}
        self._in_flight: deque[tuple[StepPlan, float]] = deque()  # with the time each was submitted
        self._work = trio.Event()
        self._num_requests = self._num_starts = 0
        self._past = NOTHING_SCHEDULED  # what is counted in all, before the works were started last
        self._last_result_at: float | None = None
        self._sequence_s = 1.0  # how long sequences took of late, a moving average

    # --- what requests use ---

    def check(self, num_prompt_tokens: int, *, num_sequences: int = 1) -> int:
        """Let a request in, or raise what it deserves; returns the room for output tokens, at least 1.

        Raises:
            NotReady, Draining: Nothing is served now.
            PromptTooLong: The prompt leaves no room for an answer.
            QueueFull: Too much waits already.
        """
        self.lifecycle.check()
        self._loaded()
        room = self.model.room_for(num_prompt_tokens)
        self.check_queue(num_sequences, num_prompt_tokens * num_sequences)
        return room

    def check_queue(self, num_sequences: int, num_tokens: int) -> None:
        """Whether so many more sequences of so many tokens in all may wait, at whatever door they were let in.

        Raises:
            NotReady: There were no ranks yet.
            QueueFull: Too much waits already.
        """
        scheduler = self._loaded()
        try:
            scheduler.check(num_sequences, num_tokens)
        except Overloaded as exc:
            exc.retry_after_s = self._retry_after_s(scheduler.statistics())
            raise

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together."""
        return self.model.max_model_len

    @property
    def vocabulary(self) -> Vocabulary:
        """What each token stands for."""
        return self._vocabulary

    @contextmanager
    def stream(self, sequences: list[Sequence]) -> Iterator[Mailbox]:
        """Run the choices of one request for as long as the block is open; leaving it early aborts them."""
        mailbox = Mailbox(len(sequences))
        with self.feed(sequences, mailbox):
            yield mailbox

    @contextmanager
    def feed(self, sequences: list[Sequence], receiver: Receiver) -> Iterator[None]:
        """The same, for a receiver of the caller's."""
        started_at = trio.current_time()
        self._num_requests += 1
        try:
            for index, seq in enumerate(sequences):
                self._line_up(seq)
                output = OutputStream(seq, self._vocabulary)
                self._streams[seq.seq_id] = _Stream(output, receiver, index, arrived_at=started_at)
            self._work.set()
            yield
        finally:
            self._num_requests -= 1
            for seq in sequences:
                stream = self._streams.pop(seq.seq_id, None)
                if stream is not None:
                    self.meter.finished(stream, seq, FinishReason.ABORT)
                self._loaded().finish(seq, FinishReason.ABORT)  # no effect once finished
                self._gate.leave(seq)
            self.meter.answered(sequences)
            self._sequence_s += 0.1 * (trio.current_time() - started_at - self._sequence_s)
            self._work.set()

    def stop(self, sequences: list[Sequence]) -> None:
        """End those of ``sequences`` that run or wait, as if their answers had ended there."""
        for seq in sequences:
            if (stream := self._streams.get(seq.seq_id)) is not None:
                self._end(stream, FinishReason.STOP)
        self._work.set()

    def abort(self, error: str) -> int:
        """End every sequence with an error that says ``error`` to its client; returns how many there were."""
        streams = list(self._streams.values())
        for stream in streams:
            self._end(stream, FinishReason.ERROR, error)
        return len(streams)

    def statistics(self) -> EngineStatistics:
        """The counts of this moment."""
        last = self._last_result_at
        scheduler = NOTHING_SCHEDULED if self._scheduler is None else self._scheduler.statistics()
        since_the_start = {
            "num_preemptions": self._past.num_preemptions + scheduler.num_preemptions,
            "num_swapped_out": self._past.num_swapped_out + scheduler.num_swapped_out,
            "num_swapped_in": self._past.num_swapped_in + scheduler.num_swapped_in,
            "num_prompt_tokens": self.meter.num_prompt_tokens,
            "num_cached_tokens": self.meter.num_cached_tokens,
            "num_output_tokens": self.meter.num_output_tokens,
            "num_steps": self.meter.num_steps,
        }
        return EngineStatistics(
            **asdict(scheduler) | since_the_start,
            num_requests=self._num_requests,
            num_streams=len(self._streams),
            last_step_age_s=None if last is None else trio.current_time() - last,
            num_restarts=max(0, self._num_starts - 1),
        )

    @property
    def has_run(self) -> bool:
        """Whether there ever were ranks that had loaded the model."""
        return self._num_starts > 0

    # --- the step loop ---

    async def run(self, executor: Executor) -> None:
        """Run sequences on ``executor`` until it fails or this is cancelled; then the running ones have failed.

        Raises:
            EngineError: The works are of no use any more.
        """
        self._take_up(executor)
        self.lifecycle.works_ready()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._submit, executor)
                nursery.start_soon(self._read_results, executor)
                nursery.start_soon(self._read_grammars, executor)
                nursery.start_soon(self._watch_steps, executor)
        finally:
            self._put_down()

    async def _submit(self, executor: Executor) -> None:
        """Send plans, and requests for grammars where no plan is due; one task, so that frames stay whole."""
        scheduler = self._loaded()
        while True:
            while len(self._in_flight) < _STEPS_IN_FLIGHT and (plan := scheduler.plan_step()) is not None:
                now = trio.current_time()
                self._in_flight.append((plan, now))
                for admission in plan.admitted:
                    stream = self._streams[admission.seq_id]
                    self.meter.admitted(stream, stream.output.seq, now)
                await executor.submit(plan)
            if (request := self._gate.next_request(trio.current_time())) is not None:
                await executor.submit_grammar(request)
                continue
            await self._work.wait()
            self._work = trio.Event()

    async def _read_results(self, executor: Executor) -> None:
        while True:
            result = await executor.result()
            plan, _ = self._in_flight.popleft()
            assert plan.step_id == result.step_id, f"result {result.step_id} came for plan {plan.step_id}"
            self._deliver(result, num_computed=sum(work.num_tokens for work in plan.work))
            self._work.set()

    async def _read_grammars(self, executor: Executor) -> None:
        while True:
            answer = await executor.grammar_ready()
            for seq in self._gate.answered(answer):
                if answer.error:
                    self._end(self._streams[seq.seq_id], FinishReason.GRAMMAR, answer.error)
                else:
                    self._loaded().add(seq)
            self._work.set()

    async def _watch_steps(self, executor: Executor) -> None:
        """Notice a step that does not come back, or a grammar, within a second of its deadline."""
        reported = -1
        while True:
            await trio.sleep(_WATCH_INTERVAL_S if self._in_flight else 1.0)
            self._end_overdue()
            if not self._in_flight:
                continue
            plan, submitted_at = self._in_flight[0]
            age_s = trio.current_time() - max(submitted_at, self._last_result_at or -math.inf)
            if age_s > self._settings.step_timeout_s:
                raise WorkerStalled(
                    f"step {plan.step_id} did not come back within {self._settings.step_timeout_s:g} s"
                )
            if age_s > self._settings.step_stacks_s and plan.step_id != reported:
                reported = plan.step_id
                executor.write_stacks()

    def _end_overdue(self) -> None:
        """A grammar that takes too long is the end of those who wait for it, and nobody else's."""
        timeout_s = self._settings.step_timeout_s
        for seq in self._gate.overdue(trio.current_time() - timeout_s):
            error = f"the grammar was not ready within {timeout_s:g} s"
            self._end(self._streams[seq.seq_id], FinishReason.GRAMMAR, error)
            self._work.set()

    def _deliver(self, result: StepResult, *, num_computed: int) -> None:
        """Book a step and leave each sequence's deltas in its mailbox. No await: a step is one moment."""
        for scored in result.prompt_logprobs:
            if (stream := self._streams.get(scored.seq_id)) is not None:
                stream.output.add_prompt_logprobs(scored)
        for sampled in result.sampled:
            if sampled.failure and (stream := self._streams.get(sampled.seq_id)) is not None:
                self._end(stream, FinishReason.GRAMMAR, sampled.failure)
        self._last_result_at = trio.current_time()
        self.meter.stepped(num_computed=num_computed)
        if result.num_drafted:
            self.meter.guessed(result.num_drafted, [len(more) for more in result.more])
        told: dict[Receiver, None] = {}
        for booked in self._loaded().commit(result):
            self._tell(booked, self._last_result_at, told)
        for receiver in told:
            receiver.hand_over()

    def _tell(self, booked: Booked, now: float, told: dict[Receiver, None]) -> None:
        """Leave a delta for each token, and note in ``told`` where; those that end a text end its sequence."""
        streams = [self._streams[seq.seq_id] for seq, _ in booked]
        self.meter.generated(streams, now=now)
        deltas = OutputStream.feed_step(
            (stream.output, sampled) for stream, (_, sampled) in zip(streams, booked, strict=True)
        )
        for stream, delta in zip(streams, deltas, strict=True):
            if delta.finish_reason is not None:
                self._close(stream, delta.finish_reason)
            stream.receiver.put_nowait(stream.index, delta)
            told[stream.receiver] = None

    # --- the works come and go ---

    def _take_up(self, executor: Executor) -> None:
        """Plan for these ranks from now on; who waited for the last ones waits for these."""
        settings, ready = self._settings, executor.ready
        drafts, target_ms = settings.speculative_config, settings.inter_token_target_ms
        self._num_starts += 1
        scheduler = Scheduler(
            SchedulerLimits(
                max_num_seqs=settings.max_num_seqs,
                max_num_batched_tokens=settings.max_num_batched_tokens,
                max_model_len=self.max_model_len,
                max_num_queued_reqs=settings.max_num_queued_reqs,
                max_num_queued_tokens=settings.max_num_queued_tokens,
                enable_prefix_caching=settings.enable_prefix_caching,
                enable_chunked_prefill=settings.enable_chunked_prefill,
                kv_cache_ratio=settings.kv_cache_ratio,
                num_drafts=0 if drafts is None else drafts.num_speculative_tokens,
                max_drafting_seqs=ready.max_drafting_seqs,
                max_moved_blocks=max_moved_blocks(
                    ready.kv_cache_bytes // ready.num_blocks // settings.tensor_parallel_size
                ),
                target_step_s=None if target_ms is None else target_ms / 1000,
            ),
            num_blocks=ready.num_blocks,
            block_size=settings.block_size,
            num_host_blocks=ready.num_host_blocks,
        )
        if self._scheduler is not None:
            self._past += self._scheduler.statistics()
        self._scheduler, self.works = scheduler, ready
        self._gate = GrammarGate(settings.max_cached_grammars)
        for stream in self._streams.values():
            seq = stream.output.seq
            # Turns are of the line that gave them: newcomers, who get the first ones of this line, would pass.
            seq.turn = None
            self._line_up(seq)

    def _put_down(self) -> None:
        """The ranks are gone: fail what ran on them, keep what waits."""
        self._in_flight.clear()
        for seq in self._loaded().lose_ranks():
            error = "the model's process ended while it worked on this request"
            self._end(self._streams[seq.seq_id], FinishReason.ERROR, error)

    def _line_up(self, seq: Sequence) -> None:
        """Let a sequence wait for its turn, or for its grammar before."""
        scheduler = self._loaded()
        if self._gate.enter(seq):
            scheduler.add(seq)
        else:
            scheduler.hold(seq)

    def _end(self, stream: _Stream, reason: FinishReason, error: str | None = None) -> None:
        """End a sequence otherwise than by a token."""
        self._close(stream, reason)
        stream.receiver.put_nowait(stream.index, stream.output.ended(reason, error))
        stream.receiver.hand_over()

    def _close(self, stream: _Stream, reason: FinishReason) -> None:
        seq = stream.output.seq
        self._loaded().finish(seq, reason)
        self._gate.leave(seq)
        self.meter.finished(stream, seq, reason)
        del self._streams[seq.seq_id]

    def _loaded(self) -> Scheduler:
        if self._scheduler is None:
            raise NotReady("the model is still loading", retry_after_s=2.0)
        return self._scheduler

    def _retry_after_s(self, statistics: SchedulerStatistics) -> float:
        """When the line should have moved on by as much as waits now."""
        rounds = statistics.num_waiting / self._settings.max_num_seqs
        return min(60.0, max(1.0, rounds * self._sequence_s))
