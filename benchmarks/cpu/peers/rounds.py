"""Rounds in turn: in each, every engine does every cell once, on the same prompts."""

import subprocess
from pathlib import Path

from benchmarks.cpu.decoder import read_bandwidth
from benchmarks.cpu.peers.cells import AGREEMENT, Cell
from benchmarks.cpu.peers.engines import REFERENCE, Engine
from benchmarks.cpu.peers.process import ROOT, EngineProcess
from benchmarks.cpu.peers.results import Results

_WARM_UP_TOKENS = 4


def convert(engine: Engine, interpreter: str, folder: Path) -> Path:
    """The checkpoint in ``folder`` as ``engine`` takes it, beside it, made now if it is not there.

    Raises:
        CalledProcessError: It could not be made.
    """
    if engine.format is None:
        return folder
    path = folder.with_name(folder.name + engine.suffix)
    if not path.exists():
        draft = path.with_name(path.name + ".draft")
        module = f"benchmarks.cpu.peers.formats.{engine.format}"
        command = [interpreter, "-m", module, str(folder), str(draft), engine.variant]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        draft.rename(path)
    return path


def warm_up(processes: dict[Engine, EngineProcess], cells: list[Cell]) -> None:
    """Each cell once, with a few tokens: what an engine compiles or reserves for a batch is not measured."""
    for process in processes.values():
        for cell in cells:
            process.ask(cell.prompts("warm-up"), min(cell.num_tokens, _WARM_UP_TOKENS))


def run_round(
    processes: dict[Engine, EngineProcess], cells: list[Cell], *, seed: str, shape: str, results: Results
) -> None:
    """Add one figure of every engine to every cell, and one of the bandwidth."""
    results.bandwidths.append(read_bandwidth())
    for cell in cells:
        prompts = cell.prompts(seed)
        for engine, process in processes.items():
            answer = process.ask(prompts, cell.num_tokens)
            results.add(shape, cell.name, engine.name, cell.rate(answer))


def compare_greedy(processes: dict[Engine, EngineProcess], *, shape: str, results: Results) -> None:
    """Note for each engine the share of greedy tokens before the first that differs from transformers' in float32."""
    prompts = AGREEMENT.prompts("greedy")
    answers = {
        engine: process.ask(prompts, AGREEMENT.num_tokens)["token_ids"]
        for engine, process in processes.items()
    }
    expected: list[list[int]] = answers.pop(REFERENCE)
    for engine, found in answers.items():
        equal = sum(_equal_tokens(*pair) for pair in zip(expected, found, strict=True))
        share = equal / (AGREEMENT.num_seqs * AGREEMENT.num_tokens)
        results.agreement.setdefault(shape, {})[engine.name] = share


def _equal_tokens(expected: list[int], found: list[int]) -> int:
    """How many tokens are equal before one is not."""
    for count, pair in enumerate(zip(expected, found, strict=True)):
        if pair[0] != pair[1]:
            return count
    return len(expected)
