"""trioserve beside the engines that one would use instead of it, in one run.

    python -m benchmarks.cpu.peers --peer vllm=/venvs/vllm/bin/python --peer openvino=/venvs/openvino/bin/python ...

Builds checkpoints of two real shapes with random weights, converts them to what each engine takes, starts every engine
that is there in a process of its own, and lets them work in turn while the others are stopped: 128-token prompts and
128 greedy tokens for 1, 8 and 32 sequences at a time, and prompts of 1x1024 and 8x512 tokens. Prints medians with
their ranges, the ratios to the best peer and whether they meet the targets. benchmarks/cpu/README.md says how to
install the peers.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.cpu.checkpoints import default_cache, make_checkpoint
from benchmarks.cpu.peers.cells import CELLS
from benchmarks.cpu.peers.engines import ENGINES, PROGRAMS, REFERENCE, Engine, find_interpreters
from benchmarks.cpu.peers.process import started
from benchmarks.cpu.peers.results import Results
from benchmarks.cpu.peers.rounds import compare_greedy, convert, run_round, warm_up
from benchmarks.cpu.peers.tables import show


class Options(argparse.Namespace):
    """The command line; the help of `_parser` describes each field."""

    peer: list[str]
    engines: list[str]
    shapes: list[str]
    cells: list[str]
    rounds: int
    threads: int
    cache: Path
    json: Path | None
    plot: Path | None
    ask: bool
    agreement: bool


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [engine.name for engine in ENGINES]
    add = parser.add_argument
    add("--peer", action="append", default=[], metavar="NAME=PYTHON", help=f"NAME: {', '.join(PROGRAMS)}")
    add("--engines", nargs="+", choices=names, default=names, metavar="ENGINE", help=", ".join(names))
    add("--shapes", nargs="+", choices=["S", "M"], default=["S", "M"])
    add("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="CELL", help=", ".join(CELLS))
    add(
        "--rounds",
        type=int,
        default=5,
        metavar="N",
        help="0: only show what --json holds (default: %(default)s)",
    )
    add("--threads", type=int, default=2, metavar="N", help="of every engine (default: %(default)s)")
    add("--cache", type=Path, default=default_cache(), metavar="FOLDER", help="of checkpoints (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="add this run to what FILE holds, and show all of it")
    add("--plot", type=Path, metavar="FILE", help="draw all of it")
    add("--ask", action="store_true", help="wait for a line on standard input before each round")
    add("--agreement", action="store_true", help="compare greedy answers with transformers' in float32, too")
    return parser


def measure(options: Options, interpreters: dict[str, str], shape: str, results: Results) -> None:
    """All rounds of one shape."""
    folder = make_checkpoint(shape, options.cache)
    engines = [
        engine for engine in ENGINES if engine.name in options.engines and engine.program in interpreters
    ]
    paths: dict[Engine, Path] = {REFERENCE: folder}
    for engine in engines:
        paths[engine] = convert(engine, interpreters[engine.program], folder)
    if options.agreement:
        with started([REFERENCE, *engines], interpreters, paths, options.threads) as processes:
            compare_greedy(processes, shape=shape, results=results)
    if not options.rounds:
        return
    cells = [CELLS[name] for name in options.cells]
    with started(engines, interpreters, paths, options.threads) as processes:
        warm_up(processes, cells)
        for number in range(options.rounds):
            if options.ask:
                print(f"{shape}, round {number + 1}:", flush=True)
                sys.stdin.readline()
            run_round(processes, cells, seed=f"{shape} {number}", shape=shape, results=results)
            if options.json is not None:
                results.write(options.json)


def main() -> int:
    parser = _parser()
    options = parser.parse_args(namespace=Options())
    try:
        interpreters = find_interpreters(options.peer)
    except ValueError as exc:
        parser.error(str(exc))
    results = Results.read(options.json)
    if options.rounds or options.agreement:
        for shape in options.shapes:
            try:
                measure(options, interpreters, shape, results)
            except subprocess.CalledProcessError as exc:
                parser.error(f"the checkpoint could not be converted: {' '.join(exc.cmd)}")
    if options.json is not None:
        results.write(options.json)
    show(Console(width=None if sys.stdout.isatty() else 160), results)
    if options.plot is not None:
        from benchmarks.cpu.peers.plot import plot  # matplotlib takes a second to load

        plot(options.plot, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
