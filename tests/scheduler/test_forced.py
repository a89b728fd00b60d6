"""Steps that add several tokens: whatever is forced, sequences get the tokens they would get one by one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import mixing
from tests.scheduler.scenes import BUDGET, Asked, asked, play
from tests.scheduler.test_scheduler import BLOCK_SIZE, House, expected, output
from trioserve.core.sampling import MAX_FORCED_TOKENS, Grammar, SamplingParams
from trioserve.core.sequence import FinishReason, Sequence, SequenceStatus
from trioserve.core.step import StepPlan

GRAMMAR = Grammar("any", "text", b"key")


def forcing(num_forced: int, *, every: int = 1) -> object:
    """As many tokens of a sequence's own history after every so many-th length of it."""

    def forced(token_ids: list[int]) -> list[int]:
        if len(token_ids) % every:
            return []
        tokens = list(token_ids)
        for _ in range(num_forced):
            tokens.append(mixing(tokens))
        return tokens[len(token_ids) :]

    return forced


def make_house(num_forced: int = 3, *, every: int = 1, **limits: object) -> House:
    house = House(**limits)  # type: ignore[arg-type]  # the same names
    house.rank.forced = forcing(num_forced, every=every)  # type: ignore[assignment]
    return house


def add(house: House, prompt: list[int], **params: object) -> Sequence:
    given_params = {"max_tokens": 30, "thinking": BUDGET, **params}
    seq = Sequence(prompt, SamplingParams(**given_params))  # type: ignore[arg-type]  # any field
    house.scheduler.add(seq)
    return seq


def num_steps(house: House) -> int:
    return house.rank.next_step_id


@settings(deadline=None, max_examples=150)
@given(
    scene=asked(forces=st.booleans(), scores=st.booleans()),
    num_forced=st.integers(0, MAX_FORCED_TOKENS + 3),
    every=st.integers(1, 5),
    num_blocks=st.sampled_from([8, 9, 12, 20, 64]),
    max_num_seqs=st.sampled_from([1, 3, 8]),
    max_num_batched_tokens=st.sampled_from([8, 16, 50]),
    depth=st.sampled_from([1, 2, 2, 3]),
    enable_prefix_caching=st.booleans(),
)
def test_whatever_is_forced_and_preempted_every_sequence_gets_its_own_tokens(
    scene: list[Asked], num_forced: int, every: int, num_blocks: int, **limits: int
) -> None:
    house = make_house(num_forced, every=every, num_blocks=num_blocks, **limits)
    play(house, scene, num_blocks)


@pytest.mark.parametrize("depth", [1, 2])
def test_forced_tokens_take_no_steps_of_their_own(depth: int) -> None:
    house = make_house(3, depth=depth)
    seq = add(house, [1, 2, 3], max_tokens=40)
    house.drain()
    assert output(seq) == expected([1, 2, 3], 40)
    assert num_steps(house) <= 10 + 1  # the last was planned before it was known to be too many


@pytest.mark.parametrize("depth", [1, 2])
def test_every_token_is_computed_once(depth: int) -> None:
    house = make_house(MAX_FORCED_TOKENS, depth=depth)
    add(house, [1, 2, 3], max_tokens=49)
    house.drain()
    assert house.rank.num_computed == 3 + 3 * 16  # the 49th is the last of all


def test_what_was_forced_is_computed_at_once_however_little_a_step_may_take() -> None:
    house = make_house(7, depth=1, max_num_batched_tokens=8, max_num_seqs=2)
    seqs = [add(house, [i], max_tokens=33) for i in range(2)]
    house.step()
    plan = house.scheduler.plan_step()
    assert plan is not None and [work.num_tokens for work in plan.work] == [8, 8]
    house.in_flight.append(plan)
    late = add(house, [5], max_tokens=1)
    house.drain()
    assert house.order[-1] == late.seq_id, "there is no room for prompts beside so many"
    assert [output(seq) for seq in seqs] == [expected([i], 33) for i in range(2)]


