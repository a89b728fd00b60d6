"""What HTTP costs on this machine, beside uvicorn + starlette.

    python -m benchmarks.http events      CPU of the server per streamed event, 64 and 256 streams
    python -m benchmarks.http requests    CPU of the server per small JSON request
    python -m benchmarks.http engine      tokens per second through HTTP against the engine's own

The peer is not needed to run ours. Where it is wanted, `pip install uvicorn starlette uvloop httptools` into any
environment and name its interpreter with --peer-python. CPU is user and system time of the one process that serves, the
model's ranks not counted, from its own clock, in turns; the readers are processes of their own.
"""

import argparse
import sys

from benchmarks.http import engine, events, requests

PARTS = {"events": events.main, "requests": requests.main, "engine": engine.main}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PATH", help="(default: this one)")
    options = parser.parse_args()
    PARTS[options.part](options.rounds, options.peer_python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
