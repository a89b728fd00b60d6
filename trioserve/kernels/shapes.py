"""Shapes by name: a tensor that does not fit says which dimension, of which argument, and what it should have been."""

from functools import cache

from torch import Tensor


class ShapeError(ValueError):
    """A tensor does not fit its fellows; always a bug of the caller."""


class Shapes:
    """Binds the names in a kernel's shape strings to numbers, the first tensor that names one deciding.

    ``Shapes(x=(x, "num_tokens hidden_size"), weight=(weight, "hidden_size"))["hidden_size"]``

    Raises:
        ShapeError: Two tensors disagree, or one has another number of dimensions than its string.
    """

    __slots__ = ("_sizes",)

    def __init__(self, **tensors: tuple[Tensor, str]) -> None:
        sizes: dict[str, int] = {}
        for argument, (tensor, spec) in tensors.items():
            names, shape = _names(spec), tensor.shape
            if len(names) != len(shape):
                raise ShapeError(f"{argument} has shape {tuple(shape)}, expected [{spec}]")
            for name, size in zip(names, shape, strict=True):
                if sizes.setdefault(name, size) != size:
                    raise ShapeError(f"{argument} [{spec}] has {name} = {size}, expected {sizes[name]}")
        self._sizes = sizes

    def expect(self, name: str, size: int) -> None:
        """Say what a dimension must be that follows from others.

        Raises:
            ShapeError: It is not.
        """
        if self._sizes[name] != size:
            raise ShapeError(f"{name} is {self._sizes[name]}, expected {size}")

    def __getitem__(self, name: str) -> int:
        return self._sizes[name]


@cache
def _names(spec: str) -> tuple[str, ...]:
    return tuple(spec.split())
