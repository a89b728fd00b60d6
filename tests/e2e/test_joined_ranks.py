"""A server with a rank of its own and one that ``trioserve join`` lends it: the answers of two ranks of one machine,
and an end and a new beginning whatever is lost."""

import concurrent.futures
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.harness import (
    TRIOSERVE,
    Server,
    command_line,
    descendants,
    free_port,
    running_server,
    stop,
    wait_until,
)
from tests.e2e.test_tensor_parallel import QUESTIONS, ask
from tests.e2e.test_works import lines_of
from trioserve.worker.machine import usable_cores

pytestmark = pytest.mark.skipif(usable_cores().count < 2, reason="two ranks need a core each")

JOIN = (*TRIOSERVE[:-1], "join")
KEY = "the key of these tests"
ALONE: dict[str, object] = {
    "tensor_parallel_size": 2,
    "dtype": "float32",
    "step_timeout_s": 1,
    "step_stacks_s": 0.5,
}


@dataclass(frozen=True)
class Joiner:
    """A process ``trioserve join``."""

    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def rank_pids(self) -> list[int]:
        return [pid for pid in descendants(self.process.pid) if b"trioserve.worker" in command_line(pid)]


@contextmanager
def running_joiner(log_path: Path, port: int, *flags: str, key: str = KEY) -> Iterator[Joiner]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIOSERVE_")}
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [*JOIN, f"127.0.0.1:{port}", *flags],
            env=environment | {"TRIOSERVE_RANK_KEY": key},
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=log_path.parent,
        )
    try:
        yield Joiner(process, log_path)
    finally:
        stop(process)


def leading(port: int, **changes: object) -> dict[str, object]:
    return ALONE | {"rank_listen": f"127.0.0.1:{port}", "rank_key": KEY, **changes}


@dataclass(frozen=True)
class Pair:
    """A server and who lends it a rank."""

    server: Server
    joiner: Joiner
    rank_port: int


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The answers of two ranks of one machine, of torch's layers over Gloo."""
    with running_server(tmp_path_factory.mktemp("alone") / "log", settings=ALONE) as server:
        assert "over Gloo" in server.log
        return [ask(server, question) for question in QUESTIONS]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    port, folder = free_port(), tmp_path_factory.mktemp("pair")
    with running_joiner(folder / "joiner", port) as joiner:  # before there is a server: it waits
        with running_server(folder / "server", settings=leading(port), command=TRIOSERVE) as server:
            yield Pair(server, joiner, port)


def test_a_joined_rank_is_as_good_as_one_that_is_here(pair: Pair, expected: list[dict[str, Any]]) -> None:
    assert (len(pair.server.rank_pids()), len(pair.joiner.rank_pids())) == (1, 1)
    assert "in each of 2 ranks over Gloo" in pair.server.log
    assert [ask(pair.server, question) for question in QUESTIONS] == expected


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_joined_rank_ends_its_streams_with_an_error_and_joins_anew(
    pair: Pair, signum: signal.Signals
) -> None:
    before = {*pair.server.rank_pids(), *pair.joiner.rank_pids()}
    at = 0.0

    def strike() -> None:
        nonlocal at
        os.kill(pair.joiner.rank_pids()[0], signum)
        at = time.monotonic()

    lines = lines_of(pair.server, then=strike)
    assert '"error"' in lines[-1] and "[DONE]" not in lines[-1]
    assert time.monotonic() - at < (1.5 if signum is signal.SIGKILL else 3.0)
    pair.server.wait_ready(30)

    def pids() -> set[int]:
        return {*pair.server.rank_pids(), *pair.joiner.rank_pids()}

    wait_until(
        lambda: len(pids()) == 2 and not pids() & before, 10, lambda: f"ranks: {pids()}, before: {before}"
    )
    assert "Paris" in ask(pair.server, QUESTIONS[0])["message"]["content"]
    pair.server.wait_idle()


def test_what_a_joiner_cannot_use_ends_it_with_one_sentence(pair: Pair, tmp_path: Path) -> None:
    other = tmp_path / "model"
    other.mkdir()
    (other / "config.json").write_text('{"vocab_size": 3, "max_position_embeddings": 8}', "utf-8")
    cases = [
        ((), "quite another key!", "has another key: give both sides the same rank_key"),
        (("--model", str(other)), KEY, "refuses this rank: its model is another one than that of the front."),
        ((), "short", "a key has at least 16 characters, this one has 5"),
    ]
    for number, (flags, key, sentence) in enumerate(cases):
        with running_joiner(tmp_path / str(number), pair.rank_port, *flags, key=key) as joiner:
            assert joiner.process.wait(10) == 78
            assert sentence in joiner.log.splitlines()[-1]
    assert pair.server.log.count("was refused: it does not have the key") == 1
    assert pair.server.log.count("was refused: its model is another one") == 1
    assert "Paris" in ask(pair.server, QUESTIONS[0])["message"]["content"]


def test_the_joiner_serves_the_next_server_too_and_ends_when_that_has_drained(
    pair: Pair, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    pair.server.terminate()
    assert pair.server.wait(20) == 0
    wait_until(lambda: not pair.joiner.rank_pids(), 3, lambda: "the rank outlives its server")
    with (
        running_server(tmp_path / "next", settings=leading(pair.rank_port), command=TRIOSERVE) as server,
        concurrent.futures.ThreadPoolExecutor() as threads,
    ):
        assert ask(server, QUESTIONS[1]) == expected[1]
        body = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True}
        running = threads.submit(httpx.post, server.url + "/v1/completions", json=body, timeout=60)
        wait_until(lambda: server.health()["num_running"] == 1, 5, lambda: "it does not run")
        pair.joiner.process.send_signal(signal.SIGTERM)
        server.terminate()
        assert running.result().json()["usage"]["completion_tokens"] == 200
        assert server.wait(20) == 0
        assert pair.joiner.process.wait(5) == 0


def test_a_server_that_waits_for_ranks_lives_is_not_ready_and_ends_when_it_is_told(tmp_path: Path) -> None:
    settings = leading(port := free_port())
    with running_server(tmp_path / "log", settings=settings, command=TRIOSERVE, wait_ready=False) as server:
        sentence = f"waiting for ranks to join at 127.0.0.1:{port}: 0 of 1 are here"
        wait_until(lambda: sentence in server.log, 20, lambda: server.log)
        assert [httpx.get(f"{server.url}/{probe}").status_code for probe in ("live", "ready")] == [200, 503]
        assert not server.rank_pids()
        server.terminate()
        assert server.wait(5) == 0
