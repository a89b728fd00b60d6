"""The table of states and what signals do in each of them, through every command; then wrong settings."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import HYPERCORN, TRIOSERVE, Server, descendants, running_server, wait_until
from tests.e2e.lifetimes import (
    BODY,
    ENDLESS,
    Late,
    connections_at_rest,
    exit_code,
    probed,
    refuses,
    stalled_reader,
    started,
    the_whole_stream,
)

COMMANDS = {
    "trioserve serve": TRIOSERVE,
    "two workers": (*TRIOSERVE, "--workers", "2"),
    "hypercorn": HYPERCORN,
    "hypercorn -w 0": (*HYPERCORN, "-w", "0"),
}
OURS = {name: COMMANDS[name] for name in ("trioserve serve", "two workers")}
INLINE = {name: COMMANDS[name] for name in ("trioserve serve", "hypercorn -w 0")}
"""Of one process, whose exit code is the shell's."""
TERM, INT = signal.SIGTERM, signal.SIGINT


def in_ways(*rows: tuple[str, str, signal.Signals]) -> pytest.MarkDecorator:
    """Command, whom the signal is sent to, and which."""
    return pytest.mark.parametrize(
        ("way", "whom", "signum"), rows, ids=[f"{way}, {signum.name} to {whom}" for way, whom, signum in rows]
    )


def send(server: Server, signum: signal.Signals, whom: str) -> None:
    """To the process that the shell has started, or to its whole group as by systemd, docker and Ctrl-C."""
    (os.killpg if whom == "group" else os.kill)(server.process.pid, signum)


@contextmanager
def loading_server(log_path: Path, way: str, **settings: object) -> Iterator[tuple[Server, list[int]]]:
    """One that listens and whose rank stands still while it loads, and all processes of it."""
    with running_server(log_path, command=COMMANDS[way], settings=settings, wait_ready=False) as server:
        wait_until(server.rank_pids, 30, lambda: server.log)
        os.kill(server.rank_pids()[0], signal.SIGSTOP)
        wait_until(lambda: "listening" in server.log, 20, lambda: server.log)
        yield server, descendants(server.process.pid)


