"""Whether this machine has NVIDIA GPUs that ranks can compute on, found out without loading what computes there."""

import ctypes
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_DRIVER = "libcuda.so.1"
_OLDEST: Final = (8, 0)
"""Compute capability that the kernels need."""
_NO_DEVICE: Final = 100
"""What the driver answers where it finds none, or may show none."""
_CAPABILITY: Final = (75, 76)
"""Numbers of the attributes that hold its two parts."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """What there is of GPUs."""

    count: int
    """That CUDA_VISIBLE_DEVICES lets be seen; 0 where none can be used."""
    missing: str = ""
    """Why none can be used and what to do about it, where none can; a clause."""
    are_there: bool = False
    """Whether there are some, of use or not."""


def find_gpus() -> Gpus:
    """The GPUs that ranks can use; the driver is asked once in a process."""
    return _found(_DRIVER)


@cache
def _found(driver: str) -> Gpus:
    """``driver``: the library of NVIDIA's driver."""
    try:
        library = ctypes.CDLL(driver)
    except OSError:
        return Gpus(0, f"this machine has no NVIDIA driver ({driver}); install it")
    found = _ask(library)
    missing = found.missing or _missing_package()
    return Gpus(0, missing, found.are_there) if missing else found


def _ask(library: ctypes.CDLL) -> Gpus:
    count, status = ctypes.c_int(), library.cuInit(0)
    if status not in (0, _NO_DEVICE):
        return Gpus(0, f"the NVIDIA driver does not start (error {status}); see what nvidia-smi says")
    if status == _NO_DEVICE or library.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return Gpus(0, "no NVIDIA GPU is visible; see what nvidia-smi and CUDA_VISIBLE_DEVICES say")
    for number in range(count.value):
        if (capability := _capability(library, number)) < _OLDEST:
            name = f"the GPU with number {number} is sm_{capability[0]}{capability[1]}"
            return Gpus(0, f"{name} and the kernels need sm_80; leave it out of CUDA_VISIBLE_DEVICES", True)
    return Gpus(count.value, are_there=True)


def _capability(library: ctypes.CDLL, number: int) -> tuple[int, int]:
    device, part = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), number)
    parts = []
    for attribute in _CAPABILITY:
        library.cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
        parts.append(part.value)
    return parts[0], parts[1]


def _missing_package() -> str:
    torch = importlib.util.find_spec("torch")
    if torch is None or not torch.origin or not _has_cuda(Path(torch.origin).parent):
        return "the torch that is installed is made for CPUs alone; install one for CUDA"
    if importlib.util.find_spec("cupy") is None:
        return "the kernels are loaded by CuPy, which is not installed; install trioserve[cuda]"
    return ""


def _has_cuda(torch: Path) -> bool:
    return (torch / "lib" / "libtorch_cuda.so").is_file()
