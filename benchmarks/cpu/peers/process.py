"""An engine's process as the measurement sees it, stopped while it is not its turn."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.cpu.peers.engines import Engine, environment

ROOT: Final = Path(__file__).resolve().parents[3]
_LAST_WORDS_BYTES: Final = 1500
_END_TIMEOUT_S: Final = 20.0


class EngineFailed(Exception):
    """An engine could not be started or died; the message ends with its last words."""


def descendants(pid: int) -> Iterator[int]:
    """``pid`` and all processes below it that there are now."""
    yield pid
    with contextlib.suppress(OSError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                yield from descendants(int(child))


def signal_all(pid: int, signum: signal.Signals) -> None:
    """Send ``signum`` to ``pid`` and all below it."""
    for each in list(descendants(pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signum)


class EngineProcess:
    """One engine with one checkpoint. Stopped from the start of it on, but for the time of a command: an engine that
    spins while it is idle takes no time from the others."""

    def __init__(self, engine: Engine, interpreter: str, path: Path, num_threads: int) -> None:
        self.engine = engine
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        command = [interpreter, "-m", "benchmarks.cpu.peers.child", engine.driver, str(path), engine.variant]
        self._process = subprocess.Popen(
            [*command, str(num_threads)],
            cwd=ROOT,
            env=environment(engine.program, interpreter, num_threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            start_new_session=True,
        )

    def wait_ready(self) -> None:
        """Wait until the model is loaded, then stop it.

        Raises:
            EngineFailed: It was not.
        """
        self._read()
        signal_all(self._process.pid, signal.SIGSTOP)

    def ask(self, prompts: list[list[int]], num_tokens: int) -> dict[str, Any]:
        """Have it answer ``prompts``; see ``child.py``.

        Raises:
            EngineFailed: It did not.
        """
        assert self._process.stdin is not None
        signal_all(self._process.pid, signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # its last words say more
            print(
                json.dumps({"prompts": prompts, "num_tokens": num_tokens}),
                file=self._process.stdin,
                flush=True,
            )
        answer = self._read()
        signal_all(self._process.pid, signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """End it and all that it started."""
        signal_all(self._process.pid, signal.SIGCONT)
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        family = list(descendants(self._process.pid))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_TIMEOUT_S)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()
        self._words.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_TIMEOUT_S)  # its last words come after it has closed its output
            self._words.seek(max(0, self._words.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
            words = self._words.read().decode(errors="replace").strip()
            raise EngineFailed(f"{self.engine.name} ended:\n{words}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def started(
    engines: list[Engine], interpreters: dict[str, str], paths: dict[Engine, Path], num_threads: int
) -> Iterator[dict[Engine, EngineProcess]]:
    """Start ``engines`` one after the other; those that fail are told of and left out."""
    processes: dict[Engine, EngineProcess] = {}
    try:
        for engine in engines:
            process = EngineProcess(engine, interpreters[engine.program], paths[engine], num_threads)
            try:
                process.wait_ready()
            except EngineFailed as exc:
                print(exc)
                process.close()
            else:
                processes[engine] = process
        yield processes
    finally:
        for process in processes.values():
            process.close()
