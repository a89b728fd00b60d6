"""Compiles a .cu file with g++ and the emulator, and calls its kernels on CPU tensors.

A kernel is named as NVRTC names it, ``rms_norm<bf16, 8, 256, 1>``. One shared library holds all instantiations that a
test module asks for.
"""

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

HERE: Final = Path(__file__).parent
CUDA: Final = HERE.parents[1] / "cuda"
FORWARD: Final = 0
REVERSE: Final = 1
ORDERS: Final = (FORWARD, REVERSE, 12345)
"""In which threads and blocks take turns; other numbers are seeds of a shuffle."""

_FLAGS: Final = (
    "-std=c++17 -O1 -shared -fPIC -fvisibility=hidden -fno-gnu-unique -fno-strict-aliasing "
    "-Wall -Wextra -Werror -Wno-unknown-pragmas"
).split()
SANITIZE: Final = "CUEMU_SANITIZE"
"""A variable: where it is set, AddressSanitizer and UBSan watch the kernels and the emulator itself."""
_SANITIZERS: Final = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-sanitize=vptr -O0".split()
_POINTEES: Final[Mapping[str, torch.dtype]] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "e4m3": torch.float8_e4m3fn,
    "f32": torch.float32,
    "i32": torch.int32,
    "i64": torch.int64,
    "u16": torch.uint16,
    "u8": torch.uint8,
}
_VALUES: Final[Mapping[str, type[ctypes.c_float | ctypes.c_int32 | ctypes.c_int64]]] = {
    "f32": ctypes.c_float,
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
}


class EmulatorError(Exception):
    """The emulator saw what no kernel may do; the message says what, and which thread did it."""


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint64),
        ("order", ctypes.c_int32),
    )


class Library:
    """The kernels of one file, ready to launch."""

    def __init__(self, path: Path, kernels: Sequence[str]) -> None:
        self._library = ctypes.CDLL(str(path))
        self._numbers = {kernel: number for number, kernel in enumerate(kernels)}

    def signature(self, kernel: str) -> list[str]:
        """What each argument is: ``"f32"`` for a value, ``"in f32"`` and ``"out f32"`` for tensors."""
        function = self._library[f"cuemu_signature_{self._numbers[kernel]}"]
        function.restype = ctypes.c_char_p
        text: str = function().decode()
        return text.split(", ") if text else []

    def launch(
        self,
        kernel: str,
        *arguments: Tensor | float,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared_bytes: int = 0,
        order: int = FORWARD,
    ) -> None:
        """Run every block to its end.

        Raises:
            EmulatorError: The kernel did something that no kernel may do, or CUDA would refuse the launch.
            TypeError: The arguments are not those of the kernel.
        """
        signature = self.signature(kernel)
        if len(signature) != len(arguments):
            raise TypeError(f"{kernel} takes {len(signature)} arguments, not {len(arguments)}")
        values = [_packed(kind, argument) for kind, argument in zip(signature, arguments, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        sizes = (ctypes.c_uint64 * len(values))(*map(_span_bytes, arguments))
        launch = _Launch(_three(grid), _three(block), shared_bytes, order)
        function = self._library[f"cuemu_launch_{self._numbers[kernel]}"]
        function.restype = ctypes.c_char_p
        fault: bytes | None = function(ctypes.byref(launch), pointers, sizes)
        if fault is not None:
            raise EmulatorError(fault.decode())


def build(source: Path, kernels: Sequence[str], folder: Path, *, defines: Sequence[str] = ()) -> Library:
    """Compile ``source`` with an entry for each of ``kernels`` into ``folder``, unless that was done before.

    Raises:
        CalledProcessError: The compiler refuses it; what it said is on standard error.
    """
    exports = "".join(f"CUEMU_EXPORT({i}, {kernel})\n" for i, kernel in enumerate(kernels))
    text = "".join(f"#define {name}\n" for name in defines) + f'#include "{source}"\n{exports}'
    stem = folder / f"{source.stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not stem.with_suffix(".so").exists():
        stem.with_suffix(".cpp").write_text(text)
        flags = [*_FLAGS, *(_SANITIZERS if os.environ.get(SANITIZE) else ())]
        command = ["g++", *flags, f"-I{HERE}", f"-I{CUDA}", f"{stem}.cpp", "-o", f"{stem}.so"]
        subprocess.run(command, check=True)
    return Library(stem.with_suffix(".so"), kernels)


def _packed(
    kind: str, argument: Tensor | float
) -> ctypes.c_void_p | ctypes.c_float | ctypes.c_int32 | ctypes.c_int64:
    if isinstance(argument, Tensor):
        if _POINTEES.get(kind.split()[-1]) != argument.dtype or kind in _VALUES:
            raise TypeError(f"{kind} is expected, not a tensor of {argument.dtype}")
        return ctypes.c_void_p(argument.data_ptr())
    if kind not in _VALUES:
        raise TypeError(f"{kind} is expected, not {argument}")
    value = _VALUES[kind](argument)  # type: ignore[arg-type]  # ctypes refuses a float for an integer itself
    if kind != "f32" and value.value != argument:
        raise TypeError(f"{argument} is no {kind}")
    return value


def _span_bytes(argument: Tensor | float) -> int:
    """From the first element to the end of the last, strides included."""
    if not isinstance(argument, Tensor) or not argument.numel():
        return 0
    last = sum((size - 1) * stride for size, stride in zip(argument.shape, argument.stride(), strict=True))
    return (last + 1) * argument.itemsize


def _three(sizes: tuple[int, ...]) -> ctypes.Array[ctypes.c_uint]:
    return (ctypes.c_uint * 3)(*sizes, *(1,) * (3 - len(sizes)))
