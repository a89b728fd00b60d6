"""256 streams through HTTP, beside transformers' continuous batching, which has no server in its way."""

import json
import os
import subprocess
import sys
from typing import Final

from benchmarks.cpu.checkpoints import default_cache, make_checkpoint
from benchmarks.cpu.http_peers import Load, measure, running
from benchmarks.cpu.peers.engines import OURS
from benchmarks.gpu.report import Report, Row
from benchmarks.gpu.transformers_peer import INPUT_TOKENS, OUTPUT_TOKENS

STREAMS: Final = 256
_SHAPE: Final = "M"
"""Of Qwen2.5-0.5B, with random weights."""
_LOAD: Final = Load(
    f"{STREAMS} streams",
    tuple(
        f"--concurrency {STREAMS} --requests {2 * STREAMS} --input-tokens {INPUT_TOKENS} "
        f"--output-tokens {OUTPUT_TOKENS}".split()
    ),
    {},
    (),
)
_PEER_TIMEOUT_S: Final = 240


def measure_streams(report: Report) -> None:
    """Add what both come to.

    Raises:
        SystemExit: The server did not start, or requests failed.
    """
    folder = make_checkpoint(_SHAPE, default_cache())
    limits = ["--max-num-seqs", str(STREAMS), "--max-model-len", "1024"]
    command = [sys.executable, "-m", "trioserve.cli", "serve", "--model", str(folder), "--device", "cuda"]
    command += [*limits, "--log-level", "warning", "--drain-delay-s", "0"]
    with running(OURS, command, dict(os.environ)) as server:
        measure(server, _LOAD, 0)  # what is made on first use
        figures = measure(server, _LOAD, 1)
    peer = _transformers_rate(str(folder))
    note = f"inter-token p99 {figures.itl_p99_s * 1e3:.1f} ms, TTFT p50 {figures.ttft_p50_s * 1e3:.0f} ms"
    name = f"{STREAMS} streams of 0.5B through HTTP"
    report.add(Row("http", name, figures.tokens_per_s, "tokens/s", None, "transformers", peer, None, note))


def _transformers_rate(folder: str) -> float | None:
    """Tokens a second in process; None where it does not run here, and why is in the log."""
    command = [sys.executable, "-m", "benchmarks.gpu.transformers_peer", folder, str(STREAMS)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_PEER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        print("transformers took too long", flush=True)
        return None
    if ended.returncode:
        print(ended.stderr[-4000:], flush=True)
        return None
    rate: float = json.loads(ended.stdout.splitlines()[-1])["tokens_per_s"]
    return rate
