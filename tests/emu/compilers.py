"""The CUDA compilers that may be at hand: what each makes of a file for a GPU that need not be there."""

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.emu.build import CUDA
from trioserve.errors import KernelError
from trioserve.kernels.nvrtc import Usage, nvrtc, usages_of
from trioserve.kernels.source import inlined

FLAGS: Final = ("-std=c++17", f"-I{CUDA}")

Compile = Callable[[Path, Sequence[str], str, Path], list[Usage]]
"""source, kernels, architecture, a folder to write to -> what each kernel takes."""


def compilers() -> Mapping[str, Compile | None]:
    """Each known compiler, or None where it is not installed."""
    return {"nvcc": _nvcc if shutil.which("nvcc") else None, "nvrtc": _nvrtc if _has_nvrtc() else None}


def _has_nvrtc() -> bool:
    try:
        nvrtc()
    except KernelError:
        return False
    return True


def _nvcc(source: Path, kernels: Sequence[str], architecture: str, folder: Path) -> list[Usage]:
    wrapper = folder / f"{source.stem}-{architecture}.cu"
    pointers = ", ".join(f"(void*)&{kernel}" for kernel in kernels)
    wrapper.write_text(f'#include "{source}"\nvoid* kernels[] = {{{pointers}}};\n')
    command = ["nvcc", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", *FLAGS]
    done = subprocess.run(
        [*command, str(wrapper), "-o", str(wrapper.with_suffix(".cubin"))],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise KernelError(done.stderr)
    return list(usages_of(done.stderr))


def _nvrtc(source: Path, kernels: Sequence[str], architecture: str, folder: Path) -> list[Usage]:
    del folder
    return list(nvrtc().compile(inlined(str(source)), kernels, architecture).usages)
