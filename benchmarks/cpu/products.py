"""How fast this machine multiplies bfloat16 matrices through torch (oneDNN): the limit of a prefill.

python -m benchmarks.cpu.products [--threads 2]
"""

import argparse
import time
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
_ROUNDS: Final = 30


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    torch.set_num_threads(parser.parse_args().threads)
    for size in SIZES:
        print(f"{'x'.join(map(str, size)):>14}  {best_rate(*size) / 1e12:.2f} TFLOP/s")


if __name__ == "__main__":
    main()
