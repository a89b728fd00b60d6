"""What is said while the works load, and ranks that load before anyone runs them."""

import io
import logging
import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from trioserve.core.step import LoadProgress
from trioserve.engine.checkpoint import open_model
from trioserve.engine.lifecycle import Lifecycle
from trioserve.engine.works import ProgressReport, Works
from trioserve.settings import Settings


async def test_a_log_has_a_line_now_and_then_and_none_for_a_small_checkpoint(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("trioserve"), "propagate", True)
    caplog.set_level(logging.INFO, "trioserve")
    report = ProgressReport(Lifecycle(), terminal=None)
    report(LoadProgress(10, 10))
    assert not caplog.messages
    report = ProgressReport(Lifecycle(), terminal=None)
    for done in range(0, 101, 2):
        report(LoadProgress(done * 10**8, 10**10))
        await trio.sleep(0.1)
    assert len(caplog.messages) == 2
    assert caplog.messages[0] == "loading weights [############                  ]  40% of 10.00 GB"


async def test_a_terminal_has_a_bar_that_is_gone_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    terminal = io.StringIO()
    report = ProgressReport(Lifecycle(), terminal)
    for done in (0, 5, 10):
        report(LoadProgress(done * 10**8, 10**9))
    lines = terminal.getvalue().split("\r\x1b[K")
    assert lines[2] == "loading weights [###############               ]  50% of 1.00 GB"
    assert lines[-1] == ""
    assert "\n" not in terminal.getvalue()


async def test_a_bar_tells_of_graphs_once_the_weights_are_there() -> None:
    terminal, lifecycle = io.StringIO(), Lifecycle()
    report = ProgressReport(lifecycle, terminal)
    for done in (0, 1, 4):
        report(LoadProgress(10**9, 10**9, num_graphs=done, total_graphs=4))
    lines = terminal.getvalue().split("\r\x1b[K")
    assert lines[2] == "capturing graphs [#######                       ] 1 of 4"
    assert lines[-1] == ""
    assert lifecycle.loaded_share == 1.0


async def test_health_can_say_how_much_has_loaded() -> None:
    lifecycle = Lifecycle()
    assert lifecycle.loaded_share is None
    ProgressReport(lifecycle, None)(LoadProgress(1, 4))
    assert lifecycle.loaded_share == 0.25
    lifecycle.works_ready()
    assert lifecycle.loaded_share == 1.0
    lifecycle.works_lost()
    assert lifecycle.loaded_share is None


async def test_ranks_that_nobody_runs_are_ended() -> None:
    settings = Settings(num_threads=1)
    works = Works(settings, open_model(settings), Lifecycle())
    before = _children()
    works.launch()
    (launched,) = _children() - before
    await works.aclose()
    assert launched not in _children()


def _children() -> set[str]:
    own = os.getpid()
    return {
        pid
        for thread in Path(f"/proc/{own}/task").iterdir()
        for pid in (thread / "children").read_text(encoding="ascii").split()
    }
