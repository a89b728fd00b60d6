"""Stand-ins at the two seams of the house: ranks that need no model, for tests of the front."""

import math
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import trio

from trioserve.core.sampling import MAX_FORCED_TOKENS, SamplingParams
from trioserve.core.step import (
    Admission,
    GrammarReady,
    GrammarRequest,
    PromptLogprobs,
    SampledToken,
    SlotWork,
    StepPlan,
    StepResult,
    TokenLogprobs,
    WorkerReady,
)
from trioserve.errors import EngineError

NextToken = Callable[[list[int]], int]
"""From all tokens of a sequence to the next one."""
Forced = Callable[[list[int]], list[int]]
"""From all tokens of a sequence to those that must follow."""


@dataclass
class _Slot:
    seq_id: int
    token_ids: list[int]
    num_computed: int
    block_table: list[int]
    params: SamplingParams
    num_to_score: int
    """Tokens of the prompt that a score is wanted of, from the first; 0: none."""
    most_tokens: int
    """That it may ever have."""
    has_sampled: bool = False
    """Since its admission."""
    has_failed: bool = False


@dataclass
class FakeRank:
    """Does what a rank does to slots, tokens and blocks, with arithmetic instead of a model.

    A KV entry is the hash of the tokens up to its own, so a wrong block, a block handed on too early or a prefix hit on
    something never computed shows at once.
    """

    block_size: int
    next_token: NextToken
    is_certain: Callable[[list[int]], bool] = lambda token_ids: False
    """Whether the last of all tokens was certain."""
    forced: Forced = lambda token_ids: []
    """Asked for sequences that may force tokens."""
    guesses: Forced = lambda token_ids: []
    """Asked for sequences that force none, as many of them taken as the plan and the blocks allow."""
    failure: Callable[[list[int]], str] = lambda token_ids: ""
    """Why a grammar fails instead of sampling the next token; empty where it does not."""
    max_model_len: int = 1 << 30
    grammars: set[bytes] = field(default_factory=set)
    """Keys of those that are ready."""
    slots: dict[int, _Slot] = field(default_factory=dict)
    kv: dict[tuple[int, int], int] = field(default_factory=dict)
    """(block_id, offset) -> hash of the tokens up to there."""
    host_kv: dict[int, list[int]] = field(default_factory=dict)
    """Host block -> what a block of ``kv`` held, by offset."""
    next_step_id: int = 0
    num_computed: int = 0
    """Tokens computed in all."""
    largest_step: int = 0
    """Tokens of the largest step."""

    def carry_out(self, plan: StepPlan) -> StepResult:
        assert plan.step_id == self.next_step_id
        self.next_step_id += 1
        self._move(plan)
        for slot in plan.released:
            del self.slots[slot]
        for admission in plan.admitted:
            self._admit(admission)
        assert len({work.slot for work in plan.work}) == len(plan.work), "a slot is planned twice"
        counts = {work.slot: count for work in plan.work if (count := self._begin(work))}
        guessed = {slot_id: self._guess(slot_id, count, plan.num_drafts) for slot_id, count in counts.items()}
        for (
            slot_id,
            count,
        ) in counts.items():  # as in a layer of the model: all write their KV before any reads
            self._write(self.slots[slot_id], count, guessed[slot_id])
        scored = [
            stretch
            for slot_id, count in counts.items()
            if (stretch := self._score(self.slots[slot_id], count)) is not None
        ]
        sampled = [
            token for slot_id, count in counts.items() if (token := self._sample(slot_id, count)) is not None
        ]
        more = self._sample_more({slot_id: guesses for slot_id, guesses in guessed.items() if guesses})
        num_tokens = sum(counts.values()) + sum(map(len, guessed.values()))
        self.num_computed += num_tokens
        self.largest_step = max(self.largest_step, num_tokens)
        lengths = [len(guesses) for guesses in guessed.values()]
        num_drafted = [sum(length > place for length in lengths) for place in range(max(lengths, default=0))]
        return StepResult(plan.step_id, sampled, 0.0, scored, more, num_drafted)

    def _move(self, plan: StepPlan) -> None:
        """Copy whole blocks to the host, then from there."""
        assert len({host_id for _, host_id in plan.swapped_out}) == len(plan.swapped_out), "moved out twice"
        assert len({block_id for block_id, _ in plan.swapped_in}) == len(plan.swapped_in), "moved in twice"
        for block_id, host_id in plan.swapped_out:
            self.host_kv[host_id] = [self.kv[block_id, offset] for offset in range(self.block_size)]
        for block_id, host_id in plan.swapped_in:
            self.kv |= {(block_id, offset): kv for offset, kv in enumerate(self.host_kv[host_id])}

    def _admit(self, admission: Admission) -> None:
        assert admission.slot not in self.slots, f"slot {admission.slot} is taken"
        grammar = admission.params.grammar
        assert grammar is None or grammar.key in self.grammars, "a grammar is not ready"
        self.slots[admission.slot] = _Slot(
            admission.seq_id,
            list(admission.token_ids),
            admission.num_computed_tokens,
            list(admission.block_table),
            admission.params,
            0
            if admission.params.prompt_logprobs is None
            or len(admission.token_ids) > admission.num_prompt_tokens
            else admission.num_prompt_tokens,
            min(admission.num_prompt_tokens + admission.params.max_tokens, self.max_model_len),
        )

    def _begin(self, work: SlotWork) -> int:
        """Take the blocks of a slot's work; returns the tokens to compute, 0 where it has all it may ever have."""
        slot = self.slots[work.slot]
        slot.block_table.extend(work.new_block_ids)
        num_known = len(slot.token_ids) - slot.num_computed
        if slot.has_failed:
            return 0
        if not slot.has_sampled:
            return work.num_tokens
        assert work.num_tokens <= num_known, "more tokens planned than there are"
        assert num_known == 1 or slot.params.forces_tokens, "what was guessed is not computed"
        return 0 if len(slot.token_ids) >= slot.most_tokens else num_known

    def _guess(self, slot_id: int, num_tokens: int, most: int) -> list[int]:
        """What is tried behind the tokens of a slot of which ``num_tokens`` are computed now."""
        slot = self.slots[slot_id]
        num_known = len(slot.token_ids)
        if slot.params.forces_tokens or slot.num_computed + num_tokens < num_known:
            return []
        room = min(len(slot.block_table) * self.block_size, slot.most_tokens) - num_known - 1
        return self.guesses(slot.token_ids)[: max(0, min(most, room))]

    def _write(self, slot: _Slot, num_tokens: int, guesses: list[int]) -> None:
        last = slot.num_computed + num_tokens
        assert 0 < num_tokens <= len(slot.token_ids) - slot.num_computed, "more tokens planned than there are"
        token_ids = slot.token_ids + guesses
        for position in range(slot.num_computed, last + len(guesses)):
            self.kv[self._place(slot, position)] = hash(tuple(token_ids[: position + 1]))

    @staticmethod
    def _score(slot: _Slot, num_tokens: int) -> PromptLogprobs | None:
        """The log probability of a token t is -t / 10, its rank t + 1; those of t + 1, t + 2, ... are -1, -2, ..."""
        start = slot.num_computed + 1
        token_ids = slot.token_ids[start : min(start + num_tokens, slot.num_to_score)]
        if not token_ids:
            return None
        num_top = slot.params.prompt_logprobs or 0
        return PromptLogprobs(
            slot.seq_id,
            start,
            array("f", [-token_id / 10 for token_id in token_ids]).tobytes(),
            array("i", [token_id + 1 + i for token_id in token_ids for i in range(num_top)]).tobytes(),
            array("f", [-1.0 - i for _ in token_ids for i in range(num_top)]).tobytes(),
            array("i", [token_id + 1 for token_id in token_ids]).tobytes(),
        )

    def _sample(self, slot_id: int, num_tokens: int) -> SampledToken | None:
        slot = self.slots[slot_id]
        slot.num_computed += num_tokens
        for position in range(slot.num_computed):
            found = self.kv.get(self._place(slot, position))
            assert found == hash(tuple(slot.token_ids[: position + 1])), (
                f"KV of position {position} is another's"
            )
        if slot.num_computed < len(slot.token_ids):
            return None
        slot.has_sampled = True
        if slot.params.forces_tokens and (failure := self.failure(slot.token_ids)):
            slot.has_failed = True
            return SampledToken(slot_id, slot.seq_id, 0, failure=failure)
        token_id = self.next_token(slot.token_ids)
        slot.token_ids.append(token_id)
        is_certain = self.is_certain(slot.token_ids)
        forced: list[int] = []
        if slot.params.forces_tokens:
            room = slot.most_tokens - len(slot.token_ids)
            forced = self.forced(slot.token_ids)[: min(room, MAX_FORCED_TOKENS)]
            slot.token_ids += forced
        return SampledToken(
            slot_id, slot.seq_id, token_id, self._logprobs(slot, token_id), is_certain, forced
        )

    def _sample_more(self, guessed: dict[int, list[int]]) -> list[list[SampledToken]]:
        """The tokens behind right guesses, in rounds; ``guessed`` by slot, of which each has sampled its token."""
        rounds = []
        for place in range(max(map(len, guessed.values()), default=0)):
            guessed = {
                slot_id: guesses
                for slot_id, guesses in guessed.items()
                if place < len(guesses) and self.slots[slot_id].token_ids[-1] == guesses[place]
            }
            found = [self._sample(slot_id, 1) for slot_id in guessed]
            rounds.append([sampled for sampled in found if sampled is not None])
        return [found for found in rounds if found]

    def _place(self, slot: _Slot, position: int) -> tuple[int, int]:
        return slot.block_table[position // self.block_size], position % self.block_size

    @staticmethod
    def _logprobs(slot: _Slot, token_id: int) -> TokenLogprobs | None:
        num_top = slot.params.logprobs
        if num_top is None:
            return None
        return TokenLogprobs(-0.5, [token_id + i for i in range(num_top)], [-0.5 - i for i in range(num_top)])


class FakeExecutor:
    """A FakeRank behind the Executor's face; every step takes ``step_s`` of the test's clock, every grammar
    ``grammar_s``."""

    def __init__(
        self, rank: FakeRank, *, num_blocks: int, num_host_blocks: int = 0, step_s: float = 0.01
    ) -> None:
        self.rank = rank
        self.step_s = step_s
        self.grammar_s = 0.1
        self.grammar_errors: dict[bytes, str] = {}
        """By key."""
        self.requests: list[GrammarRequest] = []
        """All that were submitted."""
        self.failure: EngineError | None = None
        """Set to make the next result fail."""
        self.num_stacks = 0
        self.ready = WorkerReady(
            tp_rank=0,
            num_blocks=num_blocks,
            load_s=0.0,
            kv_cache_bytes=0,
            weights_bytes=0,
            dtype="float32",
            attention="none",
            num_host_blocks=num_host_blocks,
        )
        self._plans: deque[StepPlan] = deque()
        self._planned = trio.Event()
        self._requested, self._unready = trio.open_memory_channel[GrammarRequest](math.inf)

    async def submit(self, plan: StepPlan) -> None:
        await trio.lowlevel.checkpoint()
        self._plans.append(plan)
        self._planned.set()

    async def result(self) -> StepResult:
        while not self._plans:
            await self._planned.wait()
            self._planned = trio.Event()
        await trio.sleep(self.step_s)
        if self.failure is not None:
            raise self.failure
        return self.rank.carry_out(self._plans.popleft())

    async def submit_grammar(self, request: GrammarRequest) -> None:
        await trio.lowlevel.checkpoint()
        self.requests.append(request)
        self._requested.send_nowait(request)

    async def grammar_ready(self) -> GrammarReady:
        request = await self._unready.receive()
        self.rank.grammars -= set(request.forgotten)
        await trio.sleep(self.grammar_s)
        key = request.grammar.key
        error = self.grammar_errors.get(key, "")
        if not error:
            self.rank.grammars.add(key)
        return GrammarReady(key, error)

    def write_stacks(self) -> None:
        self.num_stacks += 1


def works_of(*executors: FakeExecutor) -> Callable[[], AbstractAsyncContextManager[FakeExecutor]]:
    """Works that start with the first executor, then the second, and so on."""
    remaining = deque(executors)

    @asynccontextmanager
    async def start() -> AsyncIterator[FakeExecutor]:
        yield remaining.popleft()

    return start


def counting_up(token_ids: list[int]) -> int:
    """A next token that is easy to foresee: one more than the last."""
    return token_ids[-1] + 1


def mixing(token_ids: list[int]) -> int:
    """A next token that depends on every token before it."""
    return hash(tuple(token_ids)) % 1000
