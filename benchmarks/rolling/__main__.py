"""What a rolling restart costs clients: `python -m benchmarks.rolling`.

Replicas of the built-in model behind nginx, behind HAProxy (both with the configurations of deploy/), and on one socket
that is handed from server to server without any proxy, restarted in turn while clients stream and ask. Every answer is
compared with that of an undisturbed server. It fails unless no request failed, was cut, or was answered twice.

`--kill` kills replicas instead: then only requests that were on one of them may fail, and none may look whole.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio
from rich.console import Console
from rich.status import Status
from rich.table import Table

from benchmarks.rolling import fronts, trial
from benchmarks.rolling.clients import Outcome
from benchmarks.rolling.replicas import ReplicaError
from benchmarks.rolling.trial import Plan, Result

_SHOWN_FAILURES = 5
_WIDTH = 110
"""Of the table in a file."""


def main() -> int:
    options = _options()
    console = Console(width=_WIDTH if not sys.stdout.isatty() else None)
    results: list[tuple[Plan, Result]] = []
    with tempfile.TemporaryDirectory(prefix="rolling-") as folder:
        for front in options.fronts:
            if not fronts.is_available(front):
                console.print(f"{front} is not here: left out (`make test` fetches it)")
                continue
            for num_replicas in [2] if front == "handover" else options.replicas:
                plan = _plan(options, front, num_replicas)
                place = Path(folder) / f"{front}{num_replicas}"
                place.mkdir()
                with console.status(front) as status:
                    results.append((plan, _result(plan, place, status)))
    console.print(_table(results))
    for plan, result in results:
        for failure in result.failures[:_SHOWN_FAILURES]:
            console.print(
                f"{plan.front}: {failure.request_id} {failure.outcome}: {failure.what}", style="red"
            )
    return 0 if all(is_good(plan, result) for plan, result in results) else 1


def _result(plan: Plan, folder: Path, status: Status) -> Result:
    try:
        return trio.run(trial.run, plan, folder, partial(_report, status, plan))
    except* ReplicaError as group:
        raise SystemExit(str(group.exceptions[0])) from None


def is_good(plan: Plan, result: Result) -> bool:
    """Whether a trial shows what it should."""
    if plan.kills:
        return not result.count(Outcome.WRONG) and not result.num_elsewhere
    return not result.failures and not result.num_duplicated


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fronts", nargs="+", choices=fronts.FRONTS, default=list(fronts.FRONTS))
    parser.add_argument(
        "--replicas", nargs="+", type=int, default=[2, 3], help="behind a proxy, one trial each"
    )
    parser.add_argument("--restarts", type=int, default=9, help="in each trial")
    parser.add_argument("--requests", type=int, default=10_000, help="in each trial, at least")
    parser.add_argument("--streams", type=int, default=12, help="clients that stream")
    parser.add_argument("--wholes", type=int, default=4, help="clients that take whole answers")
    parser.add_argument("--words", type=int, default=8, help="of an answer")
    parser.add_argument("--drain-delay-s", type=float, default=3.0, help="the servers' lame duck")
    parser.add_argument("--kill", action="store_true", help="SIGKILL instead of SIGTERM")
    return parser.parse_args()


def _plan(options: argparse.Namespace, front: str, num_replicas: int) -> Plan:
    return Plan(
        front=front,
        num_replicas=num_replicas,
        num_restarts=options.restarts,
        min_requests=options.requests,
        num_streams=options.streams,
        num_wholes=options.wholes,
        num_words=options.words,
        drain_delay_s=options.drain_delay_s,
        kills=options.kill,
    )


def _report(status: Status, plan: Plan, result: Result) -> None:
    status.update(
        f"{plan.front}, {plan.num_replicas} replicas: {len(result.restarts_s)} of {plan.num_restarts} restarts, "
        f"{result.num_requests} requests, {len(result.failures)} failures"
    )


def _table(results: list[tuple[Plan, Result]]) -> Table:
    table = Table(title="Restarts under load")
    for heading in (
        "front",
        "replicas",
        "restarts",
        "requests",
        "failed",
        "cut",
        "wrong",
        "twice",
        "requests/s",
        "end, s",
    ):
        table.add_column(heading, justify="left" if heading == "front" else "right")
    for plan, result in results:
        counts = [result.count(outcome) for outcome in (Outcome.FAILED, Outcome.TRUNCATED, Outcome.WRONG)]
        table.add_row(
            plan.front,
            str(plan.num_replicas),
            f"{len(result.restarts_s)}{' killed' if plan.kills else ''}",
            str(result.num_requests),
            *map(str, counts),
            str(result.num_duplicated),
            f"{result.num_requests / result.wall_s:.0f}",
            f"{min(result.restarts_s):.1f}-{max(result.restarts_s):.1f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
