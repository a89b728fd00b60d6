"""AddressSanitizer and UBSan watch the kernels in the emulator, and see what it does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emu.build import SANITIZE


def library_of(name: str) -> str:
    """g++'s own, which must be loaded before the interpreter's libraries."""
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sanitized")


def run(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    libraries = [library_of("libasan.so"), library_of("libubsan.so")]
    if not all(Path(path).is_absolute() for path in libraries):
        pytest.skip("g++ has no sanitizers here: nothing watches the emulator's own memory in this run")
    environment = {
        **os.environ,
        SANITIZE: "1",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=0",
    }
    return subprocess.run(
        [sys.executable, "-m", "tests.emu.sanitized", str(folder), name],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_kernels_of_every_kind_are_clean(folder: Path) -> None:
    done = run(folder, "kernels")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("probe", "sentence"),
    [
        ("local_beyond", "stack-buffer-overflow|index 4 out of bounds"),
        ("shift_too_far", "shift exponent 40 is too large"),
    ],
)
def test_a_fault_that_only_they_see_is_seen(folder: Path, probe: str, sentence: str) -> None:
    done = run(folder, probe)
    assert done.returncode != 0
    assert any(words in done.stderr for words in sentence.split("|"))
