"""The real process over a real socket."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.model.checkpoints import Checkpoints, prompt_of
from tests.worker.driver import Front, worker_config
from tests.worker.wire import DEADLINE_S, Wire
from trioserve.core.frames import encode_frame
from trioserve.core.step import (
    LoadProgress,
    StepPlan,
    WorkerReady,
)


class Rank(Wire):
    """A process and the socket to it."""

    def __init__(self, process: subprocess.Popen[str], sock: socket.socket) -> None:
        super().__init__(sock)
        self.process = process

    def end(self) -> tuple[int, str]:
        """Close the socket; exit code and stderr."""
        self.socket.close()
        _, stderr = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, stderr


@contextmanager
def rank() -> Iterator[Rank]:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "trioserve.worker", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True)
    theirs.close()
    with process, ours:
        try:
            yield Rank(process, ours)
        finally:
            process.kill()


def test_a_rank_loads_reports_and_carries_out_plans_that_wait_in_its_socket(checkpoints: Checkpoints) -> None:
    prompt = prompt_of(30, seed=20)
    with rank() as one:
        *progress, ready = one.start(worker_config(checkpoints.folder("qwen3")))
        assert isinstance(ready, WorkerReady)
        assert (ready.num_blocks, ready.dtype, ready.tp_rank) == (64, "float32", 0)
        assert ready.attention.startswith("cpu-")
        assert 0 < ready.load_s < DEADLINE_S
        assert ready.weights_bytes > 100_000
        last = progress[-1]
        assert isinstance(last, LoadProgress)
        assert last.loaded_bytes == last.total_bytes > ready.weights_bytes
        front = Front(one.execute)
        front.admit(0, prompt)
        plans = [front.plan(s0=30), *(front.plan(s0=1) for _ in range(5))]
        one.socket.sendall(b"".join(encode_frame(plan) for plan in plans))
        for plan in plans:
            result = one.result()
            assert result.step_id == plan.step_id
            front.take(result)
        assert front.outputs[0] == checkpoints.greedy("qwen3", prompt, 6)
        assert one.end() == (0, "")


def test_signals_to_the_group_do_not_end_a_rank_and_sigquit_writes_its_stacks(
    checkpoints: Checkpoints,
) -> None:
    with rank() as one:
        one.start(worker_config(checkpoints.folder("llama")))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            one.process.send_signal(number)
        assert one.execute(StepPlan(1, [], [], [])).step_id == 1
        code, stderr = one.end()
        assert code == 0
        assert "most recent call first" in stderr
        assert "worker/__main__.py" in stderr


def test_a_rank_dies_with_the_process_that_started_it(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Even while the socket stays open elsewhere, as it does here."""
    ours, theirs = socket.socketpair()
    parent = textwrap.dedent(
        """
        import subprocess, sys, time
        process = subprocess.Popen([sys.executable, "-m", "trioserve.worker", sys.argv[1]], close_fds=False)
        print(process.pid, flush=True)
        time.sleep(60)
        """
    )
    command = [sys.executable, "-c", parent, str(theirs.fileno())]
    with ours, theirs, subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE) as front:
        assert front.stdout is not None
        pid = int(front.stdout.readline())
        Wire(ours).start(worker_config(checkpoints.folder("llama")))
        front.kill()
        deadline = time.monotonic() + DEADLINE_S
        while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_rank_imports_nothing_of_the_front_and_no_transformers() -> None:
    code = (
        "import sys, trioserve.worker.loop;"
        "print([m for m in ('trio', 'quart', 'pydantic', 'transformers', 'hypercorn') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert found.stdout.strip() == "[]"


def test_a_rank_of_nccl_waits_for_no_destructor_at_its_end(tmp_path: Path) -> None:
    """Told by the process group that only such ranks make; here one of Gloo, for want of GPUs."""
    program = textwrap.dedent(
        """
        import atexit, sys, time
        from torch import distributed
        from trioserve.worker.process import leave
        atexit.register(time.sleep, 60)
        distributed.init_process_group("gloo", store=distributed.FileStore(sys.argv[1], 1), rank=0, world_size=1)
        leave(3)
        """
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path / "store")], timeout=30, check=False)
    assert ended.returncode == 3
