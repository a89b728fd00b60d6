"""A rank that dies or stalls fails what it ran, honestly, and the server serves again."""

import concurrent.futures
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import TRIOSERVE, Server, running_server, wait_until

ENDLESS = {"prompt": "Once", "max_tokens": 8000, "ignore_eos": True}


def lines_of(server: Server, *, then: object = None) -> list[str]:
    """The SSE lines of an endless stream; ``then`` is called with the first text."""
    lines = []
    with httpx.stream(
        "POST", server.url + "/v1/completions", json={**ENDLESS, "stream": True}, timeout=60
    ) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            lines.append(line)
            if len(lines) == 8 and callable(then):
                then()
    return [line for line in lines if line]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_rank_ends_its_streams_with_an_error_and_is_replaced(
    tmp_path: Path, signum: signal.Signals
) -> None:
    with running_server(tmp_path / "log", settings={"step_timeout_s": 1, "step_stacks_s": 0.5}) as server:
        at = 0.0

        def strike() -> None:
            nonlocal at
            (pid,) = server.rank_pids()
            os.kill(pid, signum)
            at = time.monotonic()

        lines = lines_of(server, then=strike)
        noticed_s = time.monotonic() - at
        assert '"error"' in lines[-1] and "[DONE]" not in lines[-1]
        assert noticed_s < (1.0 if signum is signal.SIGKILL else 2.5)
        wait_until(
            lambda: httpx.get(server.url + "/ready").status_code == 200,
            20,
            lambda: f"not ready again:\n{server.log}",
        )
        answer = httpx.post(
            server.url + "/v1/completions", json={"prompt": "Hi", "max_tokens": 3}, timeout=20
        )
        assert answer.status_code == 200
        assert len(server.rank_pids()) == 1
        server.wait_idle()


def test_a_whole_answer_that_is_lost_is_a_503_and_a_waiting_one_is_served(tmp_path: Path) -> None:
    settings = {"max_num_seqs": 1, "max_num_batched_tokens": 64}
    with running_server(tmp_path / "log", settings=settings) as server:
        with concurrent.futures.ThreadPoolExecutor() as threads:
            lost = threads.submit(httpx.post, server.url + "/v1/completions", json=ENDLESS, timeout=60)
            wait_until(lambda: server.health()["num_running"] == 1, 5, lambda: "it does not run")
            waiting = threads.submit(
                httpx.post, server.url + "/v1/completions", json={"prompt": "Hi", "max_tokens": 3}, timeout=60
            )
            wait_until(lambda: server.health()["num_waiting"] == 1, 5, lambda: "it does not wait")
            (pid,) = server.rank_pids()
            os.kill(pid, signal.SIGKILL)
            assert lost.result().status_code == 503
            assert "retry-after" in lost.result().headers
            assert "SIGKILL" not in lost.result().text
            assert waiting.result().status_code == 200


def test_works_that_keep_dying_end_the_server_with_70(tmp_path: Path) -> None:
    settings = {"max_restarts": 0}
    with running_server(tmp_path / "log", settings=settings, command=TRIOSERVE) as server:
        (pid,) = server.rank_pids()
        os.kill(pid, signal.SIGKILL)
        assert server.wait(20) == 70


def test_no_rank_outlives_its_server(tmp_path: Path) -> None:
    with running_server(tmp_path / "log") as server:
        (rank,) = server.rank_pids()
        os.kill(server.serving_pid(), signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{rank}").exists(), 5, lambda: "the rank lives on")
        os.kill(server.process.pid, signal.SIGKILL)
