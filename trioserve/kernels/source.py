"""The sources of CUDA kernels: a file with what it includes, and what each kernel in it takes."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from trioserve.errors import KernelError

_PACKAGE: Final = Path(__file__).parents[1]
FOLDER: Final = _PACKAGE / "cuda" if (_PACKAGE / "cuda").is_dir() else _PACKAGE.parent / "cuda"
"""Of an installed package, or of a checkout."""

_INCLUDE: Final = re.compile(r'^#include "([^"]+)"\n', re.MULTILINE)
_COMMENT: Final = re.compile(r"//.*")
_KERNEL: Final = re.compile(
    r"^(?:template <(?P<template>[^>]*)>\n)?"
    r"__global__ void(?: __launch_bounds__\([^\n]*\))?\s(?P<name>\w+)\((?P<arguments>[^)]*)\)",
    re.MULTILINE,
)
_VALUES: Final[Mapping[str, str]] = {"float": "f32", "int": "i32", "u32": "u32", "i64": "i64"}
_NAMES: Final[Mapping[str, str]] = {**_VALUES, **{name: name for name in "bf16 fp16 e4m3 u8 u16".split()}}


@dataclass(frozen=True, slots=True)
class Kernel:
    """One instantiation in one file of ``cuda/``: ``Kernel("rope.cu", "apply_rope<bf16, false, 8, 256>")``."""

    file: str
    name: str
    architecture: str = ""
    """The only one that has it, such as ``"sm_90a"``; empty: all from sm_80 on."""

    @property
    def base(self) -> str:
        """The name without what the template is given."""
        return self.name.partition("<")[0]

    @property
    def choices(self) -> tuple[str, ...]:
        """What the template is given."""
        _, _, given = self.name.removesuffix(">").partition("<")
        return tuple(word.strip() for word in given.split(",")) if given else ()


@dataclass(frozen=True, slots=True)
class Argument:
    """What a kernel takes at one place."""

    name: str
    kind: str
    """``"f32"`` for a value; ``"in f32"`` and ``"out f32"`` for a tensor that is read only, or may be written."""

    @property
    def is_tensor(self) -> bool:
        return " " in self.kind


@cache
def inlined(file: str) -> str:
    """A file of ``cuda/`` with its includes in their places, each once; the emulator's, which no GPU reads, left out.

    Raises:
        KernelError: There is no such file.
    """
    return "".join(_parts(file, set()))


def _parts(file: str, seen: set[str]) -> Iterator[str]:
    path = FOLDER / file
    if not path.is_file():
        raise KernelError(f"there is no kernel source {path}: install trioserve anew")
    text, end = path.read_text(encoding="utf-8").replace("#pragma once\n", ""), 0
    for include in _INCLUDE.finditer(text):
        yield text[end : include.start()]
        end = include.end()
        if include[1] not in seen and (FOLDER / include[1]).is_file():
            seen.add(include[1])
            yield from _parts(include[1], seen)
    yield text[end:]


@cache
def essence(file: str) -> str:
    """``inlined`` without comments: what it compiles to depends on nothing else of it."""
    lines = (_COMMENT.sub("", line).strip() for line in inlined(file).splitlines())
    return "\n".join(line for line in lines if line)


@cache
def signature(kernel: Kernel) -> tuple[Argument, ...]:
    """What ``kernel`` takes, as its source says.

    Raises:
        KernelError: Its file has no kernel of that name, or it takes what no launch can give.
    """
    declaration = _declarations(kernel.file).get(kernel.base)
    if declaration is None:
        raise KernelError(f"{kernel.file} has no kernel {kernel.base}")
    template, arguments = declaration
    if len(template) != len(kernel.choices):
        raise KernelError(
            f"{kernel.base} in {kernel.file} is a template of {len(template)}, not of {kernel.name}"
        )
    types = dict(zip(template, kernel.choices, strict=True))
    return tuple(_argument(kernel, words, types) for words in arguments)


@cache
def _declarations(file: str) -> Mapping[str, tuple[list[str], list[str]]]:
    """By name: the names of the template's arguments, and the arguments as they are written."""
    return {
        found["name"]: (
            [words.split()[-1] for words in _split(found["template"])],
            _split(found["arguments"]),
        )
        for found in _KERNEL.finditer(inlined(file))
    }


def _split(words: str | None) -> list[str]:
    return [" ".join(part.split()) for part in (words or "").split(",") if part.strip()]


def _argument(kernel: Kernel, words: str, types: Mapping[str, str]) -> Argument:
    found = re.fullmatch(r"(const )?(\w+)(\*)?(?: __restrict__)? (\w+)", words)
    known = _NAMES if found is None or found[3] else _VALUES
    type_name = "" if found is None else types.get(found[2], found[2])
    if found is None or type_name not in known:
        raise KernelError(f"{kernel.name} takes {words!r}, which no launch can give")
    kind = known[type_name]
    if found[3]:
        kind = f"{'in' if found[1] else 'out'} {kind}"
    return Argument(found[4], kind)
