"""The report as a picture: throughput and latencies over the load."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from benchmarks.load.summary import Report, Spread

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by everyone, also in print


def plot(path: Path, reports: list[Report]) -> None:
    """Draw ``reports`` into one picture; the ending of ``path`` decides its format.

    Raises:
        ValueError: matplotlib does not know the format, or there is no load point to draw.
    """
    reports = [report for report in reports if report.points]
    if not reports:
        raise ValueError("no load point to draw")
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 4.2), layout="constrained")
        throughput, itl, ttft = figure.subplots(1, 3)
        for report, colour in zip(reports, _COLOURS, strict=False):
            levels = [point.level for point in report.points]
            rates = [point.output_tokens_per_s for point in report.points]
            throughput.plot(levels, rates, marker="o", color=colour, label=report.name)
            _draw_latency(itl, levels, [point.itl_s for point in report.points], colour, report.name)
            _draw_latency(ttft, levels, [point.ttft_s for point in report.points], colour, report.name)
        throughput.set(title="Throughput", ylabel="output tokens/s")
        itl.set(title="Inter-token latency", ylabel="ms")
        ttft.set(title="Time to first token", ylabel="ms")
        for axes in (throughput, itl, ttft):
            _finish(axes, reports)
        config, machine = reports[0].config, reports[0].machine
        lengths = f"{config.get('input_tokens')} tokens in, {config.get('output_tokens')} out"
        figure.suptitle(
            f"{config.get('model')}, {lengths}; {machine.cpu}, {machine.num_cpus} CPUs", fontsize=10
        )
        figure.savefig(path, dpi=150)


def _draw_latency(
    axes: Axes, levels: list[float], spreads: list[Spread | None], colour: str, name: str
) -> None:
    for percentile, style in (("p50", "-"), ("p99", "--")):
        values = [float("nan") if spread is None else getattr(spread, percentile) * 1e3 for spread in spreads]
        axes.plot(levels, values, style, marker="o", color=colour, label=f"{name}, {percentile}")


def _finish(axes: Axes, reports: list[Report]) -> None:
    is_closed = reports[0].points[0].mode == "closed"
    levels = sorted({point.level for report in reports for point in report.points})
    axes.set_xlabel("clients at once" if is_closed else "requests arriving per second")
    if len(levels) > 1:
        axes.set_xscale("log", base=2)
    axes.set_xticks(levels)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
