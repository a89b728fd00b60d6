"""AddressSanitizer and UBSan watch the kernels in the emulator, and see what it does not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emu.build import SANITIZE


def library_of(name: str) -> str:
    """g++'s own, which must be loaded before the interpreter's libraries."""
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def test_kernels_of_every_kind_are_clean_and_faults_within_a_thread_are_seen(tmp_path: Path) -> None:
    libraries = [library_of("libasan.so"), library_of("libubsan.so")]
    if not all(Path(path).is_absolute() for path in libraries):
        pytest.skip("g++ has no sanitizers here: nothing watches the emulator's own memory in this run")
    environment = {
        **os.environ,
        SANITIZE: "1",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    }
    command = [sys.executable, "-m", "tests.emu.sanitized", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["clean", "local_beyond seen", "shift_too_far seen"]
    assert re.search("stack-buffer-overflow|index 4 out of bounds", done.stderr)
    assert "shift exponent 40 is too large" in done.stderr
