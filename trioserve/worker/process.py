"""How a rank's process behaves: it outlives signals meant for the front, never the front itself."""

import ctypes
import faulthandler
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_SPIN_COUNT: Final = "1000"
"""Rounds, some 60 us, that a thread of the arithmetic's pool waits awake for the others. GNU OpenMP's own default is
300,000, about 20 ms: on two cores that others use as well a decode step then took 120 ms, with this 5 ms."""


def become_rank() -> None:
    """Arrange signals and the waiting of threads; call before torch is imported.

    A signal to the whole process group means the front, which drains and then closes the socket. SIGQUIT writes the
    stacks of all threads to stderr and changes nothing.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    faulthandler.enable()
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    _die_with_parent()


def _die_with_parent() -> None:
    """Let the kernel kill this process when its parent goes, should the end of the socket not be noticed in a step.

    The signal comes when the *thread* that started this process ends. A parent that was gone before the call is
    found by the socket: it has ended, or breaks with the first report of progress.
    """
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        print(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}", file=sys.stderr)
    if os.getppid() != parent:
        os._exit(0)
