"""Bounds on requests: at a time and a minute, of all and of each key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve.engine.permits import Bounds, Permits
from trioserve.errors import QueueFull, RateLimited


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_all_keys_share_the_bound_of_all() -> None:
    permits = Permits(Bounds(at_a_time=2), Clock())
    permits.take("a")
    permits.take("b")
    with pytest.raises(QueueFull, match=r"^2 requests are served, the limit is 2$"):
        permits.take("c")
    permits.give_back("a")
    permits.take("c")


def test_a_key_that_has_its_own_many_leaves_the_others_theirs() -> None:
    permits = Permits(Bounds(at_a_time_per_key=2), Clock())
    for _ in range(2):
        permits.take("a")
    with pytest.raises(QueueFull, match=r"^2 requests of this key are served, the limit is 2$"):
        permits.take("a")
    permits.take("b")
    permits.give_back("a")
    permits.take("a")
    assert permits.num_taken == 3


def test_a_minutes_requests_may_come_at_once_and_then_one_at_a_time() -> None:
    clock = Clock()
    permits = Permits(Bounds(per_minute=6), clock)
    rates = [permits.take("a") for _ in range(6)]
    assert [rate.remaining for rate in rates if rate] == [5, 4, 3, 2, 1, 0]
    assert rates[-1] is not None and rates[-1].reset_s == pytest.approx(60)
    with pytest.raises(RateLimited, match=r"^6 requests of this key came within a minute") as caught:
        permits.take("a")
    assert caught.value.retry_after_s == pytest.approx(10)
    assert permits.take("b") is not None
    clock.now += 9.9
    with pytest.raises(RateLimited):
        permits.take("a")
    clock.now += 0.2
    permits.take("a")
    with pytest.raises(RateLimited):
        permits.take("a")


def test_a_request_that_is_refused_takes_nothing() -> None:
    permits = Permits(Bounds(at_a_time=1, per_minute=2), Clock())
    permits.take("a")
    for _ in range(5):
        with pytest.raises(QueueFull):
            permits.take("a")
    permits.give_back("a")
    rate = permits.take("a")
    assert rate is not None and rate.remaining == 0


@given(
    limit=st.integers(1, 50),
    waits=st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=200),
)
def test_no_minute_has_more_than_twice_the_limit_and_none_is_refused_below_it(
    limit: int, waits: list[float]
) -> None:
    """What came at once after a quiet minute, and what a minute brings anew."""
    clock = Clock()
    permits = Permits(Bounds(per_minute=limit), clock)
    granted: list[float] = []
    asked: list[float] = []
    for wait in waits:
        clock.now += wait
        recent = [at for at in granted if at > clock.now - 60]
        asked.append(clock.now)
        try:
            permits.take("a")
        except RateLimited:
            assert len(recent) >= limit
        else:
            granted.append(clock.now)
            assert len(recent) + 1 <= 2 * limit


def test_keys_that_have_been_quiet_for_a_minute_are_forgotten() -> None:
    clock = Clock()
    permits = Permits(Bounds(per_minute=60), clock)
    for number in range(3000):
        permits.take(f"key {number}")
        permits.give_back(f"key {number}")
        clock.now += 0.1
    assert len(permits._full_at) < 1100
    assert permits.num_taken == 0 and not permits._taken
