"""NVRTC, the CUDA compiler that is a library: from a source to a cubin for a GPU that need not be there."""

import ctypes
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from trioserve.errors import KernelError

INSTALL: Final = "pip install 'trioserve[cuda]'"
OPTIONS: Final = ("-std=c++17", "--ptxas-options=-v")
"""What every compilation is given beside its architecture."""
_NAMES: Final = ("libnvrtc.so.13", "libnvrtc.so.12")
_CUDA_HOME: Final = Path("/usr/local/cuda")


@dataclass(frozen=True, slots=True)
class Usage:
    """What ptxas says that one kernel takes."""

    kernel: str
    """Its mangled name."""
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    """Of arrays whose size the source says."""


@dataclass(frozen=True, slots=True)
class Cubin:
    """The kernels of one compilation."""

    image: bytes
    mangled: tuple[str, ...]
    """What the asked kernels are called in ``image``, in the order of asking."""
    usages: tuple[Usage, ...]
    """Of the asked kernels, in that order."""


class Nvrtc:
    """The library at ``path``, or a clear sentence."""

    def __init__(self, path: Path) -> None:
        try:
            for builtins in sorted(path.parent.glob("libnvrtc-builtins.so.*")):
                ctypes.CDLL(str(builtins))  # which it asks for by name alone
            self._library = ctypes.CDLL(str(path))
        except OSError as exc:
            raise KernelError(f"NVRTC cannot be loaded ({exc}): {INSTALL}") from exc
        self.path = path
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("Version", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def check_architecture(self, architecture: str) -> None:
        """See that there can be cubins for ``architecture``, such as ``"sm_90a"``.

        Raises:
            KernelError: It is no architecture, or one that this NVRTC does not know.
        """
        found = re.fullmatch(r"sm_(\d+)[af]?", architecture)
        if found is None:
            raise KernelError(f"{architecture!r} is no GPU architecture: write it as sm_90a")
        known = self._architectures()
        if int(found[1]) not in known:
            raise KernelError(
                f"NVRTC {self.version} ({self.path}) compiles for sm_{known[0]} to sm_{known[-1]}, not for "
                f"{architecture}: {INSTALL} brings the one that these kernels are checked with"
            )

    def compile(self, text: str, kernels: Sequence[str], architecture: str) -> Cubin:
        """Compile a source without includes, with the instantiations ``kernels``.

        Raises:
            KernelError: The compiler refuses it; the message holds its log.
        """
        self.check_architecture(architecture)
        program = ctypes.c_void_p()
        self._call("CreateProgram", ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None)
        try:
            for kernel in kernels:
                self._call("AddNameExpression", program, kernel.encode())
            options = [option.encode() for option in (*OPTIONS, f"-arch={architecture}")]
            failed = self._library.nvrtcCompileProgram(
                program, len(options), (ctypes.c_char_p * len(options))(*options)
            )
            log = self._bytes("ProgramLog", program).rstrip(b"\0").decode(errors="replace")
            if failed:
                raise KernelError(f"NVRTC {self.version} refuses the kernels for {architecture}:\n{log}")
            mangled = tuple(self._mangled(program, kernel) for kernel in kernels)
            usages = {usage.kernel: usage for usage in usages_of(log)}
            return Cubin(self._bytes("CUBIN", program), mangled, tuple(usages[name] for name in mangled))
        finally:
            self._call("DestroyProgram", ctypes.byref(program))

    def _architectures(self) -> list[int]:
        count = ctypes.c_int()
        self._call("GetNumSupportedArchs", ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        self._call("GetSupportedArchs", known)
        return sorted(known)

    def _mangled(self, program: ctypes.c_void_p, kernel: str) -> str:
        name = ctypes.c_char_p()
        self._call("GetLoweredName", program, kernel.encode(), ctypes.byref(name))
        return (name.value or b"").decode()

    def _bytes(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self._library, f"nvrtc{name}", None)
        if function is None:
            raise KernelError(f"{self.path} is too old, it has no nvrtc{name}: {INSTALL}")
        if result := function(*arguments):
            raise KernelError(f"nvrtc{name} of {self.path} fails with {result}")


@cache
def nvrtc() -> Nvrtc:
    """The NVRTC of this machine: the package's before the system's.

    Raises:
        KernelError: There is none, or it cannot be loaded.
    """
    path = next(_candidates(), None)
    if path is None:
        raise KernelError(f"NVRTC, which compiles the CUDA kernels, is not installed: {INSTALL}")
    return Nvrtc(path)


def _candidates() -> Iterator[Path]:
    """Where libraries lie: in the package nvidia-cuda-nvrtc, which has had several places, and with CUDA."""
    spec = importlib.util.find_spec("nvidia")
    for at in [] if spec is None else spec.submodule_search_locations or []:
        yield from (path for name in _NAMES for path in sorted(Path(at).glob(f"*/lib/{name}")))
    home = Path(os.environ.get("CUDA_HOME") or _CUDA_HOME)
    yield from (
        path for name in _NAMES for path in (home / "lib64" / name, home / "lib" / name) if path.exists()
    )


def usages_of(log: str) -> Iterator[Usage]:
    """What the log of ``--ptxas-options=-v`` says of each kernel.

    Raises:
        KernelError: It says something else than it used to.
    """
    for part in log.split("Compiling entry function '")[1:]:
        yield Usage(
            kernel=part.split("'")[0],
            registers=_number(r"Used (\d+) registers", part),
            stack_bytes=_number(r"(\d+) bytes stack frame", part),
            spill_bytes=_number(r"(\d+) bytes spill stores", part)
            + _number(r"(\d+) bytes spill loads", part),
            shared_bytes=_number(r"(\d+) bytes smem", part) if "bytes smem" in part else 0,
        )


def _number(pattern: str, part: str) -> int:
    found = re.search(pattern, part)
    if found is None:
        raise KernelError(f"ptxas says nothing of {pattern}:\n{part}")
    return int(found[1])
