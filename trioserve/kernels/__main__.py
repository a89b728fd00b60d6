"""``trioserve check --compile-kernels sm_90a``: fills the folder of cubins and says what each kernel takes."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from trioserve.errors import KernelError
from trioserve.kernels.build import Builder, Built, cache_folder
from trioserve.kernels.catalogue import kernels_for, shared_bytes
from trioserve.kernels.nvrtc import nvrtc
from trioserve.kernels.source import Kernel

_EXIT_UNAVAILABLE: Final = 78
"""As for settings: something must be changed first."""


def main(argv: Sequence[str] | None = None) -> int:
    """Compile what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="trioserve check", description="See that the CUDA kernels compile; no GPU is needed."
    )
    parser.add_argument(
        "--compile-kernels",
        nargs="+",
        required=True,
        metavar="ARCH",
        help="architectures such as sm_90a; what is compiled is kept and found again by servers",
    )
    parser.add_argument(
        "--kernel-cache", type=Path, default=None, metavar="DIR", help=f"where to keep it [{cache_folder()}]"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only kernels whose names contain this")
    arguments = parser.parse_args(argv)
    try:
        for architecture in arguments.compile_kernels:
            nvrtc().check_architecture(architecture)
        spilling = 0
        for architecture in arguments.compile_kernels:
            found = [kernel for kernel in kernels_for(architecture) if arguments.only in kernel.name]
            spilling += _compile(Builder(architecture, arguments.kernel_cache), found)
    except KernelError as exc:
        print(f"trioserve: {exc}.", file=sys.stderr)
        return _EXIT_UNAVAILABLE
    return 1 if spilling else 0


def _compile(builder: Builder, found: Sequence[Kernel]) -> int:
    """Compile and print; returns how many kernels spill."""
    print(f"{builder.architecture}, NVRTC {nvrtc().version}, kept in {builder.folder}")
    print("registers  spilled bytes  shared bytes  kernel")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        built = list(zip(found, pool.map(builder.get, found), strict=True))
    for line in _lines(built):
        print(line)
    spilling = sum(_spilled(of) > 0 for _, of in built)
    print(f"{len(built)} kernels" + (f", {spilling} of which spill" if spilling else ", none spills"))
    return spilling


def _lines(built: Sequence[tuple[Kernel, Built]]) -> Iterator[str]:
    for kernel, of in built:
        shared = of.usage.shared_bytes + shared_bytes(kernel)
        yield f"{of.usage.registers:9}  {_spilled(of):13}  {shared:12}  {kernel.name}"


def _spilled(built: Built) -> int:
    return built.usage.spill_bytes + built.usage.stack_bytes


if __name__ == "__main__":
    sys.exit(main())
