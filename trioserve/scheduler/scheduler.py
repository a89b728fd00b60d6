"""Continuous batching: who computes how many tokens in the next step, and in which KV blocks."""

import os
from collections import deque
from collections.abc import Iterator
from typing import Final

from trioserve._speedups.blocks import BlockPool
from trioserve.core.sequence import FinishReason, Sequence, SequenceStatus
from trioserve.core.step import Admission, SampledToken, SlotWork, StepPlan, StepResult, TokenLogprobs
from trioserve.scheduler.admission import admission_of, num_reserved_blocks
from trioserve.scheduler.host_tier import HostTier
from trioserve.scheduler.limits import SchedulerLimits, SchedulerStatistics
from trioserve.scheduler.lookahead import Lookahead
from trioserve.scheduler.pace import Pace
from trioserve.scheduler.repetition import STOP_REASON, watch
from trioserve.scheduler.waiting import WaitingLine

_MAX_ADMITTED_IDS: Final = 4 << 20
"""Ids of tokens, biases and the like that one plan admits, so that its frame stays far from the limit; one sequence
may always enter."""

Booked = list[tuple[Sequence, SampledToken]]
"""Tokens that have been added to their sequences, at most one to each."""
_CERTAIN: Final = TokenLogprobs(0.0, [], [])  # of a token that was forced
_NO_BLOCKS: Final[list[int]] = []  # of most work; a plan is read and never written


