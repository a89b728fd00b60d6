"""The stub of the driver, built, and what of it tests look at; and CuPy made to run on it."""

import ctypes
import importlib
import struct
import subprocess
import sysconfig
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("stub_driver.cpp")
RUNTIME: Final = Path(__file__).with_name("stub_runtime.cpp")
FORMATS: Final = {"p": "Q", "i": "i", "l": "q", "u": "I", "f": "f"}
"""Of the kinds of a launcher's arguments, for struct."""
_NAME_OF_CAPSULE: Final = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(
    ("PyCapsule_GetName", ctypes.pythonapi)
)
_NEW_CAPSULE: Final = ctypes.PYFUNCTYPE(ctypes.py_object, *[ctypes.c_void_p] * 3)(
    ("PyCapsule_New", ctypes.pythonapi)
)


class Launch(ctypes.Structure):
    """What ``cuLaunchKernel`` was told."""

    _fields_ = (
        ("function", ctypes.c_uint64),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_uint64),
        ("values", ctypes.c_uint64 * 32),
    )


class Function(ctypes.Structure):
    """What ``cuModuleGetFunction`` found, with the path of its module."""

    _fields_ = (("path", ctypes.c_char_p), ("name", ctypes.c_char_p), ("shared_bytes", ctypes.c_int))


class Stub:
    """The library at ``path``, by what it noted and what it is told to do."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.library = ctypes.CDLL(str(path))

    def number(self, name: str) -> ctypes.c_int:
        return ctypes.c_int.in_dll(self.library, name)

    @property
    def last(self) -> Launch:
        return Launch.in_dll(self.library, "last")

    def values(self, letters: str) -> list[float]:
        """Of the last launch, as kinds of arguments have them."""
        return [
            struct.unpack_from(FORMATS[letter], struct.pack("Q", value))[0]
            for letter, value in zip(letters, self.last.values, strict=False)
        ]

    def function(self) -> Function:
        """That was launched last, where it is one that the stub has found."""
        return Function.from_address(self.last.function)


def build_stub(folder: Path, name: str = "libcuda.so.1") -> Path:
    """Compile it; where it is loaded, who asks for a library of its ``name`` gets it."""
    return _compiled(SOURCE, folder / name, f"-Wl,-soname,{name}")


class RuntimeOfCupy:
    """Stands in for the half of CuPy that only a real driver can carry, in a process where the stub is preloaded.

    The CUDA runtime is a part of CuPy's modules, and it examines the driver that it finds. Where kernels are loaded and
    launched CuPy asks it for little: which device is current, how many there are, that there be a context. Its modules
    take the addresses of these functions from one of their own when they are imported, and find those of
    ``stub_runtime.cpp`` there.
    """

    def __init__(self, folder: Path) -> None:
        path = _compiled(RUNTIME, folder / "libruntime.so", f"-I{sysconfig.get_path('include')}")
        self._library = ctypes.PyDLL(str(path))
        self._kept: dict[str, object] = {}
        functions = importlib.import_module("cupy_backends.cuda.api.runtime").__pyx_capi__
        for name in ("getDevice", "getDeviceCount", "setDevice", "_ensure_context"):
            self._replace(functions, name)

    @property
    def current(self) -> int:
        """The number of the current device."""
        return ctypes.c_int.in_dll(self._library, "current").value

    @current.setter
    def current(self, number: int) -> None:
        ctypes.c_int.in_dll(self._library, "current").value = number

    def _replace(self, functions: dict[str, object], name: str) -> None:
        """Under the signature of the original, without which no module takes it."""
        self._kept[name] = functions[name]
        signature = _NAME_OF_CAPSULE(functions[name])
        functions[name] = _NEW_CAPSULE(ctypes.cast(self._library[name], ctypes.c_void_p), signature, None)


def _compiled(source: Path, path: Path, *flags: str) -> Path:
    command = ["g++", "-std=c++17", "-O2", "-shared", "-fPIC", *flags, str(source), "-o", str(path)]
    subprocess.run(command, check=True)
    return path
