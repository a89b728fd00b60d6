"""What was measured, kept in a file that every run adds to."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Measured:
    """Tokens a second of one engine in one cell."""

    rates: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    def __str__(self) -> str:
        return f"{self.median:,.0f} ({min(self.rates):,.0f}-{max(self.rates):,.0f})"


@dataclass
class Results:
    """Of one machine: keys are shape, cell and engine, or shape and engine."""

    rates: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    """Tokens a second, one a round."""
    agreement: dict[str, dict[str, float]] = field(default_factory=dict)
    """Share of the tokens before the first that differs from the reference's."""
    bandwidths: list[float] = field(default_factory=list)
    """Bytes a second that all threads read, one a round."""

    @classmethod
    def read(cls, path: Path | None) -> "Results":
        """What ``path`` holds, or nothing yet."""
        if path is None or not path.is_file():
            return cls()
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**found)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def add(self, shape: str, cell: str, engine: str, rate: float) -> None:
        """One round's figure."""
        self.rates.setdefault(shape, {}).setdefault(cell, {}).setdefault(engine, []).append(rate)

    def measured(self, shape: str, cell: str) -> dict[str, Measured]:
        """By the engine's name."""
        found = self.rates.get(shape, {}).get(cell, {})
        return {engine: Measured(tuple(rates)) for engine, rates in found.items()}
