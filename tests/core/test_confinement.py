"""Work on what clients sent gives way to everybody else."""

import os
import threading
import time

import pytest

from trioserve.core.confinement import run_behind
from trioserve.errors import InvalidGrammar


def schedulers_during(cpu_s: float) -> set[int]:
    """The scheduling policies of this thread while it uses so much CPU."""
    seen = set()
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        seen.add(os.sched_getscheduler(threading.get_native_id()))
    return seen


def test_short_work_is_scheduled_as_usual() -> None:
    assert run_behind(lambda: schedulers_during(0.005)) == {os.SCHED_OTHER}


def test_long_work_goes_on_where_nobody_else_wants_to() -> None:
    assert run_behind(lambda: schedulers_during(0.3)) == {os.SCHED_OTHER, os.SCHED_IDLE}
    assert os.sched_getscheduler(threading.get_native_id()) == os.SCHED_OTHER, "the caller is what it was"
    assert run_behind(lambda: schedulers_during(0.005)) == {os.SCHED_OTHER}, "and so is the next work"


def test_what_the_work_raises_is_raised() -> None:
    def fail() -> None:
        raise InvalidGrammar("it is broken")

    with pytest.raises(InvalidGrammar, match="it is broken"):
        run_behind(fail)
