"""Layers that hold weights, by the names that tensor parallelism gives them.

Each knows how a checkpoint's tensors fill its parameters: ``weight_loader(parameter, loaded, shard)`` is the one door,
and ``cuts`` says which part of them is this rank's. Sizes are those of the whole model, parameters are the part. What
will be packed need not be copied first: it may be borrowed, which is to say read where it lies in the mapped file.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, layer_norm, linear

from trioserve.errors import ModelError
from trioserve.kernels.linear import pack_weight, packed_linear
from trioserve.kernels.rms_norm import add_rms_norm, rms_norm
from trioserve.model.families import NormConfig
from trioserve.model.parts import WHOLE, Cut, Part
from trioserve.model.quantized_weights import QuantizedWeight
from trioserve.model.ranks import Sums


class WeightedLayer(nn.Module):
    """A layer whose parameters a checkpoint fills."""

    shards: tuple[str, ...] = ()
    """Checkpoint modules that are merged into this one, in the order of their rows; empty: it is its own."""
    is_packed = False
    """Whether its matrix is packed when all is loaded, and the rows of it are not needed after."""

    def __init__(self, cuts: Mapping[str | None, Cut] | None = None) -> None:
        """``cuts``: what of a checkpoint's tensors is here, by shard, the key None where it is its own; None: all."""
        super().__init__()
        self.cuts = dict(cuts or {})
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
        shape = self.full_shape(parameter.data, shard)
        if shape != list(loaded.shape):
            raise ModelError(f"has shape {list(loaded.shape)}, the config says {shape}")
        if shard is None and self.shards:
            sizes = [self.cuts[each].size for each in self.shards]
            parts = zip(self.shards, torch.split(loaded, sizes), strict=True)
            borrowed = [
                self.weight_loader(parameter, rows, each, may_borrow=may_borrow) for each, rows in parts
            ]
            return all(borrowed)
        target = self._rows(parameter.data, shard)
        part = self.cuts[shard].of(loaded) if shard in self.cuts else loaded
        borrows = may_borrow and self.is_packed and part.dim() == 2 and part.dtype == target.dtype
        if borrows:
            self._borrowed[shard] = part
        else:
            target.copy_(part)
        return borrows

    def full_shape(self, data: Tensor, shard: str | None) -> list[int]:
        """What a checkpoint holds for ``shard`` of a parameter, None: for all of it; ``data`` is this rank's part."""
        if shard is None and self.shards:
            return [sum(self.cuts[each].size for each in self.shards), *data.shape[1:]]
        rows = self._rows(data, shard)
        return self.cuts[shard].full_shape(rows) if shard in self.cuts else list(rows.shape)

    def _rows(self, data: Tensor, shard: str | None) -> Tensor:
        """The rows of ``shard`` that are here, None: all."""
        if shard is None:
            return data
        lengths = {each: self.cuts[each].length for each in self.shards}
        start = sum(lengths[each] for each in self.shards[: self.shards.index(shard)])
        return data[start : start + lengths[shard]]


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
        return rms_norm(x, self.weight, eps=self._eps, offset=self.offset)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Norm of the sum, which ``residual`` becomes."""
        if self._kind == "rms":
            return add_rms_norm(x, residual, self.weight, eps=self._eps, offset=self.offset)
        normed: Tensor = self(residual.add_(x))
        return normed


class SharedNorm(Norm):
    """The root mean square norm of all heads together, of which each rank has some."""

    def __init__(
        self, num_heads: int, head_dim: int, config: NormConfig, eps: float, dtype: torch.dtype, part: Part
    ) -> None:
        assert config.kind == "rms", "layer norms of all heads are not shared out"
        assert part.sums is not None, "there are no other ranks"
        cut = part.heads(num_heads, head_dim)
        super().__init__(cut.length, config, eps, dtype)
        self.cuts = {None: cut}
        self.sums = part.sums
        self.count = cut.length * part.tp_size
        """Numbers that all ranks have together; of few KV heads several have the same."""

    def forward(self, x: Tensor) -> Tensor:
        return shared_rms_norm(x, self.factors, self.sums, count=self.count, eps=self._eps)


def shared_rms_norm(x: Tensor, factors: Tensor, sums: Sums, *, count: int, eps: float) -> Tensor:
    """``rms_norm`` of rows of which every rank has a part.

    Shapes:
        x, result: [num_tokens, size], this rank's
        factors: [size] float32
    """
    wide = x.float()
    total = sums.sum(wide.square().sum(-1, keepdim=True))
    return (wide * (total / count + eps).rsqrt() * factors).to(x.dtype)


class Linear(WeightedLayer):
    """[num_tokens, in_size] -> [num_tokens, out_size], which are the sizes of this rank's part."""

    is_packed = True

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        cuts: Mapping[str | None, Cut] | None = None,
    ) -> None:
        super().__init__(cuts)
        self.weight = _parameter(out_size, in_size, dtype=dtype)
        self.bias = _parameter(out_size, dtype=dtype) if bias else None
        self.quantized: QuantizedWeight | None = None
        """What there is instead of ``weight`` where the checkpoint keeps its matrix in few bits."""
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self._product(x, self.bias)

    def take(self, quantized: QuantizedWeight) -> None:
        """Have such a matrix, which is of the same shape, instead of the weight."""
        assert quantized.shape == tuple(self.weight.shape), "it is another part of the matrix"
        self.free()
        self.quantized = quantized

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self._packed is None:
            assert self.quantized is None, "what is quantized is packed first"
            return linear(x, self.weight, bias)
        return packed_linear(x, self._packed, bias)

    def pack(self, *, keep_weight: bool = False) -> None:
        """Bring the weight into the form that is multiplied fastest, and free the other; does nothing without one. What
        is quantized becomes a weight."""
        if self.quantized is not None:
            self.weight.data = self.quantized.dense(self.weight.dtype)
            self.quantized = None
        self._packed = pack_weight(self.weight.data)
        if self._packed is not None and not keep_weight:
            self.free()

    def pieces(self) -> list[Tensor]:
        """The weight from its first row to its last, in the pieces that it lies in."""
        weight, borrowed = self.weight.data, self._borrowed
        if self.quantized is not None:
            return [self.quantized.dense(weight.dtype)]
        if not borrowed:
            return [weight]
        return [
            borrowed[shard] if shard in borrowed else self._rows(weight, shard)
            for shard in self.shards or (None,)
        ]

    @property
    def num_borrowed_bytes(self) -> int:
        """Bytes of its weight that were not copied."""
        if self.quantized is not None:
            return self.quantized.num_bytes
        return sum(piece.nbytes for piece in self._borrowed.values())

    def free(self) -> None:
        """Give the weight's memory back, or what was borrowed; it lives on packed."""
        self._borrowed.clear()
        self.quantized = None
        self.weight.data = self.weight.new_empty(0)


