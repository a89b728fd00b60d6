"""Everything that is measured on a GPU, in one table: ``benchmarks/gpu/run.sh`` prepares a machine and calls it.

    python -m benchmarks.gpu [--sections ceilings attention ...] [--minutes 9] [--out FOLDER]

Each section is a process of its own with a share of the time, so that a fault in one, which leaves a CUDA context of no
use, costs no other. FOLDER gets rows.jsonl, table.md and the sections' logs.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import torch

from benchmarks.gpu.report import Report, markdown_of, show
from benchmarks.gpu.sections import SECTIONS

_ENDING_S: Final = 5.0
"""For what was interrupted to end by itself."""


def main() -> int:
    """Run the sections; returns 1 where one has failed or had no time."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=9.0, help="for all together [9]")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="[build/gpu]")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU that torch can use is here; nothing was measured", file=sys.stderr)
        return 78
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report(options.out / "rows.jsonl")
    deadline = time.monotonic() + 60 * options.minutes
    failed = [name for name in options.sections if not _run(name, options.out, deadline)]
    title = f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    (options.out / "table.md").write_text(f"{title}\n\n{markdown_of(report.rows())}", encoding="utf-8")
    show(report.rows(), title)
    for name in failed:
        print(f"{name} failed or had no time left: see {options.out / name}.log")
    return 1 if failed else 0


def _run(name: str, folder: Path, deadline: float) -> bool:
    """Run one section; whether it came to its end."""
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    began = time.monotonic()
    print(f"{name}: at most {left:.0f} s", flush=True)
    command = [sys.executable, "-m", "benchmarks.gpu.sections", name, str(folder / "rows.jsonl")]
    with (folder / f"{name}.log").open("w", encoding="utf-8") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            child.wait(left)
        except subprocess.TimeoutExpired:
            _end(child)
    print(f"{name}: {time.monotonic() - began:.0f} s, exit code {child.returncode}", flush=True)
    return child.returncode == 0


def _end(child: subprocess.Popen[bytes]) -> None:
    """With all that it has started."""
    os.killpg(child.pid, signal.SIGINT)
    try:
        child.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


if __name__ == "__main__":
    sys.exit(main())
