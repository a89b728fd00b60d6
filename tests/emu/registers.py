"""The checked-in table of what every kernel takes on every architecture, and the command that writes it anew.

``python -m tests.emu.registers`` compiles some thousand cubins, in two or three minutes of a core; the tests then
compile a sample, and see by digests of the sources that the table speaks of the kernels as they are.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trioserve.kernels.build import Builder
from trioserve.kernels.catalogue import kernels
from trioserve.kernels.nvrtc import OPTIONS, Usage, nvrtc
from trioserve.kernels.source import Kernel, essence, inlined

ARCHITECTURES: Final = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120")
PATH: Final = Path(__file__).with_suffix(".json")
_COMMAND: Final = "python -m tests.emu.registers"


@dataclass(frozen=True, slots=True)
class Table:
    """What was compiled, by what, and what it takes."""

    nvrtc: str
    digests: Mapping[str, str]
    """Of files, each with what it includes and with its instantiations."""
    registers: Mapping[str, tuple[int, ...]]
    """Of a thread, by kernel, in the order of its architectures. None of the kernels spills or has a stack."""


def read_table() -> Table:
    """The table as it is checked in."""
    words = json.loads(PATH.read_text())
    return Table(
        words["nvrtc"], words["digests"], {name: tuple(row) for name, row in words["registers"].items()}
    )


def digests() -> dict[str, str]:
    """What the table's digests must be."""
    names: dict[str, list[str]] = {}
    for kernel in kernels():
        names.setdefault(kernel.file, []).append(kernel.name)
    return {
        file: hashlib.sha256("\0".join([essence(file), *OPTIONS, *names[file]]).encode()).hexdigest()[:16]
        for file in names
    }


def architectures_of(kernel: Kernel) -> tuple[str, ...]:
    """For which it is compiled: all, or the only one that has it."""
    return (kernel.architecture,) if kernel.architecture else ARCHITECTURES


def stale_files() -> list[str]:
    """Files of which the table does not speak as they are."""
    told, are = read_table().digests, digests()
    return sorted(file for file in {*told, *are} if told.get(file) != are.get(file))


def usage_of(kernel: Kernel, architecture: str) -> Usage:
    """Compiled now."""
    return nvrtc().compile(inlined(kernel.file), [kernel.name], architecture).usages[0]


def _write() -> None:
    """Compile what has changed, on all cores, and keep the rest."""
    changed = set(stale_files()) if PATH.exists() else set(digests())
    rows = dict(read_table().registers) if PATH.exists() else {}
    found = list(kernels())
    names = {kernel.name for kernel in found}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for kernel in found:
            if kernel.file in changed or kernel.name not in rows:
                architectures = architectures_of(kernel)
                usages = [
                    built.usage
                    for built in pool.map(lambda at, of=kernel: Builder(at).get(of), architectures)
                ]
                spilling = [
                    at for at, u in zip(architectures, usages, strict=True) if u.spill_bytes or u.stack_bytes
                ]
                assert not spilling, f"{kernel.name} spills on {spilling}"
                rows[kernel.name] = tuple(usage.registers for usage in usages)
    lines = [
        f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items()) if name in names
    ]
    text = ",\n".join(lines)
    head = f'  "nvrtc": {json.dumps(nvrtc().version)},\n  "digests": {json.dumps(digests(), indent=4)},'
    PATH.write_text(f'{{\n{head}\n  "registers": {{\n{text}\n  }}\n}}\n')


def advice() -> str:
    """What to do when files are stale."""
    return f"{', '.join(stale_files())} changed: write the table anew by {_COMMAND} and look at what became of it"


if __name__ == "__main__":
    _write()
