"""``python -m trioserve.worker FD [FOLDER]``: one model rank, speaking frames on the inherited socket FD.

FOLDER is where the model is, on a machine that does not see the front's.
"""

import socket
import sys
import time


def main() -> int:
    """Run the rank until the front says so or is gone; returns the exit code."""
    started = time.monotonic()
    if len(sys.argv) not in (2, 3) or not sys.argv[1].isdecimal():
        print(
            "usage: python -m trioserve.worker FD [FOLDER], where FD is an inherited socket", file=sys.stderr
        )
        return 2
    from trioserve.worker.process import become_rank, leave

    become_rank()
    # torch takes a second to import: after the signals are in order, so that a rank never dies of an early one
    from trioserve.worker.loop import serve

    with socket.socket(fileno=int(sys.argv[1])) as sock:
        return leave(serve(sock, started, *sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(main())
