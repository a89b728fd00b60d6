import pytest
import torch

from tests.emu.emulated_device import EmulatedDevice
from tests.emu.works import make_device
from tests.model.checkpoints import checkpoints, wide_checkpoints

__all__ = ["checkpoints", "wide_checkpoints"]


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDevice:
    """For models of float16 with heads of 64."""
    torch.set_num_threads(1)
    return make_device(tmp_path_factory.mktemp("kernels"), "fp16")
