"""Which part of a model a rank holds, where several share its layers.

Heads, the width of the MLP and the vocabulary are shared out; norms, and all else that is the same for every head, is
whole on every rank. How a tensor of a checkpoint is cut is data that its layer keeps beside it, a ``Cut``.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from trioserve.errors import ModelError
from trioserve.model.config import DecoderConfig
from trioserve.model.ranks import Sums


@dataclass(frozen=True, slots=True)
class Cut:
    """``start`` to ``end`` of a checkpoint's tensor along ``dim``, where it has ``size``.

    A tensor that has no such dimension, as the bias of a matrix that is cut by columns, is whole on every rank.
    """

    dim: int
    start: int
    end: int
    size: int

    @property
    def length(self) -> int:
        """What is left of ``size``."""
        return self.end - self.start

    def full_shape(self, part: Tensor) -> list[int]:
        """The shape of the tensor that ``part`` is cut out of."""
        shape = list(part.shape)
        if self.dim < len(shape):
            shape[self.dim] = self.size
        return shape

    def of(self, tensor: Tensor) -> Tensor:
        """The part, where ``tensor`` lies."""
        return tensor.narrow(self.dim, self.start, self.length) if self.dim < tensor.dim() else tensor


@dataclass(frozen=True, slots=True)
class Part:
    """What rank ``tp_rank`` of ``tp_size`` holds."""

    tp_rank: int = 0
    tp_size: int = 1
    sums: Sums | None = None
    """How torch's layers add up with those of the other ranks; None: they never do, or there are no others."""

    def even(self, size: int, dim: int) -> Cut:
        """An equal share of each rank; ``size`` is a multiple of their number."""
        each = size // self.tp_size
        return Cut(dim, self.tp_rank * each, (self.tp_rank + 1) * each, size)

    def heads(self, num_heads: int, head_dim: int) -> Cut:
        """Rows of whole heads; where they are fewer than ranks, several ranks hold the same one."""
        first = self.tp_rank * num_heads // self.tp_size
        count = max(1, num_heads // self.tp_size)
        return Cut(0, first * head_dim, (first + count) * head_dim, num_heads * head_dim)

    def tokens(self, vocab_size: int) -> Cut:
        """Rows of the vocabulary; shares differ by one where it is no multiple of the ranks."""
        first, end = (vocab_size * rank // self.tp_size for rank in (self.tp_rank, self.tp_rank + 1))
        return Cut(0, first, end, vocab_size)

    def shape(self, config: DecoderConfig) -> DecoderConfig:
        """``config`` with the heads and the width of the MLP that are here."""
        return replace(
            config,
            num_heads=self.heads(config.num_heads, 1).length,
            num_kv_heads=self.heads(config.num_kv_heads, 1).length,
            intermediate_size=self.even(config.intermediate_size, 0).length,
        )

    def refuse_uneven(self, config: DecoderConfig) -> None:
        """See to it that a model can be shared out.

        Raises:
            ModelError: It cannot be by so many ranks; names the number that is in the way.
        """
        num_heads, num_kv_heads, size = config.num_heads, config.num_kv_heads, self.tp_size
        why = ""
        if num_heads % size:
            why = f"num_attention_heads {num_heads} is no multiple of it"
        elif num_kv_heads % size and size % num_kv_heads:
            why = f"num_key_value_heads {num_kv_heads} is neither a multiple nor a divisor of it"
        elif config.intermediate_size % size:
            why = f"intermediate_size {config.intermediate_size} is no multiple of it"
        elif config.vocab_size < size:
            why = f"vocab_size {config.vocab_size} is less"
        if why:
            raise ModelError(
                f"tensor_parallel_size {size} does not fit the model: {why}; choose another, such as 1"
            )


WHOLE = Part()
"""All of a model."""