def test_a_sequence_that_may_force_tokens_and_does_not_holds_few_blocks_more() -> None:
    house = make_house(0)
    seq = add(house, [1], max_tokens=100)
    house.step()
    house.step()
    most = len(seq.token_ids) + 1 + 1 + MAX_FORCED_TOKENS
    assert len(seq.block_table) <= -(-most // BLOCK_SIZE)


@pytest.mark.parametrize("num_forced", [1, 5, MAX_FORCED_TOKENS])
@pytest.mark.parametrize("num_blocks", [4, 5, 8])
def test_a_lone_sequence_fills_a_context_that_fills_all_blocks(num_forced: int, num_blocks: int) -> None:
    house = make_house(num_forced, num_blocks=num_blocks)
    seq = add(house, [1, 2, 3], max_tokens=10_000)
    house.drain()
    assert len(seq.token_ids) == num_blocks * BLOCK_SIZE
    assert (seq.finish_reason, house.scheduler.statistics().num_preemptions) == (FinishReason.LENGTH, 0)


def test_nobody_is_preempted_for_tokens_that_may_not_come() -> None:
    house = make_house(0, num_blocks=8, max_num_batched_tokens=64)
    first = add(house, [1] * 9, max_tokens=20)
    other = house.add([2] * 18, max_tokens=2)  # the two have all of the blocks now
    house.drain()
    assert [first.num_output_tokens, other.num_output_tokens] == [20, 2]
    assert house.scheduler.statistics().num_preemptions == 0


def test_many_sequences_in_few_blocks_come_to_their_end_the_first_of_them_first() -> None:
    house = make_house(5, num_blocks=12, max_num_seqs=6)
    prompts = [[10 * i + j for j in range(6)] for i in range(6)]
    seqs = [add(house, prompt, max_tokens=40) for prompt in prompts]
    house.drain()
    assert house.scheduler.statistics().num_preemptions > 0
    assert [output(seq) for seq in seqs] == [expected(prompt, 40) for prompt in prompts]
    assert house.order[0] == seqs[0].seq_id
    assert num_steps(house) < 6 * 40


@pytest.mark.parametrize("depth", [1, 2])
def test_a_stop_token_that_is_forced_ends_the_sequence_and_the_rest_is_dropped(depth: int) -> None:
    house = make_house(6, depth=depth)
    tokens = expected([1, 2], 20)
    seq = add(house, [1, 2], stop_token_ids=(tokens[9],))
    house.drain()
    assert output(seq) == tokens[:10]
    assert (seq.finish_reason, seq.stop_reason) == (FinishReason.STOP, tokens[9])
    assert house.scheduler.statistics().num_free_blocks == 64


@pytest.mark.parametrize(("grammar", "num_tokens"), [(GRAMMAR, 4), (None, 12)])
def test_only_a_grammar_ends_a_sequence_before_its_least_tokens(
    grammar: Grammar | None, num_tokens: int
) -> None:
    house = make_house(2)
    house.rank.grammars.add(GRAMMAR.key)
    tokens = expected([1, 2], 20)
    seq = add(house, [1, 2], min_tokens=8, max_tokens=12, grammar=grammar, stop_token_ids=(tokens[3],))
    house.drain()
    assert output(seq) == tokens[:num_tokens]


def test_a_sequence_that_is_finished_between_rounds_gets_no_more_tokens() -> None:
    house = make_house(5, depth=1)
    seq = add(house, [1, 2], max_tokens=30)
    plan = house.scheduler.plan_step()
    assert isinstance(plan, StepPlan)
    for number, booked in enumerate(house.scheduler.commit(house.rank.carry_out(plan))):
        assert booked == [] or number <= 2
        if number == 2:
            house.scheduler.finish(seq, FinishReason.STOP)
    assert output(seq) == expected([1, 2], 3)
    house.scheduler.check_integrity()


def test_rounds_hold_a_token_of_each_sequence_at_most() -> None:
    house = make_house(3, every=2, depth=1, max_num_batched_tokens=64)
    odd, even = add(house, [1, 2]), add(house, [1])
    plain = house.add([4])
    plan = house.scheduler.plan_step()
    assert plan is not None
    rounds = [[seq for seq, _ in booked] for booked in house.scheduler.commit(house.rank.carry_out(plan))]
    assert rounds == [[odd, even, plain], [even], [even], [even]]


def test_what_was_forced_while_its_sequence_was_preempted_is_not_lost() -> None:
    house = make_house(2, num_blocks=9, max_num_seqs=2, depth=3)
    first, second = house.add([1] * 8, max_tokens=24), add(house, [2] * 8, max_tokens=24)
    was_seen = False
    while house.step():
        was_seen |= second.status is SequenceStatus.WAITING and second.num_pending_tokens > 0
    assert was_seen
    assert [output(first), output(second)] == [expected([1] * 8, 24), expected([2] * 8, 24)]
