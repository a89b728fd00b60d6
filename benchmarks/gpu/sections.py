"""The parts of ``benchmarks.gpu``, in order; ``python -m benchmarks.gpu.sections NAME FILE`` runs one."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from benchmarks.gpu import attention, ceilings, correctness, http, invariance, kernels, ranks, steps
from benchmarks.gpu.report import Report

SECTIONS: Final[Mapping[str, Callable[[Report], None]]] = {
    "ceilings": ceilings.measure,
    "correctness": correctness.measure,
    "attention": attention.measure,
    "kernels": kernels.measure,
    "steps": steps.measure,
    "invariance": invariance.measure,
    "ranks": ranks.measure,
    "http": http.measure_streams,
}


def main() -> None:
    name, path = sys.argv[1:]
    SECTIONS[name](Report(Path(path)))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as exc:
        sys.exit(f"{exc}")
