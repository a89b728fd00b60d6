"""trioserve beside the servers that one would use instead of it, through HTTP, in one run.

    python -m benchmarks.cpu.http_peers --peer vllm=/venvs/vllm/bin/python --peer llama-server=/path/llama-server

Serves the checkpoints of `benchmarks.cpu.peers` with each server that is there and loads them in turn with
`benchmarks/serve.py`, while the others are stopped: streamed completions of 128 tokens behind 128, for 8 and 32
clients, and 32 requests at once that begin with the same 1,000 tokens, which no server has seen before; and ours alone
with 16 tokens behind 1,000 for 8 clients. Prints medians with their ranges, ratios to the best peer, and whether they
meet the targets. benchmarks/cpu/README.md says how to install the peers.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.cpu.checkpoints import default_cache, make_checkpoint
from benchmarks.cpu.peers.engines import OURS, environment
from benchmarks.cpu.peers.process import ROOT, signal_all

_START_TIMEOUT_S: Final = 400.0
_LEAST_OK: Final = 0.98
"""Of the requests: a server may close a connection that it kept for the next request in the moment when that comes."""
_SLOTS: Final = 32
"""Sequences at a time that a server has room for."""
_MAX_TOKENS: Final = 1280
"""Of each, prompt and answer."""


class Load(NamedTuple):
    """One kind of load, and what it is about."""

    name: str
    flags: tuple[str, ...]
    """For benchmarks/serve.py."""
    at_least: dict[str, float]
    """Figure -> ratio of ours to the best peer's that is wanted; of times, theirs to ours."""
    peers: tuple[str, ...]
    """Servers that it is compared with."""


class Figures(NamedTuple):
    """What one load came to."""

    tokens_per_s: float
    itl_p99_s: float
    ttft_p50_s: float


_ALL: Final = ("vllm serve", "llama-server")
_FASTER: Final = {"tokens_per_s": 1.6, "itl_p99_s": 1.0}
_AT_ONCE: Final = "--concurrency 32 --requests 32 --warmup 0"
_PREFIX: Final = "--shared-prefix-tokens 1000 --input-tokens 32 --output-tokens 16"
LOADS: Final = (
    Load("8 clients", ("--concurrency", "8", "--requests", "16"), _FASTER, _ALL),
    Load("32 clients", ("--concurrency", "32", "--requests", "64"), _FASTER, _ALL),
    Load("shared prefix", tuple(f"{_AT_ONCE} {_PREFIX}".split()), {"ttft_p50_s": 1.2}, ("vllm serve",)),
    Load(
        "long prompts",
        tuple("--concurrency 8 --requests 24 --input-tokens 1000 --output-tokens 16".split()),
        {},
        (),
    ),
)
Runs = dict[str, dict[str, dict[str, list[Figures]]]]
"""Shape -> load -> server -> one a round."""


class Server(NamedTuple):
    """A server that is ready, and stopped but for its turn."""

    name: str
    url: str
    pid: int


def commands(
    peers: dict[str, str], folder: Path, num_threads: int, others: list[str]
) -> Iterator[tuple[str, list[str], str]]:
    """Name, command without its port and the program whose environment it wants, for each server that is there; ours
    once more with each of the flags in ``others``."""
    limits = ["--dtype", "bfloat16", "--max-model-len", str(_MAX_TOKENS), "--max-num-seqs", str(_SLOTS)]
    ours = [sys.executable, "-m", "trioserve.cli", "serve", "--model", str(folder), "--log-level", "warning"]
    ours += ["--num-threads", str(num_threads), "--drain-delay-s", "0"]
    for flags in ("", *others):
        yield f"{OURS} {flags}".rstrip(), [*ours, *flags.split()], OURS
    if "vllm" in peers:
        server = [peers["vllm"], "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        yield "vllm serve", [*server, *limits, "--uvicorn-log-level", "warning"], "vllm"
    if "llama-server" in peers:
        checkpoint = str(folder.with_name(folder.name + ".bf16.gguf"))
        room = ["-np", str(_SLOTS), "-c", str(_SLOTS * _MAX_TOKENS), "--no-kv-unified"]
        threads = ["-t", str(num_threads), "-tb", str(num_threads)]
        yield "llama-server", [peers["llama-server"], "-m", checkpoint, *room, *threads], "llama.cpp"


@contextmanager
def running(name: str, command: list[str], environ: dict[str, str]) -> Iterator[Server]:
    """Run a server while the block is open; entered when it is ready, and stopped.

    Raises:
        SystemExit: It did not become ready; with its last words.
    """
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=ROOT,
            env=environ,
            stdout=words,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            if not _wait_ready(url, process):
                words.seek(max(0, words.seek(0, os.SEEK_END) - 2000))
                raise SystemExit(f"{name} is not ready:\n{words.read().decode(errors='replace')}")
            signal_all(process.pid, signal.SIGSTOP)
            yield Server(name, url, process.pid)
        finally:
            signal_all(process.pid, signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _wait_ready(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether a completion of one token was answered in time."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            model = httpx.get(url + "/v1/models", timeout=5).json()["data"][0]["id"]
            body = {"model": model, "prompt": "the", "max_tokens": 1}
            if httpx.post(url + "/v1/completions", json=body, timeout=60).status_code == 200:
                return True
        except (httpx.TransportError, LookupError, ValueError):
            pass  # it loads
        time.sleep(0.5)
    return False


def measure(server: Server, load: Load, seed: int) -> Figures:
    """Load ``server`` once.

    Raises:
        SystemExit: Requests failed.
    """
    signal_all(server.pid, signal.SIGCONT)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "serve.py"), "--url", server.url, *load.flags]
        command += ["--endpoint", "completions", "--seed", str(seed), "--json", str(report)]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)  # 1: the report says what failed
        point: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["points"][0]
    signal_all(server.pid, signal.SIGSTOP)
    if point["num_ok"] < _LEAST_OK * point["num_begun"] or point["num_short"]:
        counts = f"{point['num_ok']} of {point['num_begun']} requests, {point['num_short']} of them short"
        raise SystemExit(f"{server.name} answered {counts}: {point['errors']}")
    return Figures(point["output_tokens_per_s"], point["itl_s"]["p99"], point["ttft_s"]["p50"])


