"""Real CUDA compilers take every kernel; none of them needs a GPU for that."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emu.build import CUDA, HERE
from tests.emu.compilers import Compile, compilers
from tests.emu.registers import advice, architectures_of, read_table, stale_files, usage_of
from trioserve.errors import KernelError
from trioserve.kernels.catalogue import kernels
from trioserve.kernels.nvrtc import nvrtc
from trioserve.kernels.source import Kernel

COMPILERS = compilers()
REGISTERS = 65536
"""Of a multiprocessor."""


@pytest.fixture(params=COMPILERS)
def compiler(request: pytest.FixtureRequest) -> Compile:
    found = COMPILERS[request.param]
    if found is None:
        pytest.skip(f"{request.param} is not installed: no CUDA compiler checks the kernels in this run")
    return found


def by_base() -> dict[str, list[Kernel]]:
    found: dict[str, list[Kernel]] = {}
    for kernel in kernels():
        found.setdefault(kernel.base, []).append(kernel)
    return found


def sample() -> Iterator[tuple[str, Kernel]]:
    """Of every kernel another instantiation for each architecture."""
    for instances in by_base().values():
        for number, architecture in enumerate(architectures_of(instances[0])):
            yield architecture, instances[(7 * number + 3) % len(instances)]


def test_the_table_speaks_of_the_kernels_as_they_are() -> None:
    assert stale_files() == [], advice()
    assert set(read_table().registers) == {kernel.name for kernel in kernels()}


def test_no_kernel_needs_more_registers_than_there_are() -> None:
    """Kernels of elements leave room for 1024 threads a multiprocessor, attention and products for two blocks."""
    for name, row in read_table().registers.items():
        threads = 256 if name.startswith("paged_") else 512 if "_linear" in name else 1024
        assert max(row) <= REGISTERS // threads, name


@pytest.mark.skipif(COMPILERS["nvrtc"] is None, reason="NVRTC is not installed: it cannot be asked again")
def test_a_sample_takes_what_the_table_says_and_spills_nothing() -> None:
    table = read_table()
    for architecture, kernel in sample():
        usage = usage_of(kernel, architecture)
        assert not usage.spill_bytes and not usage.stack_bytes, (kernel, architecture)
        told = table.registers[kernel.name][architectures_of(kernel).index(architecture)]
        if table.nvrtc == nvrtc().version:
            assert usage.registers == told, (kernel, architecture)


@pytest.mark.parametrize("file", sorted({kernel.file for kernel in kernels()}))
def test_every_compiler_takes_every_file(compiler: Compile, file: str, tmp_path: Path) -> None:
    found = {kernel.base: kernel for kernel in kernels() if kernel.file == file}
    architecture = min(architectures_of(kernel)[0] for kernel in found.values())
    usages = compiler(CUDA / file, [kernel.name for kernel in found.values()], architecture, tmp_path)
    assert len(usages) == len(found)
    assert [usage for usage in usages if usage.stack_bytes or usage.spill_bytes] == []


def test_the_emulators_probes_are_cuda(compiler: Compile, tmp_path: Path) -> None:
    """So that what the emulator is tested with is the language of the kernels."""
    names = ["exchange", "sums", "reverse", "multiply<bf16, true>", "widen_codes<fp16>", "copy_some"]
    usages = compiler(HERE / "probes.cu", names, "sm_80", tmp_path)
    compiled = " ".join(usage.kernel for usage in usages)
    assert all(name.partition("<")[0] in compiled for name in names)


def test_a_kernel_that_is_not_there_is_an_error(compiler: Compile, tmp_path: Path) -> None:
    with pytest.raises(KernelError):
        compiler(CUDA / "store_kv.cu", ["store_kv<bf16, 3, 128>"], "sm_80", tmp_path)
