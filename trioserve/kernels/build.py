"""Cubins of the CUDA kernels: compiled at first use, kept in a folder, found again by everything that made them.

The name of a cubin is a hash over the source with its includes, comments aside, the instantiation, the architecture and
the options, so a file never has to be judged stale. The compiler has no part in it: where the folder was filled
beforehand, by ``trioserve check --compile-kernels sm_90a``, none is needed. What is to be known of a cubin is in a file
beside it.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from trioserve.errors import KernelError
from trioserve.kernels.nvrtc import OPTIONS, Nvrtc, Usage, nvrtc
from trioserve.kernels.source import Kernel, essence, inlined

_FORMAT: Final = 2
"""Of the files; another one is another name."""
_MODE: Final = 0o644
"""Of the files: who fills the folder beforehand is often not who reads it."""


@dataclass(frozen=True, slots=True)
class Built:
    """One kernel, ready to be loaded."""

    path: Path
    """Of the cubin."""
    mangled: str
    """What it is called there."""
    usage: Usage
    cuda: str
    """Whose compiler made it, such as "13.0"."""


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
            KernelError: There is no NVRTC, it is too old, it refuses the kernel, or the folder cannot be written.
        """
        path = self.path(kernel)
        found = _read(path)
        if found is not None:
            return found
        compiler = self._compiler()
        cubin = compiler.compile(inlined(kernel.file), [kernel.name], self.architecture)
        built = Built(path, cubin.mangled[0], cubin.usages[0], compiler.version)
        try:
            _write(built, cubin.image)
        except OSError as exc:
            raise KernelError(
                f"compiled kernels cannot be kept ({exc}): set XDG_CACHE_HOME to a folder that can be written"
            ) from exc
        return built

    def path(self, kernel: Kernel) -> Path:
        """Where the cubin of ``kernel`` is, or will be."""
        return self.folder / f"{kernel.base}-{self.architecture}-{key_of(kernel, self.architecture)}.cubin"


def key_of(kernel: Kernel, architecture: str) -> str:
    """A name for all that makes the cubin of ``kernel``."""
    parts = (str(_FORMAT), essence(kernel.file), kernel.name, architecture, *OPTIONS)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _write(built: Built, image: bytes) -> None:
    """The cubin, then what is to be known of it."""
    built.path.parent.mkdir(parents=True, exist_ok=True)
    words = {
        "mangled": built.mangled,
        "usage": asdict(built.usage),
        "cuda": built.cuda,
        "sha256": hashlib.sha256(image).hexdigest(),
    }
    _put(built.path, image)
    _put(_beside(built.path), json.dumps(words).encode())


def _put(path: Path, content: bytes) -> None:
    """Whole or not at all, whoever else writes the same."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, _MODE)
        file.write(content)
    Path(name).replace(path)


def _read(path: Path) -> Built | None:
    """None, too, where a full disk or a stranger has left something else."""
    try:
        words: dict[str, Any] = json.loads(_beside(path).read_bytes())
        whole = hashlib.sha256(path.read_bytes()).hexdigest() == words["sha256"]
        return Built(path, words["mangled"], Usage(**words["usage"]), words["cuda"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")
