"""How a rank's process behaves: it outlives signals meant for the front, never the front itself."""

import faulthandler
import os
import signal
import sys
from typing import Final

from trioserve.core.confinement import die_with_parent

_SPIN_COUNT: Final = "1000"
"""Rounds, some 60 us, that a thread of the arithmetic's pool waits awake for the others. GNU OpenMP's own default is
300,000, about 20 ms: on two cores that others use as well a decode step then took 120 ms, with this 5 ms."""


def become_rank() -> None:
    """Arrange signals and the waiting of threads; call before torch is imported.

    A signal to the whole process group means the front, which drains and then closes the socket. SIGQUIT writes the
    stacks of all threads to stderr and changes nothing.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(
        signal.SIGTTOU, signal.SIG_IGN
    )  # a terminal may stop whatever writes to it from the background
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    faulthandler.enable()
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    die_with_parent()


def leave(code: int) -> int:
    """``code``, for a process that may end in good order; where its ranks meet over NCCL it ends here and now.

    NCCL's destructors wait for the other ranks, which may be gone; nothing of this process is worth waiting for.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        sys.stderr.flush()
        os._exit(code)
    return code
