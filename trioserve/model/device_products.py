"""Products of a GPU's decoder: activations times a weight, in whatever form it lies there."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn.functional import linear

from trioserve.model.ranks import Sums


class Product(Protocol):
    """[num_tokens, in_size] -> [num_tokens, out_size], which are the sizes of this rank's part."""

    @property
    def num_bytes(self) -> int:
        """Memory of its weight, and bias."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Dense:
    """By torch, which is to say cuBLAS."""

    weight: Tensor
    """[out_size, in_size]"""
    bias: Tensor | None

    @property
    def num_bytes(self) -> int:
        """As ``Product`` says."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Summed:
    """A product whose input features the ranks have shared out; the bias is added once."""

    product: Product
    """Without a bias."""
    bias: Tensor | None
    sums: Sums

    @property
    def num_bytes(self) -> int:
        """As ``Product`` says."""
        return self.product.num_bytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        total = self.sums.sum(self.product(x))
        return total if self.bias is None else total + self.bias
