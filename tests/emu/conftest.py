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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="run the kernels on this machine's GPU instead")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Planted faults are for the emulator alone: a real GPU may take them, or end the process."""
    if not config.getoption("--gpu", default=False):
        return
    planted = [item for item in items if isinstance(item, pytest.Function) and _plants_a_fault(item)]
    config.hook.pytest_deselected(items=planted)
    items[:] = [item for item in items if item not in set(planted)]


def _plants_a_fault(test: pytest.Function) -> bool:
    return "EmulatorError" in test.function.__code__.co_names


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
def make_gpu(emulate: Emulate, request: pytest.FixtureRequest) -> MakeGpu:
    if not request.config.getoption("--gpu", default=False):
        return partial(emulated, emulate=emulate)
    from tests.emu.mirrored import MirroredGpu

    gpu = MirroredGpu.here()
    return lambda kernels, *, defines=(): gpu


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """What a kernel forgets to write is no number: ``torch.empty`` gives NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
