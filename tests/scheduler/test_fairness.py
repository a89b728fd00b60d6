"""Owners take turns: who has asked for much does not keep out who asks for little."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.scheduler.test_scheduler import House
from trioserve.core.sampling import SamplingParams
from trioserve.core.sequence import Sequence, SequenceStatus
from trioserve.scheduler.waiting import WaitingLine


def waiting(owner: str, priority: int = 0) -> Sequence:
    return Sequence([1], SamplingParams(max_tokens=1), priority=priority, owner=owner)


def test_one_request_does_not_wait_for_a_thousand_of_another_key() -> None:
    house = House(max_num_seqs=4, max_queued=2000, num_blocks=64)
    many = [house.add([1, 2], max_tokens=2, owner="many") for _ in range(1000)]
    for _ in range(20):
        house.step()
    num_done = sum(seq.status is SequenceStatus.FINISHED for seq in many)
    assert 0 < num_done < 100
    single = house.add([1, 2], max_tokens=2, owner="single")
    while single.status is SequenceStatus.WAITING:
        house.step()
    num_before = sum(seq.status is not SequenceStatus.WAITING for seq in many) - num_done
    assert num_before <= 4 + 4 + 1, "those that ran, those planned meanwhile, and the one whose turn it was"


@given(st.lists(st.sampled_from("abc"), max_size=60), st.integers(1, 5))
def test_whoever_comes_waits_for_one_of_each_other_owner_for_each_of_his_own(
    owners: list[str], served_between: int
) -> None:
    line = WaitingLine(1000, 10_000)
    ahead: dict[int, Counter[str]] = {}
    """Who was served since a sequence came, by its id."""
    own: dict[int, int] = {}
    """How many of its owner waited when it came, itself included."""
    present: list[Sequence] = []
    for number, owner in enumerate([*owners, *["a"] * 60]):
        if number < len(owners):
            seq = waiting(owner)
            present.append(seq)
            own[seq.seq_id] = sum(other.owner == owner for other in present)
            ahead[seq.seq_id] = Counter()
            line.push(seq)
        if number % served_between and number < len(owners):
            continue
        if line.peek() is None:
            continue
        served = line.pop()
        present.remove(served)
        for other in "abc":
            if other != served.owner:
                assert ahead[served.seq_id][other] <= own[served.seq_id] + 1
        assert ahead[served.seq_id][served.owner] == own[served.seq_id] - 1, "first come first served"
        for seq in present:
            ahead[seq.seq_id][served.owner] += 1


def test_a_lower_priority_waits_whoever_it_is_of() -> None:
    line = WaitingLine(1000, 10_000)
    late, first, second = waiting("a", 1), waiting("b"), waiting("b")
    for seq in (late, first, second):
        line.push(seq)
    assert [line.pop() for _ in range(3)] == [first, second, late]


def test_a_preempted_sequence_is_back_before_all_that_came_after_it() -> None:
    line = WaitingLine(1000, 10_000)
    first = waiting("a")
    line.push(first)
    assert line.pop() is first
    for _ in range(3):
        line.push(waiting("a"))
        line.push(waiting("b"))
    line.pop()
    line.push(first)
    assert line.peek() is first


def test_who_asks_for_one_after_the_other_does_not_pass_those_who_wait() -> None:
    line = WaitingLine(1000, 10_000)
    for _ in range(4):
        line.push(waiting("many"))
    order = []
    for _ in range(8):
        line.push(waiting("quick"))
        order.append(line.pop().owner)
    assert order == ["many", "quick"] * 4


def test_who_gave_up_his_requests_is_not_held_to_their_turns() -> None:
    line = WaitingLine(1000, 10_000)
    dropped = [waiting("a") for _ in range(100)]
    for seq in [*dropped, *(waiting("b") for _ in range(10))]:
        line.push(seq)
    for seq in dropped:
        line.discard(seq)
    again = waiting("a")
    line.push(again)
    assert again in [line.pop() for _ in range(3)]


def test_nothing_is_kept_of_owners_who_have_left() -> None:
    line = WaitingLine(1000, 10_000)
    for number in range(100):
        line.push(waiting(f"key {number}", priority=number))
    while len(line):
        line.pop()
    assert line._priorities == {}
