"""The short form: each fault once, and small; a rank that is lost before the server is ready, or while it drains."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.chaos.clients import COMPLETIONS
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.run import undergo
from tests.e2e.harness import TRIOSERVE, running_server, wait_until


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_leaves_nothing_behind(fault: Fault, tmp_path: Path) -> None:
    undergo(fault, tmp_path, 0.1)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP], ids=lambda signum: signum.name)
def test_a_rank_that_is_lost_while_it_starts_is_replaced(tmp_path: Path, signum: signal.Signals) -> None:
    settings = {"start_timeout_s": 12}
    with running_server(tmp_path / "log", command=TRIOSERVE, settings=settings, wait_ready=False) as server:
        wait_until(lambda: server.rank_pids(), 10, lambda: server.log)
        time.sleep(0.3)  # in the middle of its imports
        os.kill(server.rank_pids()[0], signum)
        server.wait_ready()
        server.wait_idle()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP], ids=lambda signum: signum.name)
def test_a_rank_that_is_lost_while_the_server_drains_fails_what_ran_and_holds_nothing_up(
    tmp_path: Path, signum: signal.Signals
) -> None:
    settings = {"step_timeout_s": 1, "drain_timeout_s": 60}
    body = {"prompt": "Once", "max_tokens": 60_000, "ignore_eos": True, "stream": True}
    with running_server(tmp_path / "log", command=TRIOSERVE, settings=settings) as server:
        lines: list[str] = []
        with httpx.stream("POST", server.url + COMPLETIONS, json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                if len(lines) == 8:
                    server.terminate()
                    wait_until(lambda: "draining" in server.log, 5, lambda: server.log)
                    os.kill(server.rank_pids()[0], signum)
        assert '"error"' in [line for line in lines if line][-1]
        assert "data: [DONE]" not in lines
        assert server.wait(20) == 0
