"""Real CUDA compilers take every kernel; none of them needs a GPU for that."""

from pathlib import Path

import pytest

from tests.emu.build import CUDA, HERE
from tests.emu.compilers import Compile, compilers
from tests.emu.instances import INSTANCES
from trioserve.kernels.source import KernelError

COMPILERS = compilers()
ARCHITECTURES = ["sm_80", "sm_90"]
MAX_REGISTERS = 64
"""Of a thread: 1024 of them fill a multiprocessor's 65536."""


@pytest.fixture(params=COMPILERS)
def compiler(request: pytest.FixtureRequest) -> Compile:
    found = COMPILERS[request.param]
    if found is None:
        pytest.skip(f"{request.param} is not installed: no CUDA compiler checks the kernels in this run")
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", INSTANCES)
def test_kernels_compile_and_spill_nothing(
    compiler: Compile, name: str, architecture: str, tmp_path: Path
) -> None:
    usages = compiler(CUDA / name, INSTANCES[name], architecture, tmp_path)
    assert len(usages) == len(INSTANCES[name])
    assert [usage for usage in usages if usage.stack_bytes or usage.spill_bytes] == []
    assert max(usage.registers for usage in usages) <= MAX_REGISTERS


def test_the_emulators_probes_are_cuda(compiler: Compile, tmp_path: Path) -> None:
    """So that what the emulator is tested with is the language of the kernels."""
    usages = compiler(HERE / "probes.cu", ["exchange", "sums", "reverse"], "sm_80", tmp_path)
    compiled = " ".join(usage.kernel for usage in usages)
    assert all(name in compiled for name in ("exchange", "sums", "reverse"))


def test_a_kernel_that_is_not_there_is_an_error(compiler: Compile, tmp_path: Path) -> None:
    with pytest.raises(KernelError):
        compiler(CUDA / "store_kv.cu", ["store_kv<bf16, 3, 128>"], "sm_80", tmp_path)
