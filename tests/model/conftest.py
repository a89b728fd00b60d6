from tests.model.checkpoints import checkpoints

__all__ = ["checkpoints"]
