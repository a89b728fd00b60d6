"""The CUDA compilers that may be at hand: what each makes of a file for a GPU that need not be there."""

import ctypes
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.emu.build import CUDA

FLAGS: Final = ("-std=c++17", f"-I{CUDA}")


@dataclass(frozen=True, slots=True)
class Usage:
    """What ptxas says that one kernel takes."""

    kernel: str
    """Its mangled name."""
    registers: int
    stack_bytes: int
    spill_bytes: int


class CompileError(Exception):
    """A CUDA compiler refuses a file; the message is its log."""


Compile = Callable[[Path, Sequence[str], str, Path], list[Usage]]
"""source, kernels, architecture, a folder to write to -> what each kernel takes."""


def compilers() -> Mapping[str, Compile | None]:
    """Each known compiler, or None where it is not installed."""
    library = _find_nvrtc()
    return {
        "nvcc": _nvcc if shutil.which("nvcc") else None,
        "nvrtc": None if library is None else Nvrtc(library).compile,
    }


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
        raise CompileError(done.stderr)
    return list(_usages(done.stderr))


def _find_nvrtc() -> Path | None:
    """The library of the package nvidia-cuda-nvrtc, which has lain in several places."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return next((found for at in folders for found in sorted(Path(at).glob("*/lib/libnvrtc.so.*"))), None)


class Nvrtc:
    """NVRTC by ctypes: the compiler that a server has."""

    def __init__(self, library: Path) -> None:
        for builtins in sorted(library.parent.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(builtins))  # which it asks for by name alone
        self._nvrtc = ctypes.CDLL(str(library))

    def compile(self, source: Path, kernels: Sequence[str], architecture: str, folder: Path) -> list[Usage]:
        del folder
        program = ctypes.c_void_p()
        text = f'#include "{source}"\n'.encode()
        self._call("CreateProgram", ctypes.byref(program), text, b"kernels.cu", 0, None, None)
        try:
            for kernel in kernels:
                self._call("AddNameExpression", program, kernel.encode())
            options = [option.encode() for option in (*FLAGS, f"-arch={architecture}", "--ptxas-options=-v")]
            result = self._nvrtc.nvrtcCompileProgram(
                program, len(options), (ctypes.c_char_p * len(options))(*options)
            )
            log = self._log(program)
            if result:
                raise CompileError(log)
            return list(_usages(log))
        finally:
            self._call("DestroyProgram", ctypes.byref(program))

    def _log(self, program: ctypes.c_void_p) -> str:
        size = ctypes.c_size_t()
        self._call("GetProgramLogSize", program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self._call("GetProgramLog", program, log)
        return log.value.decode()

    def _call(self, name: str, *arguments: object) -> None:
        result = self._nvrtc[f"nvrtc{name}"](*arguments)
        if result:
            raise CompileError(f"nvrtc{name} says {result}")


def _usages(log: str) -> Iterator[Usage]:
    for part in log.split("Compiling entry function '")[1:]:

        def number(pattern: str, part: str = part) -> int:
            found = re.search(pattern, part)
            if found is None:
                raise CompileError(f"ptxas says nothing of {pattern}:\n{part}")
            return int(found[1])

        yield Usage(
            kernel=part.split("'")[0],
            registers=number(r"Used (\d+) registers"),
            stack_bytes=number(r"(\d+) bytes stack frame"),
            spill_bytes=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        )
