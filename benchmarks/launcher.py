"""What a launch of a kernel costs beside the driver: ``python -m benchmarks.launcher``, on any machine with g++.

The driver is a stub that returns at once, so the figures are our own share: arguments packed, a function called.
"""

import subprocess
import tempfile
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from trioserve._speedups.launcher import Driver, Launcher
from trioserve.kernels.build import Builder, Built
from trioserve.kernels.driver import CudaGpu, letters
from trioserve.kernels.nvrtc import Usage
from trioserve.kernels.paged_attention_gpu import decode_kernel
from trioserve.kernels.rms_norm import add_rms_norm_gpu
from trioserve.kernels.source import Kernel, signature

FUNCTIONS = (
    "cuInit cuDriverGetVersion cuModuleLoadData cuModuleGetFunction cuFuncSetAttribute cuGetErrorString "
    "cuLaunchKernel"
).split()
ROUNDS, CALLS = 7, 20_000


class Shelf(Builder):
    """Has every kernel already."""

    def get(self, kernel: Kernel) -> Built:
        return Built(b"image", kernel.base, Usage(kernel.base, 1, 0, 0, 0))


def stub_driver(folder: Path) -> Driver:
    """A driver that says yes to everything."""
    source, library = folder / "stub.cpp", folder / "libcuda.so.1"
    source.write_text("".join(f'extern "C" int {name}() {{ return 0; }}\n' for name in FUNCTIONS))
    subprocess.run(["g++", "-O2", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return Driver(str(library))


def cases(driver: Driver) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names and what is timed."""
    kinds = letters(signature(decode_kernel("bf16", "bf16", 128)))
    launch = Launcher(driver, 1, "paged_decode", kinds, (128, 1, 1), 69632)
    values = [0.5 if kind == "f" else 1 << 40 if kind == "p" else 8 for kind in kinds]
    yield f"a launcher with {len(values)} numbers", lambda: launch(0, 4, 8, 64, *values)
    tensors = [torch.zeros(4) for kind in kinds if kind == "p"]
    numbers = [value for kind, value in zip(kinds, values, strict=True) if kind != "p"]
    yield (
        f"the same, {len(tensors)} of them addresses of tensors",
        lambda: launch(0, 4, 8, 64, *[tensor.data_ptr() for tensor in tensors], *numbers),
    )
    gpu = CudaGpu(
        driver, Shelf("sm_90a"), device=torch.device("cpu"), num_multiprocessors=132, stream=lambda: 0
    )
    x, weight = torch.zeros(8, 4096, dtype=torch.bfloat16), torch.zeros(4096, dtype=torch.bfloat16)
    residual = x.clone()
    yield "add_rms_norm_gpu as layers call it", lambda: add_rms_norm_gpu(gpu, x, residual, weight, eps=1e-5)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, call in cases(stub_driver(Path(folder))):
            rounds = sorted(timeit.repeat(call, number=CALLS, repeat=ROUNDS))
            low, high = (1e6 * seconds / CALLS for seconds in (rounds[0], rounds[-1]))
            print(f"{name:52} {low:6.2f} us, {ROUNDS} rounds up to {high:.2f}")


if __name__ == "__main__":
    main()
