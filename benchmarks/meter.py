"""What counting costs: a step of many sequences, and one scrape of /metrics.

    python benchmarks/meter.py

Each row is the best of several runs, so that a busy machine says little.
"""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram

from trioserve._speedups.detokenizer import Vocabulary
from trioserve.engine.checkpoint import open_model
from trioserve.engine.engine import Engine
from trioserve.engine.lifecycle import Lifecycle
from trioserve.engine.meter import TOKEN_S, Meter, Timeline
from trioserve.http.metrics import Metrics
from trioserve.http.traffic import Traffic
from trioserve.settings import Settings

BATCHES = (1, 32, 256)
_ROUNDS = 30
_STEPS = 200


def main() -> None:
    print("us a token, batch of", *(f"{batch:>8}" for batch in BATCHES))
    for name, make in (("Meter", meter_step), ("prometheus_client", client_step)):
        costs = [best(make(batch)) / batch for batch in BATCHES]
        print(f"{name:20}", *(f"{cost * 1e6:8.3f}" for cost in costs))
    print(f"one scrape: {best(make_scrape(), steps=1) * 1e3:.2f} ms")


def meter_step(batch: int) -> Callable[[], None]:
    """As the engine counts a step: two calls for all of it."""
    meter, timelines = Meter(max_model_len=8192), [Timeline(arrived_at=0.0) for _ in range(batch)]
    now = 0.0

    def step() -> None:
        nonlocal now
        now += 0.02
        meter.stepped(num_computed=batch)
        meter.generated(timelines, now=now)

    return step


def client_step(batch: int) -> Callable[[], None]:
    """The same by an observation and a count for each token."""
    registry = CollectorRegistry()
    gaps = Histogram("gap", "", buckets=TOKEN_S, registry=registry)
    tokens = Counter("tokens", "", registry=registry)
    last, now = [0.0] * batch, 0.0

    def step() -> None:
        nonlocal now
        now += 0.02
        for i in range(batch):
            gaps.observe(now - last[i])
            tokens.inc()
            last[i] = now

    return step


def make_scrape() -> Callable[[], None]:
    """The text of a server with ten busy routes."""
    settings, lifecycle, traffic = Settings(), Lifecycle(), Traffic()
    for route in range(10):
        traffic.num_requests["GET", f"/{route}", 200] += 1
        traffic.duration_s[f"/{route}"].observe(0.1)
    vocabulary = Vocabulary([b"a"], [False], byte_tokens=None, strip_leading_space=False)
    engine = Engine(settings, open_model(settings), vocabulary, lifecycle)
    metrics = Metrics(settings, lifecycle, traffic, lambda: engine)

    def scrape() -> None:
        metrics.render("")

    return scrape


def best(step: Callable[[], None], *, steps: int = _STEPS) -> float:
    """Seconds of one call, of the quickest round."""
    costs = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for _ in range(steps):
            step()
        costs.append((time.perf_counter() - began) / steps)
    return min(costs)


if __name__ == "__main__":
    main()
