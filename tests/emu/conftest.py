from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
import torch

from tests.emu.build import Library, build
from tests.emu.device import EmulatedGpu, emulated
from trioserve.kernels.source import Kernel

torch.set_num_threads(1)  # the tensors are small and the cores are shared


class Emulate(Protocol):
    """``build`` with its folder chosen."""

    def __call__(self, source: Path, kernels: Sequence[str], *, defines: Sequence[str] = ()) -> Library: ...


@pytest.fixture(scope="session")
def emulate(tmp_path_factory: pytest.TempPathFactory) -> Emulate:
    return partial(build, folder=tmp_path_factory.mktemp("emu"))


class MakeGpu(Protocol):
    """``emulated`` with its folder chosen."""

    def __call__(self, kernels: Iterable[Kernel], *, defines: Sequence[str] = ()) -> EmulatedGpu: ...


@pytest.fixture(scope="session")
def make_gpu(emulate: Emulate) -> MakeGpu:
    return partial(emulated, emulate=emulate)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """What a kernel forgets to write is no number: ``torch.empty`` gives NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
