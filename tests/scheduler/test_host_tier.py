"""Prefixes move to host memory and back: a block that is found holds what was computed, in whichever tier it was."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import FakeRank, mixing
from tests.scheduler.scenes import Asked, asked, play
from tests.scheduler.test_scheduler import BLOCK_SIZE, House, expected, output
from trioserve.core.sequence import Sequence
from trioserve.core.step import StepPlan, StepResult
from trioserve.scheduler.host_tier import MAX_MOVED_BYTES, max_moved_blocks


@dataclass
class Recorder(FakeRank):
    """A rank that keeps every plan."""

    plans: list[StepPlan] = field(default_factory=list)

    def carry_out(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        return super().carry_out(plan)


class Watched(House):
    """A house whose plans can be looked at."""

    def __init__(self, **limits: object) -> None:
        super().__init__(**limits)  # type: ignore[arg-type]  # the same names
        rank = Recorder(BLOCK_SIZE, mixing, max_model_len=self.rank.max_model_len)
        self.rank, self.plans = rank, rank.plans

    def run(self, prompt: list[int], *, max_tokens: int = 2) -> Sequence:
        """A sequence from its beginning to its end, alone."""
        seq = self.add(prompt, max_tokens=max_tokens)
        self.drain()
        assert output(seq) == expected(prompt, max_tokens)
        return seq


def prompt_of(number: int, num_blocks: int) -> list[int]:
    """Tokens that fill ``num_blocks`` and one more."""
    return [number] * (num_blocks * BLOCK_SIZE + 1)


@settings(deadline=None, max_examples=300)
@given(
    scene=asked(stops=st.sampled_from([False, False, True]), scores=st.sampled_from([False, False, True])),
    num_blocks=st.sampled_from([8, 9, 12, 20]),
    num_host_blocks=st.sampled_from([1, 2, 7, 30, 200]),
    max_moved_blocks=st.sampled_from([1, 2, 5, 100]),
    max_num_seqs=st.sampled_from([1, 3, 8]),
    max_num_batched_tokens=st.sampled_from([8, 16, 50]),
    depth=st.sampled_from([1, 2, 3]),
    num_drafts=st.sampled_from([0, 0, 3]),
)
def test_whatever_moves_every_sequence_gets_its_own_tokens(
    scene: list[Asked],
    num_blocks: int,
    num_host_blocks: int,
    max_moved_blocks: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    depth: int,
    num_drafts: int,
) -> None:
    house = Watched(
        num_blocks=num_blocks,
        num_host_blocks=num_host_blocks,
        max_moved_blocks=max_moved_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        depth=depth,
        num_drafts=num_drafts,
        max_drafting_seqs=8,
    )
    play(house, scene, num_blocks)
    for plan in house.plans:
        admitted = {admission.slot for admission in plan.admitted}
        assert len(plan.swapped_out) <= max_moved_blocks
        if {work.slot for work in plan.work} - admitted:
            assert len(plan.swapped_in) <= max_moved_blocks
    statistics = house.scheduler.statistics()
    assert statistics.num_cached_host_blocks <= num_host_blocks
    assert statistics.num_swapped_out == sum(len(plan.swapped_out) for plan in house.plans)
    assert statistics.num_swapped_in == sum(len(plan.swapped_in) for plan in house.plans)


def test_a_prompt_whose_blocks_were_taken_is_found_at_the_host() -> None:
    house = Watched(num_blocks=8, num_host_blocks=32, max_moved_blocks=32)
    first = house.run(prompt_of(1, 6))
    assert first.num_cached_tokens == 0
    house.run(prompt_of(2, 6))
    again = house.run(prompt_of(1, 6))
    assert again.num_cached_tokens == 6 * BLOCK_SIZE
    assert house.scheduler.statistics().num_swapped_in >= 4
    assert house.rank.num_computed == 2 * (6 * BLOCK_SIZE + 2) + 2


def test_without_host_blocks_the_same_prompt_is_computed_again_and_nothing_moves() -> None:
    house = Watched(num_blocks=8)
    for number in (1, 2, 1):
        house.run(prompt_of(number, 6))
    assert house.rank.num_computed >= 3 * (6 * BLOCK_SIZE + 2) - 2 * BLOCK_SIZE
    assert [plan for plan in house.plans if plan.swapped_out or plan.swapped_in] == []


def test_what_came_back_is_not_copied_to_the_host_again() -> None:
    house = Watched(num_blocks=8, num_host_blocks=32, max_moved_blocks=32)
    for _ in range(4):
        for number in (1, 2, 3):
            house.run(prompt_of(number, 6))
    copied = [host_id for plan in house.plans for _, host_id in plan.swapped_out]
    assert len(copied) == len(set(copied)) == 3 * 6


def test_the_host_forgets_what_was_used_longest_ago() -> None:
    house = Watched(num_blocks=8, num_host_blocks=7, max_moved_blocks=32)
    for number in (1, 2, 3):
        house.run(prompt_of(number, 6))
    assert house.run(prompt_of(2, 6)).num_cached_tokens >= 4 * BLOCK_SIZE
    assert house.run(prompt_of(1, 6)).num_cached_tokens == 0


def test_a_preempted_sequence_finds_its_blocks_instead_of_computing_them_again() -> None:
    num_computed = {}
    for num_host_blocks in (0, 64):
        house = Watched(num_blocks=16, num_host_blocks=num_host_blocks, max_num_seqs=2, max_moved_blocks=64)
        seqs = [house.add([number] * 24, max_tokens=30) for number in (1, 2)]
        house.drain()
        assert [output(seq) for seq in seqs] == [expected([number] * 24, 30) for number in (1, 2)]
        assert house.scheduler.statistics().num_preemptions > 0
        num_computed[num_host_blocks] = house.rank.num_computed
    assert num_computed[0] - num_computed[64] >= 4 * BLOCK_SIZE


def test_beside_others_a_long_prefix_comes_back_in_parts_and_all_of_it() -> None:
    house = Watched(num_blocks=24, num_host_blocks=64, max_moved_blocks=3, max_num_batched_tokens=64)
    house.run(prompt_of(1, 12))
    for number in (2, 3, 4):  # a few blocks of each plan get to the host
        house.run(prompt_of(number, 1), max_tokens=60)
    decoding = house.add([7], max_tokens=30)
    for _ in range(4):
        house.step()
    house.plans.clear()
    again = house.add(prompt_of(1, 12), max_tokens=2)
    house.drain()
    moved = [len(plan.swapped_in) for plan in house.plans if plan.swapped_in]
    assert moved[:-1] == [3] * (len(moved) - 1)
    assert len(moved) > 1
    assert again.num_cached_tokens == 12 * BLOCK_SIZE
    assert (output(again), output(decoding)) == (expected(prompt_of(1, 12), 2), expected([7], 30))


def test_a_prefix_of_many_blocks_is_copied_ahead_so_that_a_long_prompt_drives_out_nothing() -> None:
    house = Watched(num_blocks=40, num_host_blocks=64, max_moved_blocks=1, max_num_batched_tokens=64)
    house.run(prompt_of(1, 6))
    house.run(prompt_of(2, 1), max_tokens=130)  # in steps that take little
    house.run(prompt_of(3, 38), max_tokens=1)  # takes all blocks at once, and may copy one
    assert house.run(prompt_of(1, 6)).num_cached_tokens == 6 * BLOCK_SIZE


def test_scored_prompts_take_nothing_from_the_host() -> None:
    house = Watched(num_blocks=8, num_host_blocks=32, max_moved_blocks=32)
    for number in (1, 2):
        house.run(prompt_of(number, 6))
    house.plans.clear()
    asked = Asked(prompt_of(1, 6), 2, False, 0, 0, 10**9, False, True)
    seq = Sequence(asked.prompt, asked.params())
    house.scheduler.add(seq)
    house.drain()
    assert output(seq) == expected(asked.prompt, 2)
    assert [plan.swapped_in for plan in house.plans if plan.swapped_in] == []


@pytest.mark.parametrize(
    ("bytes_per_block", "blocks"), [(2 << 20, 64), (MAX_MOVED_BYTES + 1, 1), (0, MAX_MOVED_BYTES)]
)
def test_a_step_moves_so_many_blocks_as_the_bus_copies_in_a_few_milliseconds(
    bytes_per_block: int, blocks: int
) -> None:
    assert max_moved_blocks(bytes_per_block) == blocks
