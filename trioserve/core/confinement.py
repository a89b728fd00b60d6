"""How processes of ours are kept small: what they see of the environment, what they may take, and when they end."""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

_KEPT_VARIABLES: Final = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
"""All of our environment that a process sees which works on what clients sent: no keys, no settings."""
_PR_SET_PDEATHSIG: Final = 1
_PATIENCE_S: Final = 0.05
"""CPU that work on what a client sent may take before it has to wait for everybody else."""
_LOOK_EVERY_S: Final = 0.02

T = TypeVar("T")


def clean_environment() -> dict[str, str]:
    """The environment of a process that works on what clients sent."""
    return {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent goes, whatever it is doing then.

    The signal comes when the *thread* that started this process ends. A parent that was gone before the call is
    found by the socket: it has ended, or breaks with the first message.
    """
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        print(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}", file=sys.stderr)
    if os.getppid() != parent:
        os._exit(0)


def taken_bytes() -> int:
    """Address space that this process has taken."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def limit_memory(more_bytes: int, *, for_good: bool = True) -> None:
    """Let this process take so much address space beyond what it has.

    Args:
        for_good: Whether no later call may let it take more.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = taken_bytes() + more_bytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit if for_good else hard))


def step_back(niceness: int) -> None:
    """Let others go first, and leave no core file behind.

    It counts against processes of the same session: Linux may share the CPUs out by session first (sched_autogroup).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(niceness)


def run_behind(do: Callable[[], T]) -> T:
    """Run ``do`` in a thread that, once it has used more CPU than usual, runs only where nobody else wants to.

    Niceness alone does not make a thread leave its core in the moment in which another one wakes up there. A thread
    cannot be brought back from that, so each ``do`` has one of its own. What it raises is raised here.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(do())
        except BaseException as exc:  # noqa: BLE001 # it is raised again, in the thread that called
            failed.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_EVERY_S)
        if _used_s(thread) > _PATIENCE_S:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setscheduler(thread.native_id or 0, os.SCHED_IDLE, os.sched_param(0))
            thread.join()
    if failed:
        raise failed[0]
    return done[0]


def _used_s(thread: threading.Thread) -> float:
    """Seconds of CPU that a thread has used; 0 once it has ended."""
    try:
        words = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text(encoding="ascii").split()
    except OSError:
        return 0.0
    return int(words[0]) / 1e9
