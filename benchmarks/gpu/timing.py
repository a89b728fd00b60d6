"""How long a GPU takes for something: replays of graphs, in turns, over buffers that do not fit its cache."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import Final

import torch

Call = Callable[[], object]
ROUNDS: Final = 7
_ROUND_S: Final = 0.02
"""That a round of one contender takes, about."""
_CACHES: Final = 4
"""Times its second-level cache that rotated buffers take."""
_MOST_SETS: Final = 64


def num_sets(bytes_of_one: int) -> int:
    """Sets of buffers to rotate through, so that none is found in the cache when its turn comes again."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(1, min(_MOST_SETS, -(-_CACHES * cache // max(1, bytes_of_one))))


def medians(contenders: Mapping[str, Sequence[Call]], *, rounds: int = ROUNDS) -> dict[str, float]:
    """Microseconds of a call of each contender, which alternate.

    Args:
        contenders: The calls of each, one for each set of buffers. All of them are captured in one graph, in order.
    """
    graphs = {name: (_captured(calls), len(calls)) for name, calls in contenders.items()}
    repeats = {name: max(1, int(_ROUND_S / _seconds(graph, 1))) for name, (graph, _) in graphs.items()}
    found: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, (graph, num_calls) in graphs.items():
            found[name].append(_seconds(graph, repeats[name]) / (repeats[name] * num_calls) * 1e6)
    return {name: statistics.median(times) for name, times in found.items()}


def rotated(make: Callable[[int], Call], bytes_of_one: int, *, least: int = 8) -> list[Call]:
    """Calls over as many sets of buffers as it takes, at least so many calls; ``make`` gets a set's number."""
    calls = [make(number) for number in range(num_sets(bytes_of_one))]
    return list(islice(cycle(calls), max(least, len(calls))))


def _captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in [calls[0], *calls]:  # kernels are built and workspaces made before anything is captured
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def _seconds(graph: torch.cuda.CUDAGraph, repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3
