"""The results as a picture: a panel for each shape and cell, a bar for each engine."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cpu.peers.cells import CELLS
from benchmarks.cpu.peers.engines import ENGINES, OURS
from benchmarks.cpu.peers.results import Measured, Results

_OURS_COLOUR, _PEER_COLOUR = "#d55e00", "#0072b2"  # told apart by everyone, also in print
_LIGHTER = {16: 1.0, 8: 0.6, 4: 0.35}
"""Bits of a weight -> opacity."""


def plot(path: Path, results: Results) -> None:
    """Draw all rates; the ending of ``path`` decides the format."""
    shapes = list(results.rates)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(15, 3.2 * len(shapes)), layout="constrained")
        panels = figure.subplots(len(shapes), len(CELLS), squeeze=False)
        for shape, line in zip(shapes, panels, strict=True):
            for cell, axes in zip(CELLS, line, strict=True):
                _draw(axes, results.measured(shape, cell))
                axes.set_title(f"{shape}, {cell}")
        figure.supxlabel("tokens/s, median and range; a lighter bar has narrower weights", fontsize=9)
        figure.savefig(path, metadata={"Date": None})


def _draw(axes: Axes, measured: dict[str, Measured]) -> None:
    engines = [engine for engine in reversed(ENGINES) if engine.name in measured]
    for place, engine in enumerate(engines):
        found = measured[engine.name]
        error = [[found.median - min(found.rates)], [max(found.rates) - found.median]]
        colour = _OURS_COLOUR if engine.program == OURS else _PEER_COLOUR
        axes.barh(place, found.median, xerr=error, color=colour, alpha=_LIGHTER[engine.bits])
    axes.set_yticks(range(len(engines)), [engine.name for engine in engines])
    axes.set_xlim(left=0)
