"""The report as a person reads it: tables of one run, and of one run against another."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.load.summary import Report, Spread, Summary

_WORTH_COMPARING = ("endpoint", "input_tokens", "output_tokens", "shared_prefix_tokens", "temperature")
_LATENCIES = ("ttft_s", "itl_s", "tpot_s", "e2e_s")
_LATENCY_NAMES = {
    "ttft_s": "time to first token",
    "itl_s": "inter-token latency",
    "tpot_s": "time per output token",
    "e2e_s": "end to end",
}


def print_report(console: Console, report: Report) -> None:
    machine = report.machine
    lengths = f"{report.config.get('input_tokens')} tokens in, {report.config.get('output_tokens')} out"
    if prefix := report.config.get("shared_prefix_tokens"):
        lengths = f"{prefix} shared + {lengths}"
    console.print(f"\n[bold]{report.name}[/] · {report.config.get('model')} · {lengths} · {report.date}")
    console.print(f"{machine.cpu}, {machine.num_cpus} CPUs")
    console.print(_throughput_table(report.points))
    console.print(_latency_table(report.points))
    for note in _notes(report):
        console.print(note, highlight=False, markup=False)


def _throughput_table(points: Iterable[Summary]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Throughput", title_justify="left")
    for name in (
        "load",
        "ok",
        "failed",
        "429",
        "tokens/s",
        "requests/s",
        "tok. in",
        "client CPU/event",
        "wall s",
    ):
        table.add_column(name, justify="right", no_wrap=name != "client CPU/event")
    for point in points:
        failed = f"[bold red]{point.num_failed}[/]" if point.num_failed else "0"
        table.add_row(
            point.label,
            str(point.num_ok),
            failed,
            str(point.num_rejected),
            f"{point.output_tokens_per_s:,.1f}",
            f"{point.requests_per_s:,.2f}",
            f"{point.input_tokens:,.0f}",
            f"{point.client_cpu_us_per_event:,.1f} us",
            f"{point.wall_s:,.1f}",
        )
    return table


def _latency_table(points: Iterable[Summary]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Latency, ms", title_justify="left")
    table.add_column("load", justify="right")
    table.add_column("")
    for name in ("mean", "p50", "p90", "p99", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for point in points:
        for place, field in enumerate(_LATENCIES):
            cells = _milliseconds(getattr(point, field))
            is_last = place == len(_LATENCIES) - 1
            table.add_row("" if place else point.label, _LATENCY_NAMES[field], *cells, end_section=is_last)
    return table


def _milliseconds(spread: Spread | None) -> list[str]:
    if spread is None:
        return ["-"] * 5
    seconds = (spread.mean, spread.p50, spread.p90, spread.p99, spread.max)
    return [f"{value * 1e3:,.2f}" if value < 1 else f"{value * 1e3:,.0f}" for value in seconds]


def _notes(report: Report) -> Iterable[str]:
    for point in report.points:
        at = f"load {point.label}: "
        if point.num_unfinished:
            yield f"{at}{point.num_unfinished} requests were still running when the measurement ended"
        if point.num_short:
            yield f"{at}{point.num_short} answers have fewer tokens than asked for: does the server know ignore_eos?"
        if point.num_ok and not point.tokens_by_usage:
            yield f"{at}the server sent no usage, so events are counted as tokens"
        if point.tokens_per_event > 1.02:
            yield f"{at}an event carries {point.tokens_per_event:.2f} tokens on average: see time per output token"
        if point.mode == "open" and point.start_lag_s is not None and point.start_lag_s.p99 > 0.01:
            yield f"{at}the client itself was up to {point.start_lag_s.max * 1e3:.0f} ms late in sending"
        if point.client_cpu_s > 0.5 * point.wall_s:
            yield f"{at}the client used {point.client_cpu_s / point.wall_s:.0%} of a core, it may be the limit"
        for text, count in point.errors.items():
            yield f"{at}{count} x {text}"
    if report.was_interrupted:
        yield "interrupted: these numbers are of the part that was measured"


def print_comparison(console: Console, report: Report, other: Report) -> None:
    """Ratios of ``report`` over ``other`` at the load points that both have."""
    table = Table(box=box.SIMPLE_HEAD, title=f"{report.name} / {other.name}", title_justify="left")
    columns = ("tokens/s", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "TPOT p50", "e2e p50")
    for name in ("load", *columns):
        table.add_column(name, justify="right", no_wrap=True)
    theirs = {(point.mode, point.level): point for point in other.points}
    for point in report.points:
        if (peer := theirs.get((point.mode, point.level))) is not None:
            table.add_row(point.label, *_ratios(point, peer))
    if not table.row_count:
        console.print(f"no load point of {other.name} is like one of {report.name}: nothing to compare")
        return
    console.print(table)
    console.print("above 1 is better for tokens/s, below 1 for latencies", highlight=False)
    for field in _WORTH_COMPARING:
        ours, peers = report.config.get(field), other.config.get(field)
        if ours != peers:
            console.print(f"[yellow]not alike:[/] {field} is {ours} here and {peers} there")
    if report.machine != other.machine:
        console.print(
            f"[yellow]not alike:[/] the other machine is {other.machine.cpu}, {other.machine.num_cpus} CPUs"
        )


def _ratios(point: Summary, peer: Summary) -> Iterable[str]:
    yield _ratio(point.output_tokens_per_s, peer.output_tokens_per_s, more_is_better=True)
    for field, percentile in (
        ("ttft_s", "p50"),
        ("ttft_s", "p99"),
        ("itl_s", "p50"),
        ("itl_s", "p99"),
        ("tpot_s", "p50"),
        ("e2e_s", "p50"),
    ):
        ours, theirs = getattr(point, field), getattr(peer, field)
        if ours is None or theirs is None:
            yield "-"
        else:
            yield _ratio(getattr(ours, percentile), getattr(theirs, percentile), more_is_better=False)


def _ratio(ours: float, theirs: float, *, more_is_better: bool) -> str:
    if not theirs:
        return "-"
    ratio = ours / theirs
    if abs(ratio - 1) < 0.03:  # two runs of one system differ by more
        return f"{ratio:.2f}"
    return f"[{'green' if (ratio > 1) == more_is_better else 'red'}]{ratio:.2f}[/]"