def all_gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@in_ways(
    ("trioserve serve", "one", TERM),
    ("two workers", "group", TERM),
    ("hypercorn", "group", INT),
    ("hypercorn -w 0", "one", INT),
)
def test_from_start_to_end_everyone_is_told_the_state_and_nothing_is_lost(
    tmp_path: Path, way: str, whom: str, signum: signal.Signals
) -> None:
    with loading_server(tmp_path / "log", way, drain_delay_s=3, drain_timeout_s=60) as (server, _):
        assert probed(server) == (200, 503, 200, "starting")
        refused = httpx.post(server.url + "/v1/completions", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert int(refused.headers["retry-after"]) >= 1
        os.kill(server.rank_pids()[0], signal.SIGCONT)
        wait_until(lambda: probed(server) == (200, 200, 200, "ready"), 60, lambda: server.log)
        server.wait_ready()
        family = descendants(server.process.pid)
        stream = started(server, max_tokens=1500)
        with server.paused():
            idle = connections_at_rest(server, 200)
            late = {path: Late(server, path) for path in ("/live", "/ready", "/v1/completions")}
            send(server, signum, whom)
            wait_until(lambda: probed(server) == (200, 503, 200, "lame_duck"), 3, lambda: server.log)
        served = httpx.post(server.url + "/v1/completions", json=BODY)
        assert (served.status_code, served.headers["connection"]) == (200, "close")
        with server.paused():
            wait_until(lambda: refuses(server), 10, lambda: "new connections are still taken")
            closed_at = time.monotonic()
            assert [sock.recv(1) for sock in idle] == [b""] * 200
            assert time.monotonic() - closed_at < 1
            answers = {path: each.finish() for path, each in late.items()}
        assert [answer.status for answer in answers.values()] == [200, 503, 503]
        assert {answer.headers["connection"] for answer in answers.values()} == {"close"}
        assert answers["/v1/completions"].headers["retry-after"] == "1"
        assert the_whole_stream(stream)[-1] == "data: [DONE]"
        assert exit_code(server) == 0
        for sock in idle:
            sock.close()
    wait_until(lambda: all_gone(family), 5, lambda: f"left behind: {family}")
    assert "Traceback" not in server.log


@in_ways(
    ("trioserve serve", "group", INT),
    ("two workers", "one", INT),
    ("hypercorn", "one", TERM),
    ("hypercorn -w 0", "group", TERM),
)
def test_a_signal_while_the_model_loads_ends_all_at_once(
    tmp_path: Path, way: str, whom: str, signum: signal.Signals
) -> None:
    with loading_server(tmp_path / "log", way, drain_delay_s=60) as (server, family):
        send(server, signum, whom)
        assert exit_code(server, within_s=10) == 0
    wait_until(lambda: all_gone(family), 5, lambda: f"left behind: {family}")
    assert "Traceback" not in server.log


@in_ways(
    ("trioserve serve", "one", INT),
    ("trioserve serve", "one", TERM),
    ("two workers", "group", TERM),
    ("hypercorn", "one", TERM),
)
def test_a_signal_to_a_server_that_is_still_being_imported_ends_it(
    tmp_path: Path, way: str, whom: str, signum: signal.Signals
) -> None:
    with running_server(tmp_path / "log", command=COMMANDS[way], wait_ready=False) as server:
        wait_until(lambda: takes_signals(server), 20, lambda: "signals are not taken")
        send(server, signum, whom)
        assert server.wait(20) == 0
    assert "Traceback" not in server.log


def takes_signals(server: Server) -> bool:
    """Whether the process that the shell has started handles SIGTERM; SIGINT Python handles from the start."""
    status = Path(f"/proc/{server.process.pid}/status").read_text("utf-8")
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) & 1 << (signal.SIGTERM - 1))


@pytest.mark.parametrize("way", INLINE)
def test_at_the_deadline_running_requests_end_with_an_error_and_75(tmp_path: Path, way: str) -> None:
    with running_server(tmp_path / "log", command=COMMANDS[way], settings={"drain_timeout_s": 0.5}) as server:
        stream, whole = started(server), Late(server, "/v1/completions", {**ENDLESS, "stream": False})
        whole.send_rest()
        wait_until(lambda: server.health()["num_running"] == 2, 10, lambda: str(server.health()))
        server.terminate()
        assert "the server is shutting down" in the_whole_stream(stream)[-1]
        answer = whole.finish()
        assert (answer.status, "shutting down" in answer.body) == (503, True)
        assert exit_code(server) == 75


@in_ways(
    ("trioserve serve", "one", INT),
    ("two workers", "group", TERM),
    ("hypercorn", "group", INT),
)
def test_the_second_signal_aborts_and_the_third_does_not_wait_for_who_does_not_read(
    tmp_path: Path, way: str, whom: str, signum: signal.Signals
) -> None:
    settings = {"drain_delay_s": 60, "drain_timeout_s": 60}
    with running_server(tmp_path / "log", command=COMMANDS[way], settings=settings) as server:
        family = descendants(server.process.pid)
        stream = started(server)
        with stalled_reader(server):
            send(server, signum, whom)
            wait_until(lambda: probed(server)[3] == "lame_duck", 10, lambda: server.log)
            send(server, signum, whom)
            assert "the server is shutting down" in the_whole_stream(stream, within_s=5)[-1]
            assert server.process.poll() is None
            send(server, signum, whom)
            # hypercorn's master forgets its worker's code, and who ends at once writes no line
            assert server.wait(3) == (0 if way == "hypercorn" else 128 + signum)
    wait_until(lambda: all_gone(family), 5, lambda: f"left behind: {family}")


