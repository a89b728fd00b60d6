"""What this process may use of the machine: cores and memory, control groups of both versions included."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
_MEMORY_FILES: Final = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, usage and the line of memory.stat that tells cached files, in version 2 and version 1."""


def usable_cores() -> int:
    """Physical cores that this process may run on, no more than its CPU quota allows; at least 1."""
    return len(usable_cpus())


def usable_cpus() -> list[int]:
    """One hardware thread of each such core, by the system's numbers."""
    cores: dict[tuple[str, str], int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        cores.setdefault(_core(cpu), cpu)
    return list(cores.values())[: max(1, min(round(quota) for quota in _cpu_quotas()))]


def available_memory_bytes() -> int:
    """Memory that could be allocated now without swapping or meeting a limit."""
    words = _words(Path("/proc/meminfo"))
    available = int(words[words.index("MemAvailable:") + 1]) * 1024
    return max(0, min(available, *_memory_headrooms()))


def _core(cpu: int) -> tuple[str, str]:
    """Two hardware threads of one core have the same (package, core)."""
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        return (topology / "physical_package_id").read_text(), (topology / "core_id").read_text()
    except OSError:
        return "", str(cpu)


def _cpu_quotas() -> Iterator[float]:
    """Cores' worth of time that each control group around this process may use."""
    yield float(os.cpu_count() or 1)
    for group in _groups("cpu"):
        if (limit := _words(group / "cpu.max")) and limit[0] != "max":
            yield int(limit[0]) / int(limit[1])
        quota, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
        if quota and period and int(quota[0]) > 0:
            yield int(quota[0]) / int(period[0])


def _memory_headrooms() -> Iterator[int]:
    """Bytes that each control group around this process may still take; cached files count as free."""
    yield 1 << 62
    for group in _groups("memory"):
        for limit_name, usage_name, cached_name in _MEMORY_FILES:
            limit, usage = _words(group / limit_name), _words(group / usage_name)
            if limit and usage and limit[0] != "max":
                stat = _words(group / "memory.stat")
                cached = int(stat[stat.index(cached_name) + 1]) if cached_name in stat else 0
                yield int(limit[0]) - int(usage[0]) + cached


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, from its own up to the root."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUP_ROOT / controllers if controllers else _CGROUP_ROOT
        own = root / path.lstrip("/")
        yield own
        yield from (parent for parent in own.parents if parent == root or root in parent.parents)
        yield root  # within a container the path is the host's, and the limits are here


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
