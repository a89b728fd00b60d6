"""How much faster than the best peer it is meant to be, and whether it is."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from benchmarks.cpu.peers.engines import ENGINES, OURS
from benchmarks.cpu.peers.results import Results

_AT_LEAST: Final = {
    16: {
        "S": {
            "decode 1": 1.9,
            "decode 8": 2.1,
            "decode 32": 1.4,
            "prefill 1x1024": 1.4,
            "prefill 8x512": 1.4,
        },
        "M": {
            "decode 1": 1.5,
            "decode 8": 1.4,
            "decode 32": 1.25,
            "prefill 1x1024": 1.15,
            "prefill 8x512": 1.15,
        },
    },
    8: {shape: {"decode 1": 1.5, "decode 8": 2.5, "decode 32": 2.0} for shape in ("S", "M")},
}
"""Bits of a weight -> shape -> cell -> ratio of medians. Prefill is compared with peers of every kind."""
ROOFLINE: Final = 0.85
"""Share of the memory's bandwidth that M decodes at, in bfloat16, one sequence."""


class Row(NamedTuple):
    """Ours against the best peer in one cell."""

    shape: str
    cell: str
    bits: int
    ours: float
    peer: str
    """The best one's name."""
    theirs: float
    at_least: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs

    @property
    def is_met(self) -> bool:
        return self.ratio >= self.at_least


def rows(results: Results) -> Iterator[Row]:
    """A row for each target whose both sides were measured."""
    for bits, shapes in _AT_LEAST.items():
        for shape, cells in shapes.items():
            for cell, at_least in cells.items():
                medians = {name: each.median for name, each in results.measured(shape, cell).items()}
                ours = [medians[name] for name in _names(bits, is_ours=True) if name in medians]
                rivals = _names(None if cell.startswith("prefill") else bits, is_ours=False)
                peers = {name: medians[name] for name in rivals if name in medians}
                if ours and peers:
                    best = max(peers, key=lambda name: peers[name])
                    yield Row(shape, cell, bits, max(ours), best, peers[best], at_least)


def _names(bits: int | None, *, is_ours: bool) -> list[str]:
    """Of engines with weights of so many bits; None: of any."""
    return [
        engine.name
        for engine in ENGINES
        if (engine.program == OURS) is is_ours and bits in (None, engine.bits)
    ]
