"""What a launch of a kernel costs beside the driver: ``python -m benchmarks.launcher``, on any machine with g++.

The driver is the tests' stub, which returns at once, so the figures are our own share, or CuPy's: arguments packed, a
function called. Needs NVRTC and CuPy.
"""

import os
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch

from tests.kernels.stub import RuntimeOfCupy, Stub, build_stub
from trioserve._speedups.launcher import Driver
from trioserve.kernels.build import Builder
from trioserve.kernels.driver import CudaGpu, letters
from trioserve.kernels.loader import Loader
from trioserve.kernels.paged_attention_gpu import decode_kernel
from trioserve.kernels.quantized_linear import pack_codes, quantize_int8, quantized_linear_gpu
from trioserve.kernels.rms_norm import add_rms_norm_gpu, rms_norm_gpu
from trioserve.kernels.source import signature

ROUNDS: Final = 7
CALLS: Final = 20_000
BLOCK: Final = (128, 1, 1)
SHARED_BYTES: Final = 69632
NUMBERS: Final[Mapping[str, Callable[[float], object]]] = {
    "f": np.float32,
    "p": np.uint64,
    "i": np.int32,
    "l": np.int64,
    "u": np.uint32,
}
"""What CuPy wants for each kind of argument."""
Case = tuple[str, Callable[[], object]]


def gpu_on(folder: Path) -> CudaGpu:
    """Whose kernels are built, loaded by CuPy, and launched into the stub."""
    driver = Driver()
    return CudaGpu(
        driver,
        Builder("sm_90a", folder),
        Loader(0, driver.version),
        device=torch.device("cpu"),
        num_multiprocessors=132,
        stream=lambda: 0,
    )


def launches(gpu: CudaGpu, folder: Path) -> Iterator[Case]:
    """One kernel of many arguments, as far up as a caller may start."""
    kernel = decode_kernel("bf16", "bf16", 128)
    kinds = letters(signature(kernel))
    launch = gpu.bind(kernel, block=BLOCK, shared_bytes=SHARED_BYTES)
    values = [0.5 if kind == "f" else 1 << 40 if kind == "p" else 8 for kind in kinds]
    yield f"a launcher with {len(values)} numbers", lambda: launch(0, 4, 8, 64, *values)
    tensors = [torch.zeros(4) for kind in kinds if kind == "p"]
    numbers = [value for kind, value in zip(kinds, values, strict=True) if kind != "p"]
    yield (
        f"the same, {len(tensors)} of them addresses of tensors",
        lambda: launch(0, 4, 8, 64, *[tensor.data_ptr() for tensor in tensors], *numbers),
    )
    raw = Loader(0, 13000)(Builder("sm_90a", folder).get(kernel), SHARED_BYTES).owner
    assert callable(raw)
    boxed = tuple(NUMBERS[kind](value) for kind, value in zip(kinds, values, strict=True))
    yield (
        "CuPy's RawKernel with the same numbers",
        lambda: raw((4, 8, 64), BLOCK, boxed, shared_mem=SHARED_BYTES),
    )


def functions(gpu: CudaGpu) -> Iterator[Case]:
    """Launch functions, with their checks and what they allocate."""
    x, weight = torch.zeros(8, 4096, dtype=torch.bfloat16), torch.zeros(4096, dtype=torch.bfloat16)
    residual = x.clone()
    yield "torch.empty of what they return", lambda: torch.empty((8, 4096), dtype=torch.bfloat16)
    yield "rms_norm_gpu", lambda: rms_norm_gpu(gpu, x, weight, eps=1e-5)
    yield "add_rms_norm_gpu", lambda: add_rms_norm_gpu(gpu, x, residual, weight, eps=1e-5)
    packed = pack_codes(*quantize_int8(torch.ones(256, 4096)))
    yield "quantized_linear_gpu", lambda: quantized_linear_gpu(gpu, x, packed)


def time_all(stub: Path) -> None:
    """Where ``stub`` is preloaded."""
    Stub(stub)
    RuntimeOfCupy(stub.parent)
    gpu = gpu_on(stub.parent)
    for name, call in (*launches(gpu, stub.parent), *functions(gpu)):
        rounds = sorted(timeit.repeat(call, number=CALLS, repeat=ROUNDS))
        low, high = (1e6 * seconds / CALLS for seconds in (rounds[0], rounds[-1]))
        print(f"{name:52} {low:6.2f} us, {ROUNDS} rounds up to {high:.2f}")


def main() -> None:
    """Start anew with the stub preloaded, then time."""
    stub = Path(os.environ.get("LD_PRELOAD", ""))
    if stub.name == "libcuda.so.1":
        time_all(stub)
        return
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "LD_PRELOAD": str(build_stub(Path(folder)))}
        command = [sys.executable, "-m", "benchmarks.launcher"]
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
