"""Layers that hold weights, by the names that tensor parallelism gives them.

Each knows how a checkpoint's tensors fill its parameters: ``weight_loader(parameter, loaded, shard)`` is the one door,
so that a layer split over ranks changes here and nowhere else. Matrices that will be packed need not be copied first:
they may be borrowed, which is to say read where they lie in the mapped file.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, layer_norm, linear

from trioserve.errors import ModelError
from trioserve.kernels.linear import pack_weight, packed_linear
from trioserve.kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_ref
from trioserve.model.families import NormConfig


class WeightedLayer(nn.Module):
    """A layer whose parameters a checkpoint fills."""

    shards: tuple[str, ...] = ()
    """Checkpoint modules that are merged into this one, in the order of their rows; empty: it is its own."""
    is_packed = False
    """Whether its matrix is packed when all is loaded, and the rows of it are not needed after."""

    def __init__(self) -> None:
        super().__init__()
        self._borrowed: dict[str | None, Tensor] = {}
        """By shard."""

    def weight_loader(
        self, parameter: nn.Parameter, loaded: Tensor, shard: str | None, *, may_borrow: bool = False
    ) -> bool:
        """Fill ``parameter``, or the rows of ``shard`` in it; returns whether ``loaded`` was borrowed instead.

        Args:
            may_borrow: Whether ``loaded`` stays as it is until the layer is packed.
        Raises:
            ModelError: The shapes differ; names both.
        """
        target = self._rows(parameter.data, shard)
        if target.shape != loaded.shape:
            raise ModelError(f"has shape {list(loaded.shape)}, the config says {list(target.shape)}")
        borrows = may_borrow and self.is_packed and loaded.dim() == 2 and loaded.dtype == target.dtype
        if borrows:
            self._borrowed[shard] = loaded
        else:
            target.copy_(loaded)
        return borrows

    def _rows(self, data: Tensor, shard: str | None) -> Tensor:
        """The rows of ``shard``, None: all."""
        assert shard is None, "nothing is merged into this layer"
        return data


class Norm(WeightedLayer):
    """Root mean square norm, or layer norm, as the config says; with a residual it adds first, in place."""

    def __init__(self, size: int, config: NormConfig, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        assert config.kind == "layer" or not config.has_bias, "root mean square norms have no bias"
        assert config.kind == "rms" or not config.offset, "layer norms have no offset"
        self.weight = _parameter(size, dtype=dtype)
        self.bias = _parameter(size, dtype=dtype) if config.has_bias else None
        self.offset = config.offset
        self._kind = config.kind
        self._eps = eps

    @property
    def factors(self) -> Tensor:
        """What normed rows are multiplied by, [size] float32."""
        return self.weight.float() + self.offset

    def forward(self, x: Tensor) -> Tensor:
        if self._kind == "layer":
            return layer_norm(x, x.shape[-1:], self.weight, self.bias, self._eps)
        if self.offset:
            return rms_norm_ref(x, self.factors, eps=self._eps)
        return rms_norm(x, self.weight, eps=self._eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Norm of the sum, which ``residual`` becomes."""
        if self._kind == "rms" and not self.offset:
            return add_rms_norm(x, residual, self.weight, eps=self._eps)
        normed: Tensor = self(residual.add_(x))
        return normed


class Linear(WeightedLayer):
    """[num_tokens, in_size] -> [num_tokens, out_size]."""

    is_packed = True

    def __init__(self, in_size: int, out_size: int, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = _parameter(out_size, in_size, dtype=dtype)
        self.bias = _parameter(out_size, dtype=dtype) if bias else None
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is None:
            return linear(x, self.weight, self.bias)
        return packed_linear(x, self._packed, self.bias)

    def pack(self, *, keep_weight: bool = False) -> None:
        """Bring the weight into the form that is multiplied fastest, and free the other; does nothing without one."""
        self._packed = pack_weight(self.weight.data)
        if self._packed is not None and not keep_weight:
            self.free()

    def pieces(self) -> list[Tensor]:
        """The weight from its first row to its last, in the pieces that it lies in."""
        weight, borrowed = self.weight.data, self._borrowed
        if not borrowed:
            return [weight]
        return [
            borrowed[shard] if shard in borrowed else self._rows(weight, shard)
            for shard in self.shards or (None,)
        ]

    @property
    def num_borrowed_bytes(self) -> int:
        """Bytes of its weight that were not copied."""
        return sum(piece.nbytes for piece in self._borrowed.values())

    def free(self) -> None:
        """Give the weight's memory back, or what was borrowed; it lives on packed."""
        self._borrowed.clear()
        self.weight.data = self.weight.new_empty(0)


class ColumnParallelLinear(Linear):
    """Output features are what ranks would share out."""


class RowParallelLinear(Linear):
    """Input features are what ranks would share out; their outputs are summed."""


class MergedColumnParallelLinear(ColumnParallelLinear):
    """Several projections of one input in one matrix, such as gate_proj and up_proj."""

    def __init__(self, in_size: int, sizes: dict[str, int], *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__(in_size, sum(sizes.values()), bias=bias, dtype=dtype)
        self.shards = tuple(sizes)
        self._sizes = sizes

    def _rows(self, data: Tensor, shard: str | None) -> Tensor:
        if shard is None:
            return data
        start = sum(self._sizes[name] for name in self.shards[: self.shards.index(shard)])
        return data[start : start + self._sizes[shard]]


class QKVParallelLinear(MergedColumnParallelLinear):
    """q_proj, k_proj and v_proj in one matrix, shared out by heads."""

    def __init__(
        self,
        hidden_size: int,
        head_dim: int,
        num_heads: int,
        num_kv_heads: int,
        *,
        bias: bool,
        dtype: torch.dtype,
    ) -> None:
        kv_size = num_kv_heads * head_dim
        sizes = {"q_proj": num_heads * head_dim, "k_proj": kv_size, "v_proj": kv_size}
        super().__init__(hidden_size, sizes, bias=bias, dtype=dtype)


class VocabParallelEmbedding(WeightedLayer):
    """Token ids to vectors; the vocabulary is what ranks would share out."""

    def __init__(self, vocab_size: int, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = _parameter(vocab_size, hidden_size, dtype=dtype)

    def forward(self, token_ids: Tensor) -> Tensor:
        return embedding(token_ids, self.weight)


class ParallelLMHead(ColumnParallelLinear):
    """Hidden states to logits."""

    def __init__(self, hidden_size: int, vocab_size: int, dtype: torch.dtype) -> None:
        super().__init__(hidden_size, vocab_size, bias=False, dtype=dtype)

    def tie(self, embed_tokens: VocabParallelEmbedding) -> None:
        """Share the matrix of the embedding."""
        self.weight = embed_tokens.weight
        self._borrowed = embed_tokens._borrowed  # noqa: SLF001 # of the same matrix
        embed_tokens.is_packed = True


def _parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
