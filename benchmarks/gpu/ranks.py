"""Sums of several GPUs: that they are right, eagerly and in graphs, and what each way of making them takes.

Each rank is a process as in the works, ``python -m benchmarks.gpu.ranks RANK SIZE FD GLOO|NCCL``; with GLOO it computes
on the CPU and without graphs, so that what is checked can be tried out where there is no GPU.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from benchmarks.gpu.report import Report, Row
from trioserve.model.nccl import DeviceSums, join_nccl
from trioserve.model.ranks import GroupRanks, join_gloo

SIZES: Final = (1 << 13, 1 << 15, 1 << 17, 1 << 19, 1 << 21, 1 << 24)
"""Bytes of a part; a token of 4096 numbers is the first."""
_DTYPE: Final = torch.bfloat16
_CALLS: Final = 16
"""Sums in a graph."""
_REPLAYS: Final = 20
_ROUNDS: Final = 7


def measure(report: Report) -> None:
    """Microseconds of a sum by size and way, over all GPUs of this machine."""
    num_gpus = torch.cuda.device_count()
    if num_gpus < 2:
        print("sums need two GPUs; nothing was measured")
        return
    for size, figures in run(num_gpus, "NCCL").items():
        quickest = min(figures.values())
        for way, microseconds in figures.items():
            note = "quickest" if microseconds == quickest else ""
            report.add(
                Row(
                    "ranks", f"sum of {num_gpus}, {int(size) >> 10} KiB, {way}", microseconds, "us", note=note
                )
            )


def run(num_ranks: int, backend: str) -> dict[str, dict[str, float]]:
    """What rank 0 has found, by bytes and way.

    Raises:
        subprocess.CalledProcessError: A rank has failed.
    """
    fd = os.memfd_create("ranks")
    commands = [
        [sys.executable, "-m", "benchmarks.gpu.ranks", str(rank), str(num_ranks), str(fd), backend]
        for rank in range(num_ranks)
    ]
    ranks = [
        subprocess.Popen(command, pass_fds=[fd], stdout=subprocess.PIPE, text=True) for command in commands
    ]
    os.close(fd)
    outputs = [rank.communicate()[0] for rank in ranks]
    for rank, command in zip(ranks, commands, strict=True):
        if rank.returncode:
            raise subprocess.CalledProcessError(rank.returncode, command)
    found: dict[str, dict[str, float]] = json.loads(outputs[0])
    return found


def _rank(tp_rank: int, tp_size: int, fd: int, backend: str) -> dict[str, dict[str, float]]:
    """Check and time all ways on this rank."""
    if backend == "GLOO":
        ranks, device = join_gloo(fd, tp_rank, tp_size), torch.device("cpu")
        ways = {"all-reduce": DeviceSums(ranks.group)}
    else:
        device = torch.device("cuda", tp_rank)
        ranks, sums = join_nccl(fd, tp_rank, tp_size, device, _DTYPE)
        ways = {sums.description: sums, "all-reduce": DeviceSums(sums.group)}
    ways["in order"] = DeviceSums(ways["all-reduce"].group, batch_invariant=True)
    for sums in ways.values():
        _check_join(sums, device)
    return {
        str(size): {way: _checked_and_timed(sums, ranks, size, device) for way, sums in ways.items()}
        for size in SIZES
    }


def _part(tp_rank: int, size: int, seed: int, device: torch.device) -> Tensor:
    """A rank's part, which all ranks can make."""
    generator = torch.Generator().manual_seed(seed * 64 + tp_rank)
    return torch.randn(size // _DTYPE.itemsize, generator=generator).to(device, _DTYPE)


def _check_join(sums: DeviceSums, device: torch.device) -> None:
    sizes = [100 + rank for rank in range(sums.tp_size)]
    columns = [torch.full((3, size), float(rank), device=device) for rank, size in enumerate(sizes)]
    assert torch.equal(sums.join(columns[sums.tp_rank], sizes), torch.cat(columns, dim=1))
    token_ids = torch.arange(5, device=device) + sums.tp_rank
    sums.share_tokens(token_ids)
    assert token_ids.tolist() == list(range(5))


def _checked_and_timed(sums: DeviceSums, ranks: GroupRanks, size: int, device: torch.device) -> float:
    """Microseconds of a sum of ``size`` bytes, after eager and replayed ones have been compared with the host's."""
    x = _part(sums.tp_rank, size, 0, device)
    _compare(sums.sum(x.clone()), sums.tp_size, size, 0, device)
    if device.type == "cpu":
        started = time.perf_counter()
        sums.sum(x.clone())
        return (time.perf_counter() - started) * 1e6
    given, graph, total = x.clone(), torch.cuda.CUDAGraph(), x
    with torch.cuda.graph(graph):
        for _ in range(_CALLS):
            total = sums.sum(given.clone())
    for seed in (1, 2):
        given.copy_(_part(sums.tp_rank, size, seed, device))
        graph.replay()
        torch.cuda.synchronize()
        _compare(total, sums.tp_size, size, seed, device)
    return _median_us(graph.replay, ranks) / _CALLS


def _compare(total: Tensor, tp_size: int, size: int, seed: int, device: torch.device) -> None:
    expected = torch.stack([_part(rank, size, seed, device).float() for rank in range(tp_size)]).sum(0)
    error = (total.float() - expected).abs().max()
    assert error < 0.02 * tp_size, f"a sum of {size} bytes is wrong by {error}"


def _median_us(replay: Callable[[], None], ranks: GroupRanks) -> float:
    """Of rounds that all ranks begin together."""
    found = []
    for _ in range(_ROUNDS):
        torch.cuda.synchronize()
        ranks.least(0)
        started = time.perf_counter()
        for _ in range(_REPLAYS):
            replay()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - started) / _REPLAYS * 1e6)
    return sorted(found)[_ROUNDS // 2]


if __name__ == "__main__":
    rank, size, fd, backend = sys.argv[1:]
    print(json.dumps(_rank(int(rank), int(size), int(fd), backend)), flush=True)
    os._exit(0)  # NCCL's destructors would wait for the others
