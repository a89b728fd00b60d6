"""From records to numbers, and the file that keeps them."""

import os
import platform
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.load.answer import Outcome, Record
from benchmarks.load.drive import Point

FORMAT = 1


class Spread(msgspec.Struct, frozen=True):
    """How a measured time is distributed, in seconds; percentiles are interpolated linearly."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        array = np.fromiter(values, dtype=np.float64)
        if not array.size:
            return None
        p50, p90, p99 = np.percentile(array, (50, 90, 99)).tolist()
        return cls(array.size, float(array.mean()), p50, p90, p99, float(array.max()))


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One load point in numbers. Times, tokens and rates are those of the requests that ended well."""

    mode: str
    """``closed`` or ``open``."""
    level: float
    """Clients at once, or arrivals per second."""
    wall_s: float
    num_begun: int
    num_ok: int
    num_failed: int
    num_rejected: int
    """Answered 429; not counted as failed."""
    num_unfinished: int
    """Still running when the measurement was interrupted."""
    errors: dict[str, int]
    """How often each outcome and error text, without its numbers' differences, came."""
    begun_per_s: float
    requests_per_s: float
    output_tokens_per_s: float
    input_tokens: float
    """Mean per request, by the server's usage."""
    cached_tokens: float
    """Mean per request of those found in the server's prefix cache, as far as it says."""
    output_tokens: int
    """Sum over all requests."""
    num_short: int
    """Requests that got fewer tokens than asked, as if the server knew no ignore_eos."""
    tokens_by_usage: bool
    """False: the server sends no usage, and events stand for tokens."""
    tokens_per_event: float
    ttft_s: Spread | None
    """To the first event that carries a token."""
    itl_s: Spread | None
    """Between an event that carries tokens and the next."""
    tpot_s: Spread | None
    """Per request: from first to last event, divided by the tokens after the first."""
    e2e_s: Spread | None
    start_lag_s: Spread | None
    """How late the client sent what was due; counted into the times of an open loop."""
    client_cpu_s: float
    num_events: int
    client_cpu_us_per_event: float

    @property
    def label(self) -> str:
        return f"{self.level:g}" if self.mode == "closed" else f"{self.level:g}/s"


def summarise(point: Point) -> Summary:
    records = point.records
    ok = [record for record in records if record.outcome is Outcome.OK]
    num_rejected = sum(record.outcome is Outcome.REJECTED for record in records)
    num_events = sum(record.num_events for record in records)
    output_tokens = sum(record.output_tokens for record in ok)
    wall_s = point.wall_s or float("inf")
    return Summary(
        mode=point.load.mode,
        level=point.load.level,
        wall_s=point.wall_s,
        num_begun=point.num_begun,
        num_ok=len(ok),
        num_failed=len(records) - len(ok) - num_rejected,
        num_rejected=num_rejected,
        num_unfinished=point.num_begun - len(records),
        errors=_count_errors(records),
        begun_per_s=point.num_begun / wall_s,
        requests_per_s=len(ok) / wall_s,
        output_tokens_per_s=output_tokens / wall_s,
        input_tokens=_mean(record.prompt_tokens for record in ok),
        cached_tokens=_mean(record.cached_tokens for record in ok),
        output_tokens=output_tokens,
        num_short=sum(record.output_tokens < record.asked_tokens for record in ok),
        tokens_by_usage=all(record.has_usage for record in ok),
        tokens_per_event=output_tokens / max(1, sum(record.num_token_events for record in ok)),
        ttft_s=Spread.of(record.ttft_s for record in ok if record.ttft_s is not None),
        itl_s=Spread.of(gap for record in ok for gap in record.itl_s),
        tpot_s=Spread.of(
            sum(record.itl_s) / (record.output_tokens - 1) for record in ok if record.output_tokens > 1
        ),
        e2e_s=Spread.of(record.e2e_s for record in ok),
        start_lag_s=Spread.of(record.lag_s for record in records),
        client_cpu_s=point.cpu_s,
        num_events=num_events,
        client_cpu_us_per_event=point.cpu_s / max(1, num_events) * 1e6,
    )


def _mean(values: Iterable[int | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


def _count_errors(records: Iterable[Record]) -> dict[str, int]:
    texts = (
        f"{record.outcome}: {record.error}"[:300] for record in records if record.outcome is not Outcome.OK
    )
    return dict(Counter(texts).most_common(20))


class Machine(msgspec.Struct, frozen=True):
    cpu: str
    num_cpus: int
    memory_bytes: int
    system: str

    @classmethod
    def this(cls) -> "Machine":
        cpu = platform.processor() or platform.machine()
        info = Path("/proc/cpuinfo")
        if info.exists():
            names = (line.partition(":") for line in info.read_text().splitlines())
            cpu = next((value.strip() for name, _, value in names if name.strip() == "model name"), cpu)
        num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(cpu, num_cpus, memory_bytes, f"{platform.system()} {platform.release()}")


class Report(msgspec.Struct, kw_only=True):
    """All of one run: the content of the file that ``--json`` writes and ``--compare`` and ``--from`` read."""

    name: str
    """The system that was measured."""
    config: dict[str, object]
    format: int = FORMAT
    date: str = msgspec.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    versions: dict[str, str] = msgspec.field(default_factory=lambda: client_versions())
    machine: Machine = msgspec.field(default_factory=Machine.this)
    points: list[Summary] = []
    was_interrupted: bool = False
    records: list[list[Record]] = []
    """With ``--raw``, every request of every point."""

    @property
    def has_failed(self) -> bool:
        return any(point.num_failed for point in self.points)

    def write(self, path: Path) -> None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")

    @classmethod
    def read(cls, path: Path) -> "Report":
        """Read what `write` wrote.

        Raises:
            ValueError: It is not such a file.
        """
        report = msgspec.json.decode(path.read_bytes(), type=cls)
        if report.format != FORMAT:
            raise ValueError(f"{path} has format {report.format}, this program reads {FORMAT}")
        return report


def client_versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("trio", "msgspec", "numpy")}
    return {"python": platform.python_version(), **packages}