def show(console: Console, runs: Runs) -> None:
    """Print medians with ranges, and ratios to the best peer."""
    columns = ("shape", "load", "server", "tokens/s", "inter-token p99, ms", "TTFT p50, ms")
    table = Table(*columns, title="through HTTP: medians of rounds in turn and their range")
    verdicts = Table("shape", "load", "figure", "ours", "best peer", "ratio", "at least", "", title="targets")
    for shape, loads in runs.items():
        for load in LOADS:
            servers = loads.get(load.name, {})
            for server, figures in servers.items():
                rates, itls, ttfts = zip(*figures, strict=True)
                cells = (_spread(rates, 1), _spread(itls, 1000), _spread(ttfts, 1000))
                table.add_row(shape, load.name, server, *cells)
            for figure, at_least in load.at_least.items():
                if OURS in servers and any(peer in servers for peer in load.peers):
                    verdicts.add_row(shape, load.name, figure, *_verdict(servers, load, figure, at_least))
    console.print(table, verdicts)


def _spread(values: tuple[float, ...], scale: float) -> str:
    middle, low, high = (scale * each for each in (statistics.median(values), min(values), max(values)))
    return f"{middle:,.0f} ({low:,.0f}-{high:,.0f})"


def _verdict(
    servers: dict[str, list[Figures]], load: Load, figure: str, at_least: float
) -> tuple[str, str, str, str, str]:
    """Ours, the best peer with its own, the ratio by which ours is better, what is wanted, and whether it is so."""
    medians = {
        server: statistics.median(getattr(each, figure) for each in servers[server])
        for server in (OURS, *load.peers)
        if server in servers
    }
    ours, is_time = medians.pop(OURS), figure != "tokens_per_s"
    best = (min if is_time else max)(medians, key=lambda server: medians[server])
    ratio = medians[best] / ours if is_time else ours / medians[best]
    met = "met" if ratio >= at_least else "missed"
    digits = 4 if is_time else 0
    return f"{ours:.{digits}f}", f"{best} {medians[best]:.{digits}f}", f"{ratio:.2f}", f"{at_least:.2f}", met


class Options(argparse.Namespace):
    """The command line; the help of `_parser` describes each field."""

    peer: list[str]
    shapes: list[str]
    rounds: int
    threads: int
    cache: Path
    json: Path | None
    ask: bool
    also: list[str]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu.http_peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--peer", action="append", default=[], metavar="NAME=FILE", help="vllm=PYTHON, llama-server=PROGRAM")
    add("--shapes", nargs="+", choices=["S", "M"], default=["S", "M"])
    add("--rounds", type=int, default=3, metavar="N", help="(default: %(default)s)")
    add("--threads", type=int, default=2, metavar="N", help="of every server (default: %(default)s)")
    add("--cache", type=Path, default=default_cache(), metavar="FOLDER", help="of checkpoints (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="add this run to what FILE holds, and show all of it")
    add(
        "--also",
        action="append",
        default=[],
        metavar="FLAGS",
        help="ours once more, with these: --also='--x 1'",
    )
    add("--ask", action="store_true", help="wait for a line on standard input before each round")
    return parser


def run_shape(options: Options, shape: str, peers: dict[str, str], runs: Runs) -> None:
    """All rounds of one shape, one server alive after the other and at work in turn."""
    folder = make_checkpoint(shape, options.cache)
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(running(name, command, _environ(program, command[0], options.threads)))
            for name, command, program in commands(peers, folder, options.threads, options.also)
        }
        for number in range(options.rounds):
            if options.ask:
                print(f"{shape}, round {number + 1}:", flush=True)
                sys.stdin.readline()
            for load in LOADS:
                for name, server in servers.items():
                    if name.startswith(OURS) or name in load.peers:
                        figures = measure(server, load, seed=_seed(runs, shape, load, name))
                        runs.setdefault(shape, {}).setdefault(load.name, {}).setdefault(name, []).append(
                            figures
                        )
            if options.json is not None:
                options.json.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


def _environ(program: str, interpreter: str, num_threads: int) -> dict[str, str]:
    return dict(environment(program, interpreter, num_threads))


def _seed(runs: Runs, shape: str, load: Load, server: str) -> int:
    """A new one a round, and the same for every server."""
    return 1 + len(runs.get(shape, {}).get(load.name, {}).get(server, []))


def _read(path: Path | None) -> Runs:
    if path is None or not path.is_file():
        return {}
    found: dict[str, dict[str, dict[str, list[list[float]]]]] = json.loads(path.read_text(encoding="utf-8"))
    return {
        shape: {
            load: {server: [Figures(*figures) for figures in rounds] for server, rounds in servers.items()}
            for load, servers in loads.items()
        }
        for shape, loads in found.items()
    }


def main() -> int:
    parser = _parser()
    options = parser.parse_args(namespace=Options())
    peers = dict(text.partition("=")[::2] for text in options.peer)
    if unknown := set(peers) - {"vllm", "llama-server"}:
        parser.error(f"unknown peers: {', '.join(sorted(unknown))}")
    runs = _read(options.json)
    for shape in options.shapes if options.rounds else ():
        run_shape(options, shape, peers, runs)
    show(Console(width=None if sys.stdout.isatty() else 150), runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
