"""The results as tables."""

import statistics

from rich.console import Console
from rich.table import Table

from benchmarks.cpu.decoder import SHAPES, least_bytes
from benchmarks.cpu.decoder import Cell as Step
from benchmarks.cpu.peers.cells import CELLS
from benchmarks.cpu.peers.engines import ENGINES, OURS
from benchmarks.cpu.peers.results import Results
from benchmarks.cpu.peers.targets import ROOFLINE, rows
from trioserve.model.config import decoder_config


def show(console: Console, results: Results) -> None:
    """Print every table that there are numbers for."""
    for shape in results.rates:
        _show_rates(console, results, shape)
    _show_targets(console, results)
    _show_roofline(console, results)
    for shape, shares in results.agreement.items():
        table = Table("engine", "greedy tokens before the first that differs", title=f"{shape}: agreement")
        for engine, share in shares.items():
            table.add_row(engine, f"{share:.0%}")
        console.print(table)


def _show_rates(console: Console, results: Results, shape: str) -> None:
    table = Table("engine", *CELLS, title=f"{shape}: tokens/s, medians of rounds in turn and their range")
    columns = {cell: results.measured(shape, cell) for cell in CELLS}
    for engine in ENGINES:
        if any(engine.name in measured for measured in columns.values()):
            table.add_row(engine.name, *(str(columns[cell].get(engine.name, "")) for cell in CELLS))
    console.print(table)


def _show_targets(console: Console, results: Results) -> None:
    table = Table(
        "shape", "cell", "bits", "ours", "best peer", "its", "ratio", "at least", "", title="targets"
    )
    for row in rows(results):
        figures = (
            f"{row.ours:,.0f}",
            row.peer,
            f"{row.theirs:,.0f}",
            f"{row.ratio:.2f}",
            f"{row.at_least:.2f}",
        )
        table.add_row(row.shape, row.cell, str(row.bits), *figures, "met" if row.is_met else "missed")
    console.print(table)


def _show_roofline(console: Console, results: Results) -> None:
    """How near one bfloat16 sequence of M comes to reading each weight and key once at full bandwidth."""
    ours = results.measured("M", "decode 1").get(f"{OURS} bf16")
    if ours is None or not results.bandwidths:
        return
    cell = CELLS["decode 1"]
    config = decoder_config({"tie_word_embeddings": True, "max_position_embeddings": 2048, **SHAPES["M"]})
    step = Step(cell.name, cell.num_seqs, 1, cell.prompt_tokens + cell.num_tokens // 2)
    bandwidth = statistics.median(results.bandwidths)
    share = least_bytes(config, step, "none") * ours.median / bandwidth
    spread = f"{min(results.bandwidths) / 1e9:.0f}-{max(results.bandwidths) / 1e9:.0f}"
    verdict = "met" if share >= ROOFLINE else "missed"
    console.print(
        f"M bf16 decode 1: {share:.0%} of the roofline at {bandwidth / 1e9:.0f} GB/s ({spread}); "
        f"at least {ROOFLINE:.0%}: {verdict}"
    )
