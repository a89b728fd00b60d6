"""Cubins of the CUDA kernels: compiled at first use, kept in a folder, found again by everything that made them.

The name of a cubin is a hash over the source with its includes, comments aside, the instantiation, the architecture and
the options, so a file never has to be judged stale. The compiler has no part in it: where the folder was filled
beforehand, by ``trioserve check --compile-kernels sm_90a``, none is needed.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from trioserve.kernels.nvrtc import OPTIONS, Nvrtc, Usage, nvrtc
from trioserve.kernels.source import Kernel, essence, inlined

_FORMAT: Final = 1
"""Of the files; another one is another name."""


@dataclass(frozen=True, slots=True)
class Built:
    """One kernel, ready to be loaded."""

    image: bytes
    mangled: str
    """What it is called in ``image``."""
    usage: Usage


def cache_folder() -> Path:
    """Where cubins are kept unless another folder is named: below XDG_CACHE_HOME, by default ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "trioserve" / "kernels"


class Builder:
    """Hands out cubins for one architecture, such as ``"sm_90a"``."""

    def __init__(
        self, architecture: str, folder: Path | None = None, *, compiler: Callable[[], Nvrtc] = nvrtc
    ) -> None:
        self.architecture = architecture
        self.folder = cache_folder() if folder is None else folder
        self._compiler = compiler

    def get(self, kernel: Kernel) -> Built:
        """``kernel`` from the folder, or compiled and put there.

        Raises:
            KernelError: There is no NVRTC, it is too old, or it refuses the kernel.
        """
        path = self.path(kernel)
        found = _read(path)
        if found is not None:
            return found
        cubin = self._compiler().compile(inlined(kernel.file), [kernel.name], self.architecture)
        built = Built(cubin.image, cubin.mangled[0], cubin.usages[0])
        _write(path, built)
        return built

    def path(self, kernel: Kernel) -> Path:
        """Where the cubin of ``kernel`` is, or will be."""
        return self.folder / f"{kernel.base}-{self.architecture}-{key_of(kernel, self.architecture)}.cubin"


def key_of(kernel: Kernel, architecture: str) -> str:
    """A name for all that makes the cubin of ``kernel``."""
    parts = (str(_FORMAT), essence(kernel.file), kernel.name, architecture, *OPTIONS)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _write(path: Path, built: Built) -> None:
    """Whole or not at all, whoever else writes the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(built.image).hexdigest()
    head = json.dumps({"mangled": built.mangled, "usage": asdict(built.usage), "sha256": digest}).encode()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
    with os.fdopen(handle, "wb") as file:
        file.write(head + b"\n" + built.image)
    Path(name).replace(path)


def _read(path: Path) -> Built | None:
    """None, too, where a full disk or a stranger has left something else."""
    try:
        head, _, image = path.read_bytes().partition(b"\n")
        words: dict[str, Any] = json.loads(head)
        whole = hashlib.sha256(image).hexdigest() == words["sha256"]
        return Built(image, words["mangled"], Usage(**words["usage"])) if whole else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
