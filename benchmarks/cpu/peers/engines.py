"""Which engines there are, and how each is started."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

OURS: Final = "trioserve"
_TCMALLOC: Final = Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")


class Engine(NamedTuple):
    """One program with one kind of weights."""

    program: str
    """Whose interpreter runs it."""
    weights: str
    """As tables name them."""
    bits: int
    """Of a weight: engines are compared with those of equally many."""
    driver: str
    """Module of ``drivers``."""
    variant: str
    """For the driver, and for the format where it has one of its own."""
    format: str | None = None
    """Module of ``formats`` that converts the checkpoint; None: it takes that of Hugging Face."""
    suffix: str = ""
    """Of the converted checkpoint's name."""

    @property
    def name(self) -> str:
        return f"{self.program} {self.weights}"


ENGINES: Final = (
    Engine(OURS, "bf16", 16, "ours", "bfloat16"),
    Engine(OURS, "int8", 8, "ours", "int8"),
    Engine(OURS, "int4", 4, "ours", "int4"),
    Engine("llama.cpp", "bf16", 16, "llama_cpp", "bf16", "gguf", ".bf16.gguf"),
    Engine("llama.cpp", "f16", 16, "llama_cpp", "f16", "gguf", ".f16.gguf"),
    Engine("llama.cpp", "q8_0", 8, "llama_cpp", "q8_0", "gguf", ".q8_0.gguf"),
    Engine("openvino", "fp16", 16, "openvino", "fp16", "openvino", ".openvino-fp16"),
    Engine("openvino", "int8", 8, "openvino", "int8", "openvino", ".openvino-int8"),
    Engine("ctranslate2", "int8", 8, "ctranslate2", "int8", "ctranslate2", ".ctranslate2-int8"),
    Engine("vllm", "bf16", 16, "vllm", "bfloat16"),
    Engine("transformers", "bf16", 16, "transformers", "bfloat16"),
)
REFERENCE: Final = Engine("transformers", "float32", 32, "transformers", "float32")
"""Whose greedy answers are taken for right."""
PROGRAMS: Final = tuple(dict.fromkeys(engine.program for engine in ENGINES))


def find_interpreters(given: list[str]) -> dict[str, str]:
    """Program -> interpreter, of ``PROGRAM=INTERPRETER`` strings; this one for us and transformers.

    Raises:
        ValueError: A program is unknown, or an interpreter is none.
    """
    found = {OURS: sys.executable, "transformers": sys.executable}
    for text in given:
        program, _, interpreter = text.partition("=")
        if program not in PROGRAMS:
            raise ValueError(f"{program!r} is not one of {', '.join(PROGRAMS)}")
        if shutil.which(interpreter) is None:
            raise ValueError(f"{interpreter!r} cannot be run")
        found[program] = interpreter
    return found


def environment(program: str, interpreter: str, num_threads: int) -> Mapping[str, str]:
    """What each program's documents advise for CPUs."""
    variables = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "TOKENIZERS_PARALLELISM": "false"}
    variables |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    if program == "vllm":
        openmp = Path(interpreter).parent.parent / "lib" / "libiomp5.so"
        libraries = [str(path) for path in (_TCMALLOC, openmp) if path.is_file()]
        variables |= {"VLLM_CPU_KVCACHE_SPACE": "2", "LD_PRELOAD": ":".join(libraries)}
    return variables