def test_what_does_not_read_holds_up_an_abort_for_five_seconds_at_most(tmp_path: Path) -> None:
    with running_server(tmp_path / "log", command=TRIOSERVE, settings={"drain_timeout_s": 0.2}) as server:
        with stalled_reader(server):
            server.terminate()
            assert exit_code(server, within_s=12) == 75


@pytest.mark.parametrize("way", OURS)
def test_while_the_works_are_restarted_requests_wait_and_a_drain_ends_all_the_same(
    tmp_path: Path, way: str
) -> None:
    settings = {"drain_timeout_s": 1}
    with running_server(tmp_path / "log", command=COMMANDS[way], settings=settings) as server:
        stream, whole = started(server), Late(server, "/v1/completions", {**ENDLESS, "stream": False})
        whole.send_rest()
        wait_until(lambda: server.health()["num_running"] == 2, 10, lambda: str(server.health()))
        held = lose_the_rank(server)
        assert "engine_error" in the_whole_stream(stream)[-1]
        assert whole.finish().status == 503
        wait_until(lambda: probed(server) == (200, 503, 200, "recovering"), 10, lambda: str(probed(server)))
        waits = Late(server, "/v1/completions", BODY)
        waits.send_rest()
        wait_until(lambda: server.health()["num_waiting"] == 1, 10, lambda: str(server.health()))
        os.kill(held, signal.SIGCONT)
        assert waits.finish().status == 200
        server.wait_ready()
        family, _ = descendants(server.process.pid), lose_the_rank(server)
        waits = Late(server, "/v1/completions", BODY)
        waits.send_rest()
        wait_until(lambda: server.health()["num_waiting"] == 1, 10, lambda: str(server.health()))
        server.terminate()
        answer = waits.finish()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert exit_code(server) == 75
    wait_until(lambda: all_gone(family), 5, lambda: f"left behind: {family}")


def lose_the_rank(server: Server) -> int:
    """Kill it, and stop the next one before it has loaded; returns that one's process."""
    (lost,) = server.rank_pids()
    os.kill(lost, signal.SIGKILL)
    wait_until(lambda: server.rank_pids() not in ([], [lost]), 20, lambda: server.log)
    (held,) = [pid for pid in server.rank_pids() if pid != lost]
    os.kill(held, signal.SIGSTOP)
    return held


@pytest.mark.parametrize("way", OURS)
def test_a_server_that_has_failed_says_so_to_whoever_is_there_and_ends_with_70(
    tmp_path: Path, way: str
) -> None:
    with running_server(tmp_path / "log", command=COMMANDS[way], settings={"max_restarts": 0}) as server:
        stream = started(server)
        with stalled_reader(server):  # for whom it stays a while
            late = [Late(server, path) for path in ("/live", "/ready", "/health", "/v1/completions")]
            os.kill(server.rank_pids()[0], signal.SIGKILL)
            assert "engine_error" in the_whole_stream(stream)[-1]
            wait_until(lambda: refuses(server), 5, lambda: "new connections are still taken")
            assert [each.finish().status for each in late] == [503] * 4
        assert exit_code(server, within_s=15) == 70


@pytest.mark.parametrize("way", INLINE)
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"max_num_seqs": 0},
            "max_num_seqs = '0' (TRIOSERVE_MAX_NUM_SEQS): input should be greater than or equal to 1",
        ),
        ({"no_such": 1}, "TRIOSERVE_NO_SUCH is not a setting"),
        ({"model": "/no/such/folder"}, "'/no/such/folder' is neither a folder nor"),
        ({"max_model_len": 1000000}, "max_model_len = 1000000 is more than the model's 8192"),
    ],
)
def test_wrong_settings_are_one_sentence_and_78(
    tmp_path: Path, way: str, settings: dict[str, object], sentence: str
) -> None:
    with running_server(
        tmp_path / "log", command=COMMANDS[way], settings=settings, wait_ready=False
    ) as server:
        assert server.wait(20) == 78
    assert sentence in server.log
    assert "Traceback" not in server.log
