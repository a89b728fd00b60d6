"""What this process may use of the machine: cores and memory, control groups of both versions included."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trioserve.errors import ModelError

_ROOT: Final = Path("/")
_CGROUPS: Final = "sys/fs/cgroup"
_MEMORY_FILES: Final = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, usage and the line of memory.stat that tells cached files, in version 2 and version 1."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Where this process may compute."""

    cpus: list[int]
    """One hardware thread of each physical core that it may run on, by the system's numbers."""
    quota: int
    """How many of them its control groups give it time for, at least 1; a part of a core is none."""

    @property
    def count(self) -> int:
        """Threads that can all run at once; at least 1."""
        return min(len(self.cpus), self.quota)

    def share(self, number: int, count: int) -> "Cores":
        """Those of process ``number`` of ``count`` that share them out; neighbours stay together.

        Raises:
            ModelError: There are fewer than processes.
        """
        if count > self.count:
            raise ModelError(
                f"tensor_parallel_size {count} is more than the {self.count} cores that can be used: lower it"
            )
        first, end = (len(self.cpus) * each // count for each in (number, number + 1))
        return Cores(self.cpus[first:end], self.quota // count)


def usable_cores(root: Path = _ROOT) -> Cores:
    """What the system's files under ``root`` say of this process."""
    cores: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        cores.setdefault(_siblings(root, cpu), cpu)
    quotas = (int(quota) for quota in _cpu_quotas(root))
    return Cores(list(cores.values()), max(1, min(quotas, default=len(cores))))


def available_memory_bytes(root: Path = _ROOT) -> int:
    """Memory that could be allocated now without swapping or meeting a limit."""
    words = _words(root / "proc/meminfo")
    available = int(words[words.index("MemAvailable:") + 1]) * 1024
    return max(0, min((available, *_memory_headrooms(root))))


def _siblings(root: Path, cpu: int) -> str:
    """The hardware threads of a core, the same words for each of them; the thread alone where nothing is said."""
    return " ".join(_words(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")) or str(
        cpu
    )


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time that each control group around this process may use, where there is a limit."""
    for group in _groups(root, "cpu"):
        if (limit := _words(group / "cpu.max")) and limit[0] != "max":
            yield int(limit[0]) / int(limit[1])
        quota, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
        if quota and period and int(quota[0]) > 0:
            yield int(quota[0]) / int(period[0])


def _memory_headrooms(root: Path) -> Iterator[int]:
    """Bytes that each control group around this process may still take; cached files count as free."""
    for group in _groups(root, "memory"):
        for limit_name, usage_name, cached_name in _MEMORY_FILES:
            limit, usage = _words(group / limit_name), _words(group / usage_name)
            if limit and usage and limit[0] != "max":
                stat = _words(group / "memory.stat")
                cached = int(stat[stat.index(cached_name) + 1]) if cached_name in stat else 0
                yield int(limit[0]) - int(usage[0]) + cached


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, from its own up to the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / _CGROUPS / controllers if controllers else root / _CGROUPS
        own = top / path.lstrip("/")
        yield own
        yield from (parent for parent in own.parents if parent == top or top in parent.parents)
        yield top  # within a container the path is the host's, and the limits are here


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
