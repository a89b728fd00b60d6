"""What a server looks like from outside, and what must be as it was once a fault is over."""

import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.harness import Server, descendants, wait_until

_SETTLE_S = 15.0
"""More than a head may take that never ends."""
_GROWTH_MB = 48
"""Of memory, that caches and kept tables may account for."""
_TASK = re.compile(r"^ {2,}(?! *\|)\S", re.MULTILINE)


@dataclass(frozen=True)
class Ground:
    """A server at rest."""

    num_files: int
    num_tasks: int
    num_processes: int
    memory_mb: int

    @classmethod
    def of(cls, server: Server) -> "Ground":
        pid = server.serving_pid()
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
        resident = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert resident is not None
        return cls(
            num_files=len(list(Path(f"/proc/{pid}/fd").iterdir())),
            num_tasks=_num_tasks(server),
            num_processes=len(descendants(server.process.pid)),
            memory_mb=int(resident[1]) // 1024,
        )

    def is_more_than(self, other: "Ground") -> bool:
        """Whether something is left behind, memory aside."""
        return (
            self.num_files > other.num_files
            or self.num_tasks > other.num_tasks
            or self.num_processes > other.num_processes
        )


def check(server: Server, before: Ground) -> None:
    """See that nothing is left behind and that the counts add up."""
    server.wait_idle(_SETTLE_S)
    now = Ground.of(server)
    deadline = time.monotonic() + _SETTLE_S
    while now.is_more_than(before) and time.monotonic() < deadline:
        time.sleep(0.2)
        now = Ground.of(server)
    assert now.num_files <= before.num_files, f"files: {before.num_files} before, {now.num_files} now"
    assert now.num_tasks <= before.num_tasks, f"tasks: {before.num_tasks} before, {now.num_tasks} now"
    assert now.num_processes <= before.num_processes, (
        f"processes: {before.num_processes} before, {now.num_processes} now"
    )
    assert now.memory_mb <= before.memory_mb + _GROWTH_MB, (
        f"memory: {before.memory_mb} MB, now {now.memory_mb}"
    )
    _check_counts(server)


def _num_tasks(server: Server) -> int:
    """Trio's tasks, as SIGQUIT tells them."""
    start = len(server.log)
    os.kill(server.serving_pid(), signal.SIGQUIT)
    wait_until(lambda: "Current thread" in server.log[start:], 5, lambda: "no stacks were written")
    tree = server.log[start:].partition("Tasks:\n")[2]
    return len(_TASK.findall(re.split(r"^(?:Thread|Current thread)", tree, flags=re.MULTILINE)[0]))


def _check_counts(server: Server) -> None:
    """Sums of one thing that is counted in several ways."""
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(server.url + "/metrics", timeout=10).text):
        for sample in family.samples:
            counts[sample.name] = counts.get(sample.name, 0.0) + sample.value
    num_tokens = counts["vllm:generation_tokens_total"]
    num_timed = (
        counts["vllm:time_to_first_token_seconds_count"] + counts["vllm:inter_token_latency_seconds_count"]
    )
    assert num_timed == num_tokens, f"{num_timed} tokens were timed, {num_tokens} counted"
    assert counts["vllm:num_requests_running"] == counts["vllm:num_requests_waiting"] == 0
    assert counts["vllm:kv_cache_usage_perc"] == counts["trioserve:num_requests"] == 0
    assert counts["trioserve:http_requests_running"] <= 1, "the scrape itself"
    assert counts["vllm:e2e_request_latency_seconds_count"] <= counts["vllm:request_success_total"]
