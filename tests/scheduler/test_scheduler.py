"""The scheduler against a rank that checks every KV entry."""

import random
from collections import deque

import pytest

from tests.fakes import FakeRank, counting_up, mixing
from trioserve.core.sampling import EarlyStop, RepetitionDetection, SamplingParams
from trioserve.core.sequence import FinishReason, Sequence, SequenceStatus
from trioserve.core.step import StepPlan
from trioserve.errors import QueueFull
from trioserve.scheduler import scheduler as scheduler_module
from trioserve.scheduler.limits import SchedulerLimits
from trioserve.scheduler.scheduler import Scheduler

BLOCK_SIZE = 4


class House:
    """A scheduler and a rank, with as many steps in flight as the engine has."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 16,
        max_queued: int = 1000,
        depth: int = 2,
        next_token: object = mixing,
        enable_prefix_caching: bool = True,
        enable_chunked_prefill: bool = True,
        kv_cache_ratio: float | None = None,
        num_drafts: int = 0,
        max_drafting_seqs: int = 0,
        target_step_s: float | None = 0.0,
        num_host_blocks: int = 0,
        max_moved_blocks: int = 2,
    ) -> None:
        limits = SchedulerLimits(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=num_blocks * BLOCK_SIZE,
            max_num_queued_reqs=max_queued,
            max_num_queued_tokens=10_000,
            enable_prefix_caching=enable_prefix_caching,
            enable_chunked_prefill=enable_chunked_prefill,
            kv_cache_ratio=kv_cache_ratio,
            num_drafts=num_drafts,
            max_drafting_seqs=max_drafting_seqs,
            target_step_s=target_step_s,
            max_moved_blocks=max_moved_blocks,
        )
        self.scheduler = Scheduler(
            limits, num_blocks=num_blocks, block_size=BLOCK_SIZE, num_host_blocks=num_host_blocks
        )
        self.rank = FakeRank(BLOCK_SIZE, next_token, max_model_len=num_blocks * BLOCK_SIZE)  # type: ignore[arg-type]  # either of the two functions
        self.depth = depth
        self.in_flight: deque[StepPlan] = deque()
        self.order: list[int] = []
        """seq_ids in the order in which they finished."""

    def add(
        self,
        prompt: list[int],
        *,
        max_tokens: int = 8,
        priority: int = 0,
        salt: bytes = b"",
        owner: str = "",
    ) -> Sequence:
        seq = Sequence(
            prompt, SamplingParams(max_tokens=max_tokens), priority=priority, cache_salt=salt, owner=owner
        )
        self.scheduler.add(seq)
        return seq

    def step(self) -> bool:
        """Plan as far ahead as allowed, then book one result; False when there is nothing to do."""
        while len(self.in_flight) < self.depth and (plan := self.scheduler.plan_step()) is not None:
            self.in_flight.append(plan)
        if not self.in_flight:
            return False
        for booked in self.scheduler.commit(self.rank.carry_out(self.in_flight.popleft())):
            self.order += [seq.seq_id for seq, _ in booked if seq.status is SequenceStatus.FINISHED]
        self.scheduler.check_integrity()
        return True

    def drain(self) -> None:
        for _ in range(100_000):
            if not self.step():
                return
        raise AssertionError("the scheduler does not come to an end")


def expected(prompt: list[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(mixing(tokens))
    return tokens[len(prompt) :]


def output(seq: Sequence) -> list[int]:
    return seq.token_ids[seq.num_prompt_tokens :].tolist()


def test_a_sequence_gets_the_tokens_of_its_own_history() -> None:
    house = House()
    seq = house.add([1, 2, 3], max_tokens=10)
    house.drain()
    assert output(seq) == expected([1, 2, 3], 10)
    assert seq.finish_reason is FinishReason.LENGTH
    assert house.scheduler.statistics().num_free_blocks == 64


def test_a_long_prompt_is_cut_to_the_budget_and_decodes_go_on_beside_it() -> None:
    house = House(depth=1)
    decoding = house.add([1], max_tokens=50)
    house.step()
    long = house.add(list(range(100)), max_tokens=1)
    before = decoding.num_output_tokens
    steps = 0
    while long.status is not SequenceStatus.FINISHED:
        house.step()
        steps += 1
    assert house.rank.largest_step <= 16
    assert steps == 7  # 15 tokens of the prompt in each
    assert decoding.num_output_tokens - before == steps


def test_a_prompt_that_may_not_be_cut_waits_for_a_step_with_room_for_all_of_it() -> None:
    house = House(depth=1, enable_chunked_prefill=False)
    decoding = [house.add([i], max_tokens=6) for i in range(3)]
    house.step()
    whole = house.add(list(range(16)), max_tokens=1)
    behind = house.add([9], max_tokens=1)
    house.drain()
    assert house.rank.largest_step == 16
    assert house.order == [seq.seq_id for seq in [*decoding, whole, behind]]
    assert output(whole) == expected(list(range(16)), 1)


def test_without_cuts_prompts_share_a_step_as_far_as_they_fit_whole() -> None:
    house = House(depth=1, enable_chunked_prefill=False)
    for first in (10, 20, 30):
        house.add([first] * 7, max_tokens=1)
    house.step()
    assert house.rank.num_computed == 14
    house.drain()
    assert house.rank.num_computed == 21


def test_a_cached_beginning_counts_not_against_the_room_of_a_step() -> None:
    house = House(enable_chunked_prefill=False)
    prompt = list(range(16))
    house.add(prompt, max_tokens=1)
    house.drain()
    again = house.add([*prompt, 1, 2, 3], max_tokens=1)
    house.drain()
    assert again.num_cached_tokens == 16
    assert output(again) == expected([*prompt, 1, 2, 3], 1)


@pytest.mark.parametrize(("ratio", "num_admitted"), [(None, 7), (1.0, 8), (0.75, 6), (0.5, 4)])
def test_prompts_take_no_more_than_their_share_of_the_blocks(ratio: float | None, num_admitted: int) -> None:
    """Eight prompts of two blocks each at sixteen blocks."""
    house = House(
        num_blocks=16, max_num_batched_tokens=64, enable_prefix_caching=False, kv_cache_ratio=ratio, depth=1
    )
    for i in range(8):
        house.add([i] * 8, max_tokens=1)
    house.scheduler.plan_step()
    assert house.scheduler.statistics().num_running == num_admitted


def test_blocks_that_answers_hold_count_to_the_share_of_answers() -> None:
    house = House(num_blocks=16, enable_prefix_caching=False, kv_cache_ratio=0.5, depth=1)
    growing = house.add([1] * 4, max_tokens=33)
    while growing.num_output_tokens < 32:
        house.step()
    assert house.scheduler.statistics().num_free_blocks == 7  # one of the prompt, eight of the answer
    house.add([2] * 16, max_tokens=1)
    house.scheduler.plan_step()
    assert house.scheduler.statistics().num_running == 2


def test_a_prompt_larger_than_its_share_runs_alone() -> None:
    house = House(num_blocks=16, kv_cache_ratio=0.25)
    large, small = house.add(list(range(40)), max_tokens=4), house.add([7], max_tokens=4)
    house.drain()
    assert output(large) == expected(list(range(40)), 4)
    assert house.order == [large.seq_id, small.seq_id]


def test_equal_beginnings_are_computed_once() -> None:
    house = House(num_blocks=64)
    prompt = list(range(32))
    house.add(prompt, max_tokens=1)
    house.drain()
    assert house.rank.num_computed == 32
    again = house.add([*prompt[:24], 99], max_tokens=1)
    house.drain()
    assert again.num_cached_tokens == 24
    assert house.rank.num_computed == 33


def test_a_whole_prompt_in_the_cache_still_computes_its_last_token() -> None:
    house = House()
    for _ in range(2):
        seq = house.add(list(range(16)), max_tokens=3)
        house.drain()
    assert seq.num_cached_tokens == 12
    assert output(seq) == expected(list(range(16)), 3)


def test_prompts_that_arrive_together_share_their_beginning() -> None:
    house = House(max_num_batched_tokens=64)
    prompt = list(range(20))
    seqs = [house.add([*prompt, i], max_tokens=2) for i in range(6)]
    house.drain()
    assert house.rank.num_computed == 21 + 5 * 1 + 6 * 1
    assert [output(seq) for seq in seqs] == [expected([*prompt, i], 2) for i in range(6)]


def test_another_salt_shares_nothing() -> None:
    house = House()
    for salt in (b"one", b"two"):
        seq = house.add(list(range(16)), max_tokens=1, salt=salt)
        house.drain()
    assert seq.num_cached_tokens == 0


def test_the_prefix_cache_can_be_off() -> None:
    house = House(enable_prefix_caching=False)
    for _ in range(2):
        seq = house.add(list(range(16)), max_tokens=1)
        house.drain()
    assert seq.num_cached_tokens == 0 and house.rank.num_computed == 32


def test_first_come_first_served_within_a_priority() -> None:
    house = House(max_num_seqs=1, depth=1)
    first = house.add([1], max_tokens=2)
    house.step()
    late, urgent, later = house.add([2]), house.add([3], priority=-1), house.add([4])
    house.drain()
    assert house.order == [first.seq_id, urgent.seq_id, late.seq_id, later.seq_id]


def test_running_out_of_blocks_preempts_the_latest_and_loses_no_token() -> None:
    house = House(num_blocks=12, max_num_seqs=4)
    prompts = [[10 * i + j for j in range(6)] for i in range(4)]
    seqs = [house.add(prompt, max_tokens=30) for prompt in prompts]
    house.drain()
    assert house.scheduler.statistics().num_preemptions > 0
    assert [output(seq) for seq in seqs] == [expected(prompt, 30) for prompt in prompts]
    assert house.order[0] == seqs[0].seq_id


def test_a_stop_token_ends_the_sequence_and_what_is_on_its_way_is_dropped() -> None:
    house = House(next_token=counting_up)
    seq = Sequence([1], SamplingParams(max_tokens=20, stop_token_ids=(5,)))
    house.scheduler.add(seq)
    house.drain()
    assert output(seq) == [2, 3, 4, 5]
    assert (seq.finish_reason, seq.stop_reason) == (FinishReason.STOP, 5)


def test_the_context_ends_a_sequence_with_length() -> None:
    house = House(num_blocks=4)
    seq = house.add([1, 2, 3], max_tokens=1000)
    house.drain()
    assert len(seq.token_ids) == 16
    assert seq.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("when", range(6))
def test_aborting_frees_everything_whenever_it_comes(when: int) -> None:
    house = House(max_num_seqs=2)
    seqs = [house.add(list(range(10 * i, 10 * i + 9)), max_tokens=20) for i in range(4)]
    for _ in range(when):
        house.step()
    for seq in seqs:
        house.scheduler.finish(seq, FinishReason.ABORT)
        house.scheduler.finish(seq, FinishReason.ABORT)
    house.drain()
    statistics = house.scheduler.statistics()
    assert (statistics.num_running, statistics.num_waiting, statistics.num_waiting_tokens) == (0, 0, 0)
    assert statistics.num_free_blocks == statistics.num_blocks


def test_the_line_is_bounded_in_sequences_and_tokens() -> None:
    house = House(max_num_seqs=1, max_queued=2)
    house.add([1], max_tokens=100)
    house.step()
    house.scheduler.check(50, 50)  # an empty line takes any one request
    house.add([2])
    house.scheduler.check(1, 1)
    with pytest.raises(QueueFull, match="the limit is 10000"):
        house.scheduler.check(1, 10_000)
    house.add([3])
    with pytest.raises(QueueFull, match="2 sequences are waiting, the limit is 2"):
        house.scheduler.check(1, 1)


@pytest.mark.parametrize("seed", range(40))
def test_random_traffic_gets_the_right_tokens_and_leaves_nothing_behind(seed: int) -> None:
    rng = random.Random(seed)
    num_blocks = rng.choice([8, 16, 40])
    house = House(
        num_blocks=num_blocks,
        max_num_seqs=rng.choice([2, 5, 9]),
        max_num_batched_tokens=rng.choice([9, 16, 50]),
        depth=rng.choice([1, 2, 3]),
    )
    live: list[tuple[Sequence, list[int]]] = []
    for _ in range(300):
        if rng.random() < 0.3:
            prompt = [rng.randrange(2) for _ in range(rng.randint(1, num_blocks * BLOCK_SIZE - 1))]
            params = SamplingParams(
                max_tokens=rng.randint(1, 20), prompt_logprobs=rng.choice([None, None, 1])
            )
            seq = Sequence(prompt, params, priority=rng.choice([0, 0, 0, -1]))
            house.scheduler.add(seq)
            live.append((seq, prompt))
        if live and rng.random() < 0.05:
            house.scheduler.finish(rng.choice(live)[0], FinishReason.ABORT)
        house.step()
    house.drain()
    for seq, prompt in live:
        room = min(seq.params.max_tokens, num_blocks * BLOCK_SIZE - len(prompt))
        assert output(seq) == expected(prompt, seq.num_output_tokens)
        assert seq.finish_reason is FinishReason.ABORT or seq.num_output_tokens == room
    assert house.scheduler.statistics().num_free_blocks == num_blocks


def test_a_prompt_that_is_scored_is_computed_whole_and_found_by_others() -> None:
    house = House()
    prompt = list(range(16))
    house.add(prompt, max_tokens=1)
    house.drain()
    seq = Sequence(prompt, SamplingParams(max_tokens=3, prompt_logprobs=0))
    house.scheduler.add(seq)
    house.drain()
    assert (seq.num_cached_tokens, house.rank.num_computed) == (0, 16 + 16 + 2)
    other = Sequence([*range(50, 66)], SamplingParams(max_tokens=1, prompt_logprobs=0))
    house.scheduler.add(other)
    house.drain()
    found = house.add([*range(50, 66)], max_tokens=1)
    house.drain()
    assert found.num_cached_tokens == 12


def test_once_it_has_output_a_scored_sequence_comes_back_through_the_cache() -> None:
    house = House(num_blocks=12, max_num_seqs=2, depth=1)
    first = house.add([1, 2, 3, 4, 5], max_tokens=40)
    seq = Sequence([7] * 9, SamplingParams(max_tokens=24, prompt_logprobs=0))
    house.scheduler.add(seq)
    house.drain()
    assert house.scheduler.statistics().num_preemptions > 0
    assert output(seq) == expected([7] * 9, 24)
    assert output(first) == expected([1, 2, 3, 4, 5], 40)


def test_a_plan_admits_no_more_ids_than_a_frame_can_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "_MAX_ADMITTED_IDS", 100)
    house = House(max_num_batched_tokens=64)
    biased = SamplingParams(max_tokens=1, logit_bias=tuple((i, 1.0) for i in range(60)))
    for _ in range(3):
        house.scheduler.add(Sequence([1], biased))
    huge = Sequence([1], SamplingParams(max_tokens=1, allowed_token_ids=tuple(range(1000))))
    house.scheduler.add(huge)
    admitted = []
    while (plan := house.scheduler.plan_step()) is not None:
        admitted.append(len(plan.admitted))
        list(house.scheduler.commit(house.rank.carry_out(plan)))
    assert admitted == [1, 1, 1, 1], (
        "61 ids each, of 100; and the one that alone is more may enter all the same"
    )


@pytest.mark.parametrize("depth", [1, 2])
def test_a_pattern_ends_a_sequence_and_what_is_on_its_way_is_dropped(depth: int) -> None:
    house = House(next_token=lambda token_ids: 40 + len(token_ids) % 3, depth=depth)
    seq = Sequence([1, 2], SamplingParams(max_tokens=50, repetition_detection=RepetitionDetection(5, 2, 4)))
    house.scheduler.add(seq)
    house.drain()
    assert seq.num_output_tokens == 12
    assert (seq.finish_reason, seq.stop_reason) == (FinishReason.REPETITION, "repetition_detected")


def test_the_operators_early_stop_ends_a_sequence_with_stop() -> None:
    house = House()
    house.rank.is_certain = lambda token_ids: len(token_ids) > 10
    seq = Sequence([1, 2], SamplingParams(max_tokens=50, early_stop=EarlyStop(7, 0.9)))
    house.scheduler.add(seq)
    house.drain()
    assert seq.num_output_tokens == 15  # up to 10 tokens in all it is in doubt, then come seven
    assert (seq.finish_reason, seq.stop_reason) == (FinishReason.STOP, "repetition_detected")
    assert house.scheduler.statistics().num_free_blocks == 64


def test_who_is_held_counts_as_waiting_and_is_planned_at_its_old_place_once_it_is_added() -> None:
    house = House(max_num_seqs=1)
    held, gone = (Sequence([i, 1], SamplingParams(max_tokens=2)) for i in range(2))
    for seq in (held, gone):
        house.scheduler.hold(seq)
    statistics = house.scheduler.statistics()
    assert (statistics.num_waiting, statistics.num_waiting_tokens) == (2, 4)
    assert house.scheduler.plan_step() is None
    house.scheduler.finish(gone, FinishReason.ABORT)
    late = house.add([7])
    house.scheduler.add(held)
    assert house.scheduler.statistics().num_waiting_tokens == 3
    house.drain()
    assert house.order == [held.seq_id, late.seq_id]
    assert house.scheduler.statistics().num_waiting == 0
