"""Steps that guess tokens: whatever is guessed, sequences get the tokens that they would get one by one."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import mixing
from tests.scheduler.scenes import Asked, asked, play
from tests.scheduler.test_scheduler import BLOCK_SIZE, House, expected, output
from trioserve.core.sampling import SamplingParams
from trioserve.core.sequence import FinishReason, Sequence, SequenceStatus

NUM_DRAFTS = 4


def guessing(num_right: Callable[[int], int], num_wrong: int = 0) -> Callable[[list[int]], list[int]]:
    """So many of the tokens that will come, by how many there are, and then some that will not."""

    def guesses(token_ids: list[int]) -> list[int]:
        tokens = list(token_ids)
        for _ in range(num_right(len(token_ids))):
            tokens.append(mixing(tokens))
        return tokens[len(token_ids) :] + [-1] * num_wrong

    return guesses


def make_house(
    guesses: Callable[[list[int]], list[int]],
    *,
    num_drafts: int = NUM_DRAFTS,
    max_drafting_seqs: int = 8,
    **limits: object,
) -> House:
    house = House(num_drafts=num_drafts, max_drafting_seqs=max_drafting_seqs, **limits)  # type: ignore[arg-type]  # the same names
    house.rank.guesses = guesses
    return house


ALWAYS_RIGHT = guessing(lambda length: NUM_DRAFTS)
NEVER_RIGHT = guessing(lambda length: 0, NUM_DRAFTS)


@settings(deadline=None, max_examples=200)
@given(
    scene=asked(stops=st.sampled_from([False, False, True])),
    num_right=st.lists(st.integers(0, 6), min_size=1, max_size=7),
    num_wrong=st.integers(0, 5),
    num_drafts=st.integers(1, 9),
    max_drafting_seqs=st.sampled_from([1, 2, 8]),
    num_blocks=st.sampled_from([8, 9, 12, 20, 64]),
    max_num_seqs=st.sampled_from([1, 3, 8]),
    max_num_batched_tokens=st.sampled_from([8, 16, 50]),
    depth=st.sampled_from([1, 2, 2, 3, 4]),
    enable_prefix_caching=st.booleans(),
)
def test_whatever_is_guessed_and_preempted_every_sequence_gets_its_own_tokens(
    scene: list[Asked],
    num_right: list[int],
    num_wrong: int,
    num_drafts: int,
    max_drafting_seqs: int,
    num_blocks: int,
    **limits: int,
) -> None:
    guesses = guessing(lambda length: num_right[length % len(num_right)], num_wrong)
    house = make_house(
        guesses, num_drafts=num_drafts, max_drafting_seqs=max_drafting_seqs, num_blocks=num_blocks, **limits
    )
    play(house, scene, num_blocks)
    assert house.rank.largest_step <= max(limits["max_num_batched_tokens"], 8 * 16), "of forced tokens"


@pytest.mark.parametrize("depth", [1, 2])
def test_right_guesses_take_no_steps_of_their_own(depth: int) -> None:
    house = make_house(ALWAYS_RIGHT, depth=depth)
    seq = house.add([1, 2, 3], max_tokens=41)
    house.drain()
    assert output(seq) == expected([1, 2, 3], 41)
    assert house.rank.next_step_id <= 1 + 8 + (
        depth - 1
    )  # the last was planned before it was known to be too many


def test_wrong_guesses_take_as_many_steps_as_none() -> None:
    house = make_house(NEVER_RIGHT)
    seq = house.add([1, 2, 3], max_tokens=20)
    house.drain()
    assert output(seq) == expected([1, 2, 3], 20)
    assert house.rank.next_step_id == 20


def test_nothing_is_guessed_beside_prompts_nor_in_steps_of_too_many() -> None:
    house = make_house(ALWAYS_RIGHT, max_drafting_seqs=2, depth=1)
    permitted = []
    for number in range(3):
        house.add([number] * 20, max_tokens=60)
        for _ in range(4):
            plan = house.scheduler.plan_step()
            assert plan is not None
            is_decode = all(work.num_tokens == 1 for work in plan.work)
            permitted.append((is_decode, len(plan.work), plan.num_drafts))
            for _ in house.scheduler.commit(house.rank.carry_out(plan)):
                pass
            house.scheduler.check_integrity()
    assert {num for is_decode, _, num in permitted if not is_decode} == {0}
    assert {(count, num) for is_decode, count, num in permitted if is_decode} == {(1, 4), (2, 4), (3, 0)}


def test_guesses_and_decodes_together_keep_to_the_budget_of_a_step() -> None:
    house = make_house(ALWAYS_RIGHT, num_drafts=9, max_num_batched_tokens=12, max_num_seqs=3, depth=1)
    seqs = [house.add([number], max_tokens=60) for number in range(3)]
    house.drain()
    assert house.rank.largest_step <= 12
    assert [output(seq) for seq in seqs] == [expected([number], 60) for number in range(3)]
    assert house.rank.next_step_id < 30


@pytest.mark.parametrize("num_blocks", [4, 5, 8])
def test_a_lone_sequence_fills_a_context_that_fills_all_blocks(num_blocks: int) -> None:
    house = make_house(ALWAYS_RIGHT, num_blocks=num_blocks)
    seq = house.add([1, 2, 3], max_tokens=10_000)
    house.drain()
    assert len(seq.token_ids) == num_blocks * BLOCK_SIZE
    assert (seq.finish_reason, house.scheduler.statistics().num_preemptions) == (FinishReason.LENGTH, 0)


def test_nobody_is_preempted_nor_waits_for_guesses() -> None:
    """Two sequences that have room for their answers and no block more: they take the steps of two without guesses."""
    steps = []
    for guesses in (NEVER_RIGHT, ALWAYS_RIGHT):
        house = make_house(guesses, num_blocks=8, max_num_batched_tokens=64)
        seqs = [house.add([number] * 9, max_tokens=7) for number in (1, 2)]
        house.drain()
        assert [seq.num_output_tokens for seq in seqs] == [7, 7]
        assert house.scheduler.statistics().num_preemptions == 0
        steps.append(house.rank.next_step_id)
    assert steps[0] == 7
    assert steps[1] < 7


def test_a_guess_that_ends_a_sequence_leaves_no_block_to_be_found_that_was_not_computed() -> None:
    """The last token fills a block, and the step that was planned to compute it computes nothing any more."""
    for max_tokens in range(1, 20):
        house = make_house(ALWAYS_RIGHT, depth=2)
        seq = house.add([1, 2, 3], max_tokens=max_tokens)
        house.drain()
        again = house.add([*seq.token_ids.tolist(), 9], max_tokens=1)
        house.drain()
        assert again.num_cached_tokens <= len(seq.token_ids) - 1


def test_blocks_of_guessed_tokens_are_found_by_others() -> None:
    house = make_house(ALWAYS_RIGHT)
    seq = house.add([1, 2, 3], max_tokens=38)
    house.drain()
    again = house.add([*seq.token_ids.tolist(), 9], max_tokens=1)
    house.drain()
    assert again.num_cached_tokens == 40


@pytest.mark.parametrize("depth", [1, 2])
def test_a_stop_token_among_right_guesses_ends_the_sequence_and_the_rest_is_dropped(depth: int) -> None:
    house = make_house(ALWAYS_RIGHT, depth=depth)
    tokens = expected([1, 2], 20)
    seq = Sequence([1, 2], SamplingParams(max_tokens=20, stop_token_ids=(tokens[8],)))
    house.scheduler.add(seq)
    house.drain()
    assert output(seq) == tokens[:9]
    assert (seq.finish_reason, seq.stop_reason) == (FinishReason.STOP, tokens[8])
    assert house.scheduler.statistics().num_free_blocks == 64


def test_a_sequence_that_is_finished_between_rounds_gets_no_more_tokens() -> None:
    house = make_house(ALWAYS_RIGHT, depth=1)
    seq = house.add([1, 2], max_tokens=30)
    house.step()
    plan = house.scheduler.plan_step()
    assert plan is not None
    for number, booked in enumerate(house.scheduler.commit(house.rank.carry_out(plan))):
        assert booked == [] or number <= 2
        if number == 2:
            house.scheduler.finish(seq, FinishReason.STOP)
    assert output(seq) == expected([1, 2], 4)
    house.scheduler.check_integrity()


def test_what_was_guessed_while_its_sequence_was_preempted_is_not_lost() -> None:
    house = make_house(ALWAYS_RIGHT, num_blocks=9, max_num_seqs=2, depth=3)
    seqs = [house.add([number] * 8, max_tokens=24) for number in (1, 2)]
    was_seen = False
    while house.step():
        waits = [seq for seq in seqs if seq.status is SequenceStatus.WAITING and seq.num_pending_drafts]
        was_seen |= bool(waits)
    assert was_seen
    assert [output(seq) for seq in seqs] == [expected([number] * 8, 24) for number in (1, 2)]


def test_where_nothing_was_guessed_the_next_plans_let_nobody_guess() -> None:
    house = make_house(guessing(lambda length: NUM_DRAFTS if length > 20 else 0), depth=1)
    house.add([1, 2, 3], max_tokens=60)
    permitted = []
    while (plan := house.scheduler.plan_step()) is not None:
        result = house.rank.carry_out(plan)
        permitted.append((plan.num_drafts, bool(result.num_drafted)))
        for _ in house.scheduler.commit(result):
            pass
    nothing, rest = (NUM_DRAFTS, False), (0, False)
    assert permitted[:10] == [rest, nothing, *[rest] * 7, nothing]
    assert permitted[-6:-1] == [(NUM_DRAFTS, True)] * 5
