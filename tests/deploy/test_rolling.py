"""Restarts under load, the short form: `python -m benchmarks.rolling` has the long one."""

from pathlib import Path

import pytest
import trio

from benchmarks.rolling import fronts, trial
from benchmarks.rolling.clients import Outcome
from benchmarks.rolling.trial import Plan, Result


def carry_out(front: str, folder: Path, *, kills: bool = False) -> Result:
    if not fronts.is_available(front):
        pytest.skip(f"no {front}")
    plan = Plan(
        front=front,
        num_replicas=2,
        num_restarts=2 if front == "handover" else 1,
        min_requests=200,
        num_streams=4,
        num_wholes=2,
        num_words=8,
        drain_delay_s=1.5,
        kills=kills,
    )
    return trio.run(trial.run, plan, folder, lambda result: None)


@pytest.mark.parametrize("front", fronts.FRONTS)
def test_a_rolling_restart_loses_nothing(front: str, tmp_path: Path) -> None:
    result = carry_out(front, tmp_path)
    assert result.num_requests >= 200
    assert result.failures == []
    assert result.num_duplicated == 0


def test_a_replica_that_is_killed_takes_only_its_own_requests_along(tmp_path: Path) -> None:
    result = carry_out("haproxy", tmp_path, kills=True)
    assert result.count(Outcome.WRONG) == 0
    assert result.num_elsewhere == 0
    assert len(result.failures) <= 6, "no more than there were clients"
