"""The one table of ``benchmarks/gpu/run.sh``: rows are written as they come, so what ends early leaves something."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    section: str
    name: str
    value: float
    unit: str
    """us, ms, TB/s, TFLOP/s, tokens/s, cases; more of us and ms is worse."""
    share: float | None = None
    """Of the ceiling measured before, where there is one."""
    peer: str = ""
    peer_value: float | None = None
    target: float | None = None
    """What docs/kernels.md wants on an H200, in ``unit``."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer; below 1: worse."""
        if self.peer_value is None or not self.value:
            return None
        return self.peer_value / self.value if self.less_is_better else self.value / self.peer_value

    @property
    def less_is_better(self) -> bool:
        """Whether the unit is one of time."""
        return self.unit in ("us", "ms", "s")

    @property
    def is_met(self) -> bool | None:
        """Whether the target is; None where there is none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.less_is_better else self.value >= self.target


class Report:
    """A file of rows, a line of JSON each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, row: Row) -> Row:
        """Keep ``row`` and say that it has come."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print(f"{row.section}: {row.name}: {row.value:.4g} {row.unit}", flush=True)
        return row

    def rows(self) -> list[Row]:
        """All that were kept."""
        if not self.path.exists():
            return []
        return [Row(**json.loads(line)) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def value(self, name: str) -> float | None:
        """Of the row with that name, the newest."""
        values = [row.value for row in self.rows() if row.name == name]
        return values[-1] if values else None


def table_of(rows: Iterable[Row], title: str) -> Table:
    """For people."""
    table = Table(title=title)
    for column in ("what", "figure", "of ceiling", "peer", "ratio", "target (H200)", "note"):
        numeric = column in ("figure", "of ceiling", "ratio", "target (H200)")
        table.add_column(column, justify="right" if numeric else "left", no_wrap=column != "note")
    section = None
    for row in rows:
        if row.section != section:
            section = row.section
            table.add_section()
            table.add_row(f"[bold]{section}[/bold]")
        table.add_row(*_cells(row))
    return table


def markdown_of(rows: Iterable[Row]) -> str:
    """The same for docs/performance.md."""
    head = "| what | figure | of ceiling | peer | ratio | target (H200) | note |\n|---|--:|--:|---|--:|--:|---|\n"
    return head + "".join(f"| {' | '.join(_cells(row))} |\n" for row in rows)


def show(rows: Iterable[Row], title: str) -> None:
    """Print the table, wide enough for logs."""
    Console(width=160).print(table_of(rows, title))


def _cells(row: Row) -> list[str]:
    met = {None: "", True: ", met", False: ", missed"}[row.is_met]
    return [
        row.name,
        f"{row.value:,.4g} {row.unit}",
        "" if row.share is None else f"{row.share:.0%}",
        row.peer if row.peer_value is None else f"{row.peer} {row.peer_value:,.4g}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        "" if row.target is None else f"{row.target:,.4g}{met}",
        row.note,
    ]
