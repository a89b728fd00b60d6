from tests.emu.conftest import emulate, make_gpu
from tests.model.checkpoints import checkpoints, wide_checkpoints

__all__ = ["checkpoints", "emulate", "make_gpu", "wide_checkpoints"]
