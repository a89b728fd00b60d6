from tests.model.checkpoints import checkpoints, wide_checkpoints

__all__ = ["checkpoints", "wide_checkpoints"]
