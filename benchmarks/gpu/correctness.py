"""Whether the kernels are right on this GPU: the emulator's tests, then a sanitizer over small ones."""

import re
import shutil
import subprocess
import sys
from typing import Final

import torch

from benchmarks.gpu.report import Report, Row
from trioserve.kernels.__main__ import main as check
from trioserve.kernels.driver import architecture_of

_TESTS: Final = [
    sys.executable,
    "-m",
    "pytest",
    "tests/emu",
    "--gpu",
    "-q",
    "--no-header",
    "-p",
    "no:cacheprovider",
]
_SANITIZED: Final = "test_rms_norm or test_rope_store_kv or test_copy_blocks or test_activation"
"""Small enough to be watched; the others take minutes under a sanitizer."""
_PASSED: Final = re.compile(r"(\d+) passed")
_FAILED: Final = re.compile(r"(\d+) (?:failed|errors?)")


def measure(report: Report) -> None:
    """Add how many cases passed and how many did not.

    Raises:
        CalledProcessError: Some did not.
    """
    architecture = architecture_of(torch.cuda.get_device_capability(0))
    if check(["--compile-kernels", architecture]):
        raise subprocess.CalledProcessError(1, "trioserve check")
    _test(report, "cases against float64, outputs poisoned", _TESTS)
    if sanitizer := shutil.which("compute-sanitizer"):
        for tool in ("memcheck", "racecheck"):
            watched = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
            _test(report, f"cases under {tool}", [*watched, *_TESTS, "-k", _SANITIZED])


def _test(report: Report, name: str, command: list[str]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True)
    print(ended.stdout[-8000:], ended.stderr[-4000:], flush=True)
    passed, failed = (sum(map(int, pattern.findall(ended.stdout))) for pattern in (_PASSED, _FAILED))
    note = f"{failed} failed" if failed else "" if ended.returncode == 0 else f"exit code {ended.returncode}"
    report.add(Row("correctness", name, passed, "cases", note=note))
    ended.check_returncode()
