"""In a process of its own, where the stub is preloaded: kernels are built by NVRTC, loaded by CuPy and launched.

``LD_PRELOAD=STUB python -m tests.kernels.cupy_on_stub STUB FOLDER`` writes what the driver was told as JSON.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.kernels.stub import RuntimeOfCupy, Stub
from trioserve._speedups.launcher import Driver
from trioserve.errors import KernelError
from trioserve.kernels.build import Builder, Built
from trioserve.kernels.driver import CudaGpu, letters
from trioserve.kernels.loader import Loader
from trioserve.kernels.rms_norm import norm_kernel, rms_norm_gpu
from trioserve.kernels.source import signature

KERNEL = norm_kernel("float", 4, 256, 1)


def gpu(index: int, folder: Path) -> CudaGpu:
    driver = Driver()
    return CudaGpu(
        driver,
        Builder("sm_90a", folder),
        Loader(index, driver.version),
        device=torch.device("cpu"),
        num_multiprocessors=132,
        stream=lambda: 5,
    )


def launched(stub: Stub, runtime: RuntimeOfCupy, folder: Path) -> Iterator[dict[str, Any]]:
    """A launch function on two devices, and on the first again."""
    x, weight = torch.zeros(7, 64), torch.zeros(64)
    gpus = gpu(0, folder), gpu(1, folder)
    kinds = letters(signature(KERNEL))
    stub.number("num_values").value = len(kinds)
    for at in (0, 1, 0):
        runtime.current = 0
        out = rms_norm_gpu(gpus[at], x, weight, eps=0.5, offset=1.0)
        function = stub.function()
        yield {
            "arguments": stub.values(kinds),
            "expected": [out.data_ptr(), x.data_ptr(), weight.data_ptr(), 7, 1, 64, 64, 1.0, 0.5],
            "grid": list(stub.last.grid),
            "function": stub.last.function,
            "name": function.name.decode(),
            "path": function.path.decode(),
            "device": runtime.current,
        }


def shared_bytes(stub: Stub, folder: Path) -> Iterator[int]:
    """What the driver allows after each binding of one kernel."""
    there, block, values = gpu(0, folder), (256,), (1,) * len(signature(KERNEL))
    for wanted in (1000, 90000, 70000):
        there.bind(KERNEL, block=block, shared_bytes=wanted)(0, 1, 1, 1, *values)
        yield stub.function().shared_bytes


def sentences(stub: Stub, folder: Path) -> Iterator[str]:
    """What is said where something is wrong."""
    loader = Loader(1, 13000)
    built = Builder("sm_90a", folder).get(KERNEL)
    (folder / "bad.cubin").write_bytes(b"nothing")
    for wrong in (
        replace(built, path=folder / "bad.cubin"),
        replace(built, path=folder / "gone.cubin"),
        replace(built, mangled="absent"),
        replace(built, cuda="14.1"),
    ):
        yield sentence_of(loader, wrong, 0)
    yield sentence_of(loader, built, 1 << 20)
    yield sentence_of(Loader, 0, 12080)


def sentence_of(function: Any, *arguments: int | Built) -> str:
    try:
        function(*arguments)
    except KernelError as exc:
        return str(exc)
    return ""


def main(stub_path: Path, folder: Path) -> None:
    stub, runtime = Stub(stub_path), RuntimeOfCupy(folder)
    found = {
        "launched": list(launched(stub, runtime, folder)),
        "shared_bytes": list(shared_bytes(stub, folder)),
        "sentences": list(sentences(stub, folder)),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
