"""The long form: `python -m tests.chaos [--rounds 3] [--faults storm killed]`."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.chaos.faults import FAULTS
from tests.chaos.run import undergo


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--faults", nargs="+", choices=[fault.name for fault in FAULTS])
    options = parser.parse_args()
    console, num_failed = Console(), 0
    for _ in range(options.rounds):
        for fault in FAULTS:
            if options.faults and fault.name not in options.faults:
                continue
            begin = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="chaos-") as folder, console.status(fault.name):
                try:
                    witnesses = undergo(fault, Path(folder), 1.0)
                except AssertionError as exc:
                    num_failed += 1
                    console.print(f"[red]{fault.name}: {exc}")
                    console.print((Path(folder) / "log").read_text("utf-8", "replace")[-4000:], markup=False)
                    continue
            counts = ", ".join(f"{count} {outcome}" for outcome, count in witnesses.outcomes.items())
            took_s = time.monotonic() - begin
            console.print(f"{fault.name}: {witnesses.note}; well after {took_s:.0f} s; witnesses: {counts}")
    return num_failed


if __name__ == "__main__":
    sys.exit(main())
