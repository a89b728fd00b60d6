"""What the machine has, told by files as systems write them."""

import os
from pathlib import Path

import pytest

from trioserve.worker.machine import Cores, available_memory_bytes, usable_cores


def tell(root: Path, files: dict[str, str]) -> Path:
    """A system's files under ``root``."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def siblings(*cores: str) -> dict[str, str]:
    """Each of ``cores`` is the list of its hardware threads, such as "0,4" or "0-1"."""
    files = {}
    for core in cores:
        first, _, last = core.partition("-")
        for cpu in range(int(first), int(last) + 1) if last else core.split(","):
            files[f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = core + "\n"
    return files


def allow(monkeypatch: pytest.MonkeyPatch, *cpus: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(cpus))


def test_this_machine_has_cores_and_memory() -> None:
    assert 1 <= usable_cores().count <= len(os.sched_getaffinity(0))
    assert 1 << 20 < available_memory_bytes() < 1 << 50


@pytest.mark.parametrize(
    ("cores", "allowed", "expected"),
    [
        (("0,4", "1,5", "2,6", "3,7"), range(8), [0, 1, 2, 3]),
        (("0-1", "2-3"), range(4), [0, 2]),
        (("0,4", "1,5", "2,6", "3,7"), (1, 5, 6), [1, 6]),
        (("0", "1"), (0, 1), [0, 1]),
        ((), (3, 9), [3, 9]),
    ],
    ids=str,
)
def test_hardware_threads_of_one_core_count_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cores: tuple[str, ...],
    allowed: tuple[int, ...],
    expected: list[int],
) -> None:
    allow(monkeypatch, *allowed)
    found = usable_cores(tell(tmp_path, siblings(*cores)))
    assert (found.cpus, found.count) == (expected, len(expected))


SECOND = {"proc/self/cgroup": "0::/system.slice/trio.service\n"}
FIRST = {"proc/self/cgroup": "4:memory:/docker/ab\n2:cpu,cpuacct:/docker/ab\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (SECOND, 8),
        (SECOND | {"sys/fs/cgroup/system.slice/trio.service/cpu.max": "max 100000\n"}, 8),
        (SECOND | {"sys/fs/cgroup/system.slice/trio.service/cpu.max": "150000 100000\n"}, 1),
        (SECOND | {"sys/fs/cgroup/system.slice/trio.service/cpu.max": "50000 100000\n"}, 1),
        (SECOND | {"sys/fs/cgroup/system.slice/cpu.max": "399999 100000\n"}, 3),
        (SECOND | {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        (SECOND | {"sys/fs/cgroup/cpu.max": "1600000 100000\n"}, 8),
        (
            FIRST
            | {
                "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
        (
            FIRST
            | {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
    ],
)
def test_a_quota_of_either_version_bounds_the_cores_and_a_part_of_one_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    allow(monkeypatch, *range(8))
    found = usable_cores(tell(tmp_path, files))
    assert (found.count, len(found.cpus)) == (expected, 8)


def test_all_cores_may_be_had_where_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, 2, 3)
    assert usable_cores(tmp_path) == Cores([2, 3], quota=2)


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 3000 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 3000 * 1024),
        (SECOND, 3000 * 1024),
        (
            SECOND
            | {
                "sys/fs/cgroup/system.slice/memory.max": "2000000",
                "sys/fs/cgroup/system.slice/memory.current": "1500000",
                "sys/fs/cgroup/system.slice/memory.stat": "anon 1\ninactive_file 100000\n",
                "sys/fs/cgroup/memory.max": "max",
                "sys/fs/cgroup/memory.current": "5",
            },
            600_000,
        ),
        (
            FIRST
            | {
                "sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes": "900000",
                "sys/fs/cgroup/memory/docker/ab/memory.usage_in_bytes": "500000",
                "sys/fs/cgroup/memory/docker/ab/memory.stat": "inactive_file 7\ntotal_inactive_file 100\n",
            },
            400_100,
        ),
    ],
)
def test_memory_is_what_the_system_and_every_group_still_have(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    assert available_memory_bytes(tell(tmp_path, MEMINFO | files)) == expected