class Scheduler:
    """Plans steps ahead of their results and books the results when they come.

    Steps overlap: a sequence's counts speak of what is planned, and a token that comes back for a sequence that has
    ended meanwhile is dropped. Ranks carry out plans in order, so blocks and slots may be handed on in the next plan
    while an earlier one still runs.

    A step may force tokens behind the one that it samples. The sequence's next step computes them all; if it was
    planned before they were known, its blocks have room for as many as there can be. A step may also guess tokens and
    find them right; then it has computed them, and the next step's work is one token all the same.
    """

    def __init__(
        self, limits: SchedulerLimits, *, num_blocks: int, block_size: int, num_host_blocks: int = 0
    ) -> None:
        self._limits, max_moves = limits, limits.max_moved_blocks
        self._pool = BlockPool(
            num_blocks, block_size, key=os.urandom(16), num_host_blocks=num_host_blocks, max_moves=max_moves
        )
        self._host = HostTier(self._pool, max_moves)
        self._lookahead = Lookahead(limits, self._pool)
        self._waiting = WaitingLine(limits.max_num_queued_reqs, limits.max_num_queued_tokens)
        self._running: dict[int, Sequence] = {}  # by seq_id, in order of admission
        self._preempted_pending: dict[int, Sequence] = {}  # preempted with a sample on its way
        self._free_slots = list(range(limits.max_num_seqs - 1, -1, -1))
        self._released: list[int] = []  # told to the ranks with the next plan
        self._pace = Pace(limits.target_step_s)
        self._drafts_on_the_way = deque[int]()  # ``StepPlan.num_drafts`` of each plan whose result is to come
        self._next_step_id = 0
        self._num_preemptions = self._num_prompt_tokens = self._num_cached_tokens = 0

    def check(self, num_sequences: int, num_tokens: int) -> None:
        """Let ``num_sequences`` more of ``num_tokens`` tokens in all into the line, or not.

        Raises:
            QueueFull: A bound would be passed. An empty line takes any one request.
        """
        self._waiting.check(num_sequences, num_tokens)

    def add(self, seq: Sequence) -> None:
        """Let a new sequence, or one that was held, wait for its turn."""
        self._waiting.push(seq)

    def hold(self, seq: Sequence) -> None:
        """Let a new sequence wait for something else before its turn can come: until it is added."""
        self._waiting.hold(seq)

    def finish(self, seq: Sequence, reason: FinishReason) -> None:
        """End a sequence wherever it stands; no effect once it has finished."""
        if seq.status is SequenceStatus.FINISHED:
            return
        if seq.status is SequenceStatus.WAITING:
            self._waiting.discard(seq)
            self._preempted_pending.pop(seq.seq_id, None)
            seq.finish(reason)
        else:
            self._leave_slot(seq)
            self._pool.release(seq.finish(reason))

    def plan_step(self) -> StepPlan | None:
        """The next step, or None where there is nothing to compute: decodes first, then prompts up to the budget, or to
        what keeps the step short."""
        num_preemptions = self._num_preemptions
        work: dict[int, SlotWork] = {}  # by seq_id
        num_tokens, prompts = self._plan_decodes(work)
        num_decodes = len(work)
        budget = self._limits.max_num_batched_tokens - num_tokens
        num_to_come = self._waiting.num_tokens + sum(seq.num_uncomputed_tokens for seq in prompts)
        room = self._pace.room(num_tokens, num_to_come, budget) if num_to_come else budget
        left = self._plan_prefills(prompts, work, room)
        admitted: list[Admission] = []
        if num_preemptions == self._num_preemptions:
            left = self._plan_admissions(work, admitted, left, budget)
        if not work:
            return None
        num_drafts = 0
        if num_decodes == len(work) <= self._limits.max_drafting_seqs:
            num_drafts = self._lookahead.plan_drafts(work, self._running, budget)
        moves = self._host.take_moves() if self._pool.num_host_blocks else ()
        plan = StepPlan(self._next_step_id, self._released, admitted, list(work.values()), num_drafts, *moves)
        self._drafts_on_the_way.append(num_drafts)
        self._pace.note_plan(num_tokens, room - left)
        self._next_step_id += 1
        self._released = []
        return plan

    def commit(self, result: StepResult) -> Iterator[Booked]:
        """Book a step's tokens in rounds, to be taken before the next plan: those sampled, then the first behind each
        that was guessed or forced, and so on. What is in a round counts; a sequence that it ends, or that is finished
        before the next one, has its ``finish_reason`` and gets no more."""
        booked, forcing = Booked(), Booked()
        running, preempted = self._running, self._preempted_pending
        num_drafts = self._drafts_on_the_way.popleft()
        self._pace.note_result(result)
        if num_drafts:
            self._lookahead.note_guesses(were_any=bool(result.num_drafted))
        for sampled in result.sampled:
            if (seq := running.get(sampled.seq_id) or preempted.get(sampled.seq_id)) is None:
                continue  # it ended while the step ran
            seq.num_pending_tokens -= 1
            if num_drafts and not seq.forces_tokens:
                seq.num_pending_drafts -= num_drafts
            self._append(seq, sampled)
            booked.append((seq, sampled))
            if sampled.forced:
                forcing.append((seq, sampled))
        yield booked
        if result.more:
            yield from self._commit_guessed(booked, result.more)
        if forcing:
            yield from self._commit_forced(forcing)

    def statistics(self) -> SchedulerStatistics:
        """The counts of this moment."""
        return SchedulerStatistics(
            num_waiting=len(self._waiting),
            num_waiting_tokens=self._waiting.num_tokens,
            num_running=len(self._running),
            num_blocks=self._pool.num_blocks,
            num_free_blocks=self._pool.num_free,
            num_cached_blocks=self._pool.num_cached,
            num_preemptions=self._num_preemptions,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            num_host_blocks=self._pool.num_host_blocks,
            num_cached_host_blocks=self._pool.num_host_cached,
            num_swapped_out=self._host.num_swapped_out,
            num_swapped_in=self._host.num_swapped_in,
        )

    def lose_ranks(self) -> list[Sequence]:
        """Forget every sample on its way; returns the sequences that ran. Those that wait may go on elsewhere."""
        for seq in self._preempted_pending.values():
            seq.num_pending_tokens = seq.num_pending_drafts = 0
        self._preempted_pending.clear()
        return list(self._running.values())

    def check_integrity(self) -> None:
        """Raise AssertionError where the books do not agree; for tests."""
        self._pool.check_integrity()
        slots = [seq.slot for seq in self._running.values() if seq.slot is not None]
        assert sorted([*slots, *self._free_slots]) == list(range(self._limits.max_num_seqs)), "a slot is lost"
        held = {block_id for seq in self._running.values() for block_id in seq.block_table}
        assert len(held) + self._pool.num_free == self._pool.num_blocks, "a block is lost"
        for seq in self._running.values():
            most = min(seq.num_tokens, len(seq.block_table) * self._pool.block_size)
            # what is planned beyond a sequence's last token, because guesses brought it early, computes nothing
            num_computed = min(seq.num_computed_tokens, self._lookahead.full_length(seq))
            assert num_computed <= most, f"{seq!r} computes more than {most} tokens"
            assert seq.num_pending_tokens or not seq.num_pending_drafts, f"{seq!r} guesses without a step"
        for seq in self._preempted_pending.values():
            assert seq.num_pending_tokens and not seq.num_computed_tokens, f"{seq!r} waits for nothing"

    # --- planning ---

    def _plan_decodes(self, work: dict[int, SlotWork]) -> tuple[int, list[Sequence]]:
        """One token for every sequence whose prompt is computed, and those forced since; returns how many in all, and
        the other sequences. This loop runs for every token that is generated, so it reads counts and not the properties
        made of them.

        Full blocks are registered when their tokens are back: a sequence planned here may yet be preempted by a later
        one, and its blocks would never be computed. Of one that forces tokens those may be its last, all at once, and
        its next step, planned already, computes nothing then: its blocks are registered when it is planned again.
        """
        block_size, max_model_len = self._pool.block_size, self._limits.max_model_len
        num_forced, prompts = 0, list[Sequence]()
        for seq in list(self._running.values()):
            if seq.slot is None:
                continue  # preempted a moment ago
            num_tokens = len(seq.token_ids) + seq.num_pending_tokens
            num_missing = num_tokens - seq.num_computed_tokens
            if num_missing != 1 and seq.num_computed_tokens < seq.num_admitted_tokens:
                prompts.append(seq)
                continue
            if num_tokens - seq.num_prompt_tokens >= seq.params.max_tokens or num_tokens >= max_model_len:
                continue  # the tokens on their way are its last
            new_block_ids = _NO_BLOCKS
            num_known = num_tokens + seq.num_pending_drafts
            if seq.forces_tokens:
                self._register(seq)
                num_known = self._lookahead.most_tokens(seq)
            elif num_known > len(seq.block_table) * block_size and seq.num_pending_drafts:
                num_known = self._lookahead.most_tokens(seq)
            if num_known > len(seq.block_table) * block_size:
                num_blocks = -(-num_known // block_size) - len(seq.block_table)
                if num_known > num_tokens and num_blocks > self._pool.num_free:
                    continue  # nobody is preempted for tokens that may not come: it waits for those on their way
                if not self._make_room_for(seq, num_blocks, work):
                    continue
                new_block_ids = self._pool.take(num_blocks)
                seq.block_table += new_block_ids
            work[seq.seq_id] = SlotWork(seq.slot, num_missing, new_block_ids)
            seq.num_computed_tokens = num_tokens
            seq.num_pending_tokens += 1
            num_forced += num_missing - 1
        return len(work) + num_forced, prompts

    def _plan_prefills(self, prompts: list[Sequence], work: dict[int, SlotWork], room: int) -> int:
        """The next chunks of prompts that are partly computed, whose blocks were taken when they were admitted; returns
        the room that is left."""
        for seq in prompts:
            if room <= 0:
                break
            if seq.slot is not None:  # not preempted by a decode
                room -= self._schedule(seq, room, work)
        return room

    def _plan_admissions(
        self, work: dict[int, SlotWork], admitted: list[Admission], room: int, budget: int
    ) -> int:
        """The first chunks of those whose turn it is; returns the room that is left. Where prompts may not be cut, the
        first one may take all of ``budget``, or long ones would wait until nobody decodes."""
        num_ids = 0
        while room > 0 and self._free_slots:
            seq = self._waiting.peek()
            if seq is None or seq.num_pending_tokens:
                break
            num_ids += len(seq.token_ids) + seq.params.num_ids
            most = room if admitted or self._limits.enable_chunked_prefill else budget
            moves = self._host.room(is_alone=not work)
            if (admitted and num_ids > _MAX_ADMITTED_IDS) or not self._admit(seq, admitted, most, moves):
                break
            room -= self._schedule(seq, most, work)
        return room

    def _admit(self, seq: Sequence, admitted: list[Admission], budget: int, max_moves: int) -> bool:
        """Give the head of the line a slot and blocks for all its tokens, or say that there are none.

        Where prompts may not be cut, one that is longer than ``budget`` waits for a step that has more left. Where the
        host has more of its blocks than ``max_moves``, so many come now and it waits for the rest.
        """
        num_tokens, pool = len(seq.token_ids), self._pool
        # The last token is always computed: its logits give the next one. All are where the prompt is to be scored.
        found = (
            pool.match(seq.token_ids, num_tokens - 1, seq.cache_salt)
            if self._limits.enable_prefix_caching and not seq.scores_prompt
            else []
        )
        hosted = [] if seq.scores_prompt else self._host.find(seq, found)
        num_missing = -(-num_tokens // pool.block_size) - len(found)
        num_computed = (len(found) + len(hosted)) * pool.block_size
        is_cut = num_tokens - num_computed > budget
        num_reserved = num_reserved_blocks(self._running.values(), self._limits, pool)
        is_crowded = num_missing + num_reserved > pool.num_free and self._running
        if is_crowded or (is_cut and not self._limits.enable_chunked_prefill):
            pool.release(found)
            return False
        if len(hosted) > max_moves:
            self._host.bring_nearer(seq, found, hosted[:max_moves])
            return False
        block_table = found + pool.take(num_missing)
        if hosted:
            self._host.move_in(seq, block_table, len(found), hosted)
        self._waiting.pop()
        if not seq.num_output_tokens:
            seq.num_cached_tokens = num_computed
            self._num_prompt_tokens += seq.num_prompt_tokens
            self._num_cached_tokens += num_computed
        seq.start(self._free_slots.pop(), block_table, num_computed)
        seq.num_registered_blocks = len(found) + len(hosted)
        self._running[seq.seq_id] = seq
        admitted.append(admission_of(seq))
        return True

    def _schedule(self, seq: Sequence, budget: int, work: dict[int, SlotWork]) -> int:
        """Compute as much of a prompt as the budget allows; returns how much."""
        assert seq.slot is not None
        num_tokens = min(budget, seq.num_uncomputed_tokens)
        work[seq.seq_id] = SlotWork(seq.slot, num_tokens, _NO_BLOCKS)
        seq.num_computed_tokens += num_tokens
        if seq.num_computed_tokens == seq.num_tokens:
            seq.num_pending_tokens += 1
        self._register(seq)  # the next in line may share these blocks: ranks write KV before they read it
        return num_tokens

    def _make_room_for(self, seq: Sequence, num_blocks: int, work: dict[int, SlotWork]) -> bool:
        """Free blocks, if need be by preempting whoever has the least right to them; False: that is ``seq`` itself. Who
        has the most right to blocks always gets them, since all of them hold a whole context."""
        while self._pool.num_free < num_blocks:
            victim = max(self._running.values(), key=lambda other: (other.priority, other.seq_id))
            if work.pop(victim.seq_id, None) is not None:
                victim.num_pending_tokens -= 1  # a decode that is planned no more
            self._preempt(victim)
            if victim is seq:
                return False
        return True

    def _preempt(self, seq: Sequence) -> None:
        """Send a running sequence back into the line; samples on their way will still be booked."""
        self._num_preemptions += 1
        self._leave_slot(seq)
        self._pool.release(seq.preempt())
        self._waiting.push(seq)
        if seq.num_pending_tokens:
            self._preempted_pending[seq.seq_id] = seq

    def _leave_slot(self, seq: Sequence) -> None:
        assert seq.slot is not None
        del self._running[seq.seq_id]
        self._free_slots.append(seq.slot)
        self._released.append(seq.slot)

    # --- booking ---

    def _commit_forced(self, forcing: Booked) -> Iterator[Booked]:
        """What was forced behind sampled tokens, a round for each place."""
        for place in range(max(len(sampled.forced) for _, sampled in forcing)):
            booked = []
            for seq, sampled in forcing:
                if place >= len(sampled.forced) or seq.status is SequenceStatus.FINISHED:
                    continue
                if seq.status is SequenceStatus.RUNNING and seq.num_pending_tokens:
                    seq.num_computed_tokens += 1  # by the step that is planned already
                logprobs = None if seq.params.logprobs is None else _CERTAIN
                forced = SampledToken(sampled.slot, sampled.seq_id, sampled.forced[place], logprobs)
                self._append(seq, forced)
                booked.append((seq, forced))
            yield booked

    def _commit_guessed(self, booked: Booked, rounds: list[list[SampledToken]]) -> Iterator[Booked]:
        """What was guessed behind the tokens of ``booked`` and found right, and so computed, a round for each place."""
        seqs = {seq.seq_id: seq for seq, _ in booked}
        for more in rounds:
            booked = []
            for sampled in more:
                seq = seqs.get(sampled.seq_id)
                if seq is None or seq.status is SequenceStatus.FINISHED:
                    continue
                if seq.status is SequenceStatus.RUNNING:
                    seq.num_computed_tokens += 1
                self._append(seq, sampled)
                booked.append((seq, sampled))
            yield booked

    def _append(self, seq: Sequence, sampled: SampledToken) -> None:
        token_id, token_ids, params = sampled.token_id, seq.token_ids, seq.params
        token_ids.append(token_id)
        num_tokens = len(token_ids)
        if seq.slot is None:  # it was preempted
            self._waiting.num_tokens += 1
            if not seq.num_pending_tokens:
                self._preempted_pending.pop(seq.seq_id, None)
        elif num_tokens // self._pool.block_size > seq.num_registered_blocks and not seq.forces_tokens:
            self._register(seq)
        num_output = num_tokens - seq.num_prompt_tokens
        if token_id in params.stop_token_ids and (
            num_output > params.min_tokens or params.grammar is not None  # which had nothing else left
        ):
            seq.stop_reason = token_id
            self.finish(seq, FinishReason.STOP)
        elif num_output >= params.max_tokens or num_tokens >= self._limits.max_model_len:
            self.finish(seq, FinishReason.LENGTH)
        elif (params.repetition_detection or params.early_stop) and (
            reason := watch(seq, is_certain=sampled.is_certain)
        ):
            seq.stop_reason = STOP_REASON
            self.finish(seq, reason)

    def _register(self, seq: Sequence) -> None:
        """Make the blocks that are full of known tokens findable, as soon as their computation is planned.

        The last token that a sequence may have is never computed, whatever was planned while it was not known.
        """
        num_known = min(len(seq.token_ids), self._lookahead.full_length(seq) - 1)
        last = min(seq.num_computed_tokens, num_known) // self._pool.block_size
        if last > seq.num_registered_blocks and self._limits.enable_prefix_caching:
            self._pool.register(
                seq.token_ids, seq.block_table, seq.num_registered_blocks, last, seq.cache_salt
            )
            seq.num_registered_blocks = last
