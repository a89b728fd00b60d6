"""How fast this machine multiplies bfloat16 matrices through torch (oneDNN), and how fast its dot products are at most.

python -m benchmarks.cpu.products [--threads 2]

The peak is that of dot products on registers, nothing read or written (``peak.cpp``, which needs a C++ compiler and
AVX-512 with bfloat16 and byte dot products): the limit of a prefill in bfloat16 and in int8.
"""

import argparse
import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import torch

SIZES: Final = (
    (512, 576, 1536),
    (512, 576, 3072),
    (512, 1536, 576),
    (512, 896, 4864),
    (512, 4864, 896),
    (2048,) * 3,
)
"""Rows, depth and columns: products of 512 tokens in S and M, and a large one."""
PEAKS: Final = {"multiply_pairs": ("bfloat16", 64), "multiply_bytes": ("int8", 128)}
"""Functions of ``peak.cpp``: what they multiply, and operations of one dot product."""
_ROUNDS: Final = 30
_PEAK_ROUNDS: Final = 10_000_000
_DOTS_A_ROUND: Final = 24


@torch.inference_mode()
def best_rate(rows: int, depth: int, columns: int) -> float:
    """Operations a second, two to a multiplication and addition, the best of several."""
    inputs, weight = torch.randn(rows, depth).bfloat16(), torch.randn(columns, depth).bfloat16()
    best = float("inf")
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        torch.nn.functional.linear(inputs, weight)
        best = min(best, time.perf_counter() - began)
    return 2 * rows * depth * columns / best


def peak_rates(num_threads: int) -> dict[str, float]:
    """Operations a second of all threads together, the best of several; empty where the processor cannot.

    Raises:
        subprocess.CalledProcessError: ``peak.cpp`` does not compile.
    """
    flags = Path("/proc/cpuinfo").read_text().split()
    if not {"avx512_bf16", "avx512_vnni"} <= set(flags):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peak.so"
        source = Path(__file__).with_name("peak.cpp")
        subprocess.run(["c++", "-O2", "-mavx512f", "-shared", "-fPIC", "-o", path, source], check=True)
        library = ctypes.CDLL(str(path))
        return {
            name: operations * _DOTS_A_ROUND * _peak_rounds(getattr(library, function), num_threads)
            for function, (name, operations) in PEAKS.items()
        }


def _peak_rounds(multiply: Callable[[ctypes.c_long], object], num_threads: int) -> float:
    """Rounds a second of all threads together, the best of several; C runs without the interpreter's lock."""

    def timed(_: int) -> float:
        began = time.perf_counter()
        multiply(ctypes.c_long(_PEAK_ROUNDS))
        return _PEAK_ROUNDS / (time.perf_counter() - began)

    with ThreadPoolExecutor(num_threads) as threads:
        return max(sum(threads.map(timed, range(num_threads))) for _ in range(_ROUNDS))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    num_threads = parser.parse_args().threads
    torch.set_num_threads(num_threads)
    for name, rate in peak_rates(num_threads).items():
        print(f"{'peak, ' + name:>14}  {rate / 1e12:.2f} T operations/s")
    for size in SIZES:
        print(f"{'x'.join(map(str, size)):>14}  {best_rate(*size) / 1e12:.2f} TFLOP/s")


if __name__ == "__main__":
    main()