class ColumnParallelLinear(Linear):
    """Output features are shared out: each rank computes those of its cuts, one matrix below the other."""

    def __init__(
        self, in_size: int, cuts: Mapping[str | None, Cut], *, bias: bool, dtype: torch.dtype
    ) -> None:
        out_size = sum(cut.length for cut in cuts.values())
        super().__init__(in_size, out_size, bias=bias, dtype=dtype, cuts=cuts)


class RowParallelLinear(Linear):
    """Input features are shared out; the ranks' outputs are summed, and the bias is added once."""

    def __init__(
        self, in_size: int, out_size: int, *, bias: bool, dtype: torch.dtype, part: Part = WHOLE
    ) -> None:
        cut = part.even(in_size, dim=1)
        super().__init__(cut.length, out_size, bias=bias, dtype=dtype, cuts={None: cut})
        self._sums = part.sums

    def forward(self, x: Tensor) -> Tensor:
        if self._sums is None:
            return self._product(x, self.bias)
        total = self._sums.sum(self._product(x, None))
        return total if self.bias is None else total + self.bias


class MergedColumnParallelLinear(ColumnParallelLinear):
    """Several projections of one input in one matrix, such as gate_proj and up_proj; each is shared out evenly."""

    def __init__(
        self, in_size: int, sizes: dict[str, int], *, bias: bool, dtype: torch.dtype, part: Part = WHOLE
    ) -> None:
        cuts: dict[str | None, Cut] = {name: part.even(size, dim=0) for name, size in sizes.items()}
        super().__init__(in_size, cuts, bias=bias, dtype=dtype)
        self.shards = tuple(sizes)


class QKVParallelLinear(ColumnParallelLinear):
    """q_proj, k_proj and v_proj in one matrix, shared out by heads; of few KV heads several ranks hold the same."""

    shards = ("q_proj", "k_proj", "v_proj")

    def __init__(
        self,
        hidden_size: int,
        head_dim: int,
        num_heads: int,
        num_kv_heads: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        part: Part = WHOLE,
    ) -> None:
        counts = (num_heads, num_kv_heads, num_kv_heads)
        cuts: dict[str | None, Cut] = {
            name: part.heads(count, head_dim) for name, count in zip(self.shards, counts, strict=True)
        }
        super().__init__(hidden_size, cuts, bias=bias, dtype=dtype)
        self.num_heads = [cut.length // head_dim for cut in cuts.values()]
        """Of q, k and v, on this rank."""


class VocabParallelEmbedding(WeightedLayer):
    """Token ids to vectors; the vocabulary is shared out, and who has a token gives its vector to the others."""

    def __init__(self, vocab_size: int, hidden_size: int, dtype: torch.dtype, part: Part = WHOLE) -> None:
        cut = part.tokens(vocab_size)
        super().__init__({None: cut})
        self.weight = _parameter(cut.length, hidden_size, dtype=dtype)
        self._first, self._end, self._sums = cut.start, cut.end, part.sums

    def forward(self, token_ids: Tensor) -> Tensor:
        if self._sums is None:
            return embedding(token_ids, self.weight)
        is_here = (token_ids >= self._first) & (token_ids < self._end)
        vectors = embedding((token_ids - self._first).where(is_here, 0), self.weight)
        return self._sums.sum(vectors.where(is_here[:, None], 0))


class ParallelLMHead(ColumnParallelLinear):
    """Hidden states to logits; the vocabulary is shared out, and every rank gets all logits."""

    def __init__(self, hidden_size: int, vocab_size: int, dtype: torch.dtype, part: Part = WHOLE) -> None:
        super().__init__(hidden_size, {None: part.tokens(vocab_size)}, bias=False, dtype=dtype)
        self._sums = part.sums
        self.sizes = [
            Part(tp_rank, part.tp_size).tokens(vocab_size).length for tp_rank in range(part.tp_size)
        ]
        """Of the ranks' parts, in tokens."""

    def forward(self, x: Tensor) -> Tensor:
        columns = self._product(x, self.bias)
        return columns if self._sums is None else self._sums.join(columns, self.sizes)

    def tie(self, embed_tokens: VocabParallelEmbedding) -> None:
        """Share the matrix of the embedding."""
        self.weight = embed_tokens.weight
        self._borrowed = embed_tokens._borrowed  # noqa: SLF001 # of the same matrix
        embed_tokens.is_packed = True


def _parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
