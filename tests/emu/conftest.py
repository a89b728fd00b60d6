from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
import torch

from tests.emu.build import Library, build

torch.set_num_threads(1)  # the tensors are small and the cores are shared


class Emulate(Protocol):
    """``build`` with its folder chosen."""

    def __call__(self, source: Path, kernels: Sequence[str], *, defines: Sequence[str] = ()) -> Library: ...


@pytest.fixture(scope="session")
def emulate(tmp_path_factory: pytest.TempPathFactory) -> Emulate:
    return partial(build, folder=tmp_path_factory.mktemp("emu"))
