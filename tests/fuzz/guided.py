"""Fuzzes one target, led by what its bytes reach: `python -m tests.fuzz.guided TARGET FOLDER SECONDS`, for `make fuzz`.

Needs atheris, which is no dependency of the project. What breaks a promise is left in the folder as ``crash-...``;
``python -m tests.fuzz.guided TARGET FILE`` does it again.
"""

import sys
from importlib import import_module
from pathlib import Path

_MAX_LEN = 1024
_SLOW_S = 10
_MEMORY_MB = 2500


def main(words: list[str]) -> None:
    """Does not return: libFuzzer ends the process, with 0 where nothing was found."""
    atheris = import_module("atheris")  # it instruments what is imported from here on
    name, place = words[0], Path(words[1])
    with atheris.instrument_imports(include=["trioserve"]):
        target = import_module(f"tests.fuzz.targets.{name}")
    if place.is_file():
        target.check(place.read_bytes())
        return
    corpus = place / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.SEEDS):
        (corpus / f"seed-{number}").write_bytes(seed)
    flags = {
        "max_total_time": words[2],
        "max_len": _MAX_LEN,
        "timeout": _SLOW_S,
        "rss_limit_mb": _MEMORY_MB,
        "artifact_prefix": f"{place}/",
        "print_final_stats": 1,
        "verbosity": 0,
    }
    atheris.Setup(["fuzz", str(corpus), *(f"-{key}={value}" for key, value in flags.items())], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
