"""The decoder of all families on a GPU: the modules of ``Decoder`` by kernels, and dense products by torch.

Nothing here waits for the device or looks at what lies in a tensor: all shapes follow from those of the batch, so that
a step can be captured in a graph and replayed with other contents.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import embedding, layer_norm

from trioserve.errors import KernelError
from trioserve.kernels.activation import activation_mul_gpu
from trioserve.kernels.device import Device
from trioserve.kernels.gpu import Gpu
from trioserve.kernels.paged_attention_gpu import HEAD_DIMS, paged_attention_gpu
from trioserve.kernels.rms_norm import add_rms_norm_gpu, rms_norm_gpu
from trioserve.kernels.rope_store_kv import can_turn, rope_store_kv_gpu
from trioserve.model.batch import DeviceBatch, DeviceCache
from trioserve.model.config import DecoderConfig
from trioserve.model.decoder import Decoder, DecoderLayer
from trioserve.model.device_products import Dense, Product, Summed
from trioserve.model.device_weights import Carrier, carried_bytes
from trioserve.model.layers import Linear, Norm
from trioserve.model.progress import Progress, unseen

FP8: Final = torch.float8_e4m3fn


def device_obstacle(config: DecoderConfig, dtype: torch.dtype) -> str | None:
    """Why such a decoder cannot be run on a GPU; None where it can."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"weights are {str(dtype).removeprefix('torch.')}, neither bfloat16 nor float16"
    if config.head_dim not in HEAD_DIMS:
        return f"head_dim {config.head_dim} is none of {', '.join(map(str, HEAD_DIMS))}"
    if config.qk_norm and config.norm.kind != "rms":
        return "heads are normalised by layer norms"
    for layer in range(config.num_hidden_layers):
        rope = config.rope_of(layer)
        num_pairs = 0 if rope is None else rope.num_pairs(config.head_dim)
        if not can_turn(config.head_dim, num_pairs):
            return f"{num_pairs} pairs of head_dim {config.head_dim} are rotated, no multiple of a vector"
    return None


class DeviceDecoder:
    """A decoder whose weights are on a GPU; runs one step at a time on the current stream."""

    def __init__(
        self, model: Decoder, device: Device, *, batch_invariant: bool = False, progress: Progress = unseen
    ) -> None:
        """Carry the weights of ``model`` over; they can be neither loaded nor read after, and take no memory.

        Args:
            batch_invariant: Whether a token's result is the same to the bit whatever else is in the batch; plans of
                attention must be made for that too.
            progress: Told of what is carried, in bytes.
        Raises:
            KernelError: There is no product that does not depend on the batch.
            torch.OutOfMemoryError: The device has not enough memory.
            RuntimeError: The host has none to pin.
        """
        why = device_obstacle(model.config, model.dtype)
        assert why is None, why
        if batch_invariant:
            raise KernelError("batch_invariant cannot be obeyed: there is no such product yet; leave it out")
        self._dtype = model.dtype
        self._config = model.part.shape(model.config)
        self._part = model.part
        self._vocab_sizes = model.lm_head.sizes
        self._device = device
        made = _Made(model, device, progress)
        self._layers = made.layers()
        self._norm = made.norm(model.model.norm)
        self._lm_head, self._embeddings = made.head_and_embeddings()
        self._num_bytes = made.finish()
        scales = self._config.scales
        self._embedding_scale = float(torch.tensor(scales.embedding).to(model.dtype))

    @property
    def num_bytes(self) -> int:
        """Memory of all weights and tables."""
        return self._num_bytes

    def new_caches(self, num_blocks: int, block_size: int, kv_dtype: torch.dtype) -> list[DeviceCache]:
        """A cache of each layer, unfilled; ``kv_dtype`` is the model's type or float8_e4m3fn.

        Raises:
            torch.OutOfMemoryError: The memory is not there.
        """
        assert kv_dtype in (self._dtype, FP8), f"a cache of {kv_dtype} does not go with {self._dtype}"
        shape = (num_blocks, self._config.num_kv_heads, block_size, self._config.head_dim)
        where = self._device.torch_device

        def cache() -> Tensor:
            return torch.empty(shape, dtype=kv_dtype, device=where)

        def scales() -> Tensor | None:
            return torch.empty(shape[:3], dtype=torch.float32, device=where) if kv_dtype == FP8 else None

        return [DeviceCache(cache(), cache(), scales(), scales()) for _ in self._layers]

    def __call__(self, batch: DeviceBatch, caches: list[DeviceCache]) -> Tensor:
        """Start a step: write its KV, return the hidden states of the rows that sample, [num_samples, hidden_size]."""
        residual = self._embedded(batch.token_ids)
        x: Tensor | None = None
        for layer, cache in zip(self._layers, caches, strict=True):
            x = layer.run(x, residual, batch, cache)
        assert x is not None, "a decoder has at least one layer"
        rows = batch.sample_rows
        x, residual = x.index_select(0, rows), residual.index_select(0, rows)
        return self._norm.add(x, residual, self._config.scales.residual)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[num_samples, hidden_size] -> [num_samples, vocab_size], in the model's type."""
        scales, sums = self._config.scales, self._part.sums
        logits = self._lm_head(hidden)
        if sums is not None:
            logits = sums.join(logits, self._vocab_sizes)
        if scales.logits_bound is not None:
            return logits.mul_(scales.logits / scales.logits_bound).tanh_().mul_(scales.logits_bound)
        return logits if scales.logits == 1.0 else logits.mul_(scales.logits)

    def _embedded(self, token_ids: Tensor) -> Tensor:
        """The residual stream as the first layer finds it, [num_tokens, hidden_size]."""
        sums = self._part.sums
        if sums is None:
            vectors = embedding(token_ids, self._embeddings)
        else:
            cut = self._part.tokens(self._config.vocab_size)
            is_here = (token_ids >= cut.start) & (token_ids < cut.end)
            vectors = embedding((token_ids - cut.start).where(is_here, 0), self._embeddings)
            vectors = sums.sum(vectors.where(is_here[:, None], 0))
        return vectors if self._embedding_scale == 1.0 else vectors.mul_(self._embedding_scale)


@dataclass(frozen=True, slots=True)
class _Norm:
    """A norm of rows or of heads, by ``rms_norm.cu``; layer norms by torch."""

    gpu: Gpu
    weight: Tensor
    bias: Tensor | None
    offset: float
    eps: float
    is_rms: bool

    def __call__(self, x: Tensor) -> Tensor:
        if self.is_rms:
            return rms_norm_gpu(self.gpu, x, self.weight, eps=self.eps, offset=self.offset)
        return layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

    def add(self, x: Tensor, residual: Tensor, x_scale: float) -> Tensor:
        """Norm of ``residual``, once ``x_scale * x`` is added to it in place."""
        if not self.is_rms:
            return self(residual.add_(x, alpha=x_scale))
        return add_rms_norm_gpu(
            self.gpu, x, residual, self.weight, eps=self.eps, offset=self.offset, x_scale=x_scale
        )


@dataclass(frozen=True, slots=True)
class _Layer:
    """What ``DecoderLayer`` is on a GPU."""

    gpu: Gpu
    config: DecoderConfig
    """Of this rank's part."""
    sliding_window: int | None
    table: Tensor
    """[num_positions, 2, num_pairs] float32; no pairs: heads are not rotated."""
    is_interleaved: bool
    qkv_proj: Product
    o_proj: Product
    gate_up_proj: Product
    down_proj: Product
    before_attention: _Norm | None
    after_attention: _Norm | None
    before_mlp: _Norm | None
    after_mlp: _Norm | None
    q_norm: _Norm | None
    k_norm: _Norm | None

    @property
    def products(self) -> tuple[Product, ...]:
        """All of them."""
        return self.qkv_proj, self.o_proj, self.gate_up_proj, self.down_proj

    def run(self, x: Tensor | None, residual: Tensor, batch: DeviceBatch, cache: DeviceCache) -> Tensor:
        """What is still to be added to ``residual``, scaled, as ``DecoderLayer`` says."""
        normed = self._entering(self.before_attention, x, residual)
        attended = self._left(self.after_attention, self._attention(normed, batch, cache))
        if self.config.is_parallel:
            return attended.add_(self._left(self.after_mlp, self._mlp(normed)))
        entering = self._entering(self.before_mlp, attended, residual)
        return self._left(self.after_mlp, self._mlp(entering))

    def _entering(self, norm: _Norm | None, x: Tensor | None, residual: Tensor) -> Tensor:
        """The residual, once ``x`` is added to it, as attention or MLP reads it."""
        if norm is not None:
            return norm(residual) if x is None else norm.add(x, residual, self.config.scales.residual)
        return residual if x is None else residual.add_(x, alpha=self.config.scales.residual)

    def _left(self, norm: _Norm | None, x: Tensor) -> Tensor:
        return x if norm is None else norm(x)

    def _mlp(self, x: Tensor) -> Tensor:
        return self.down_proj(activation_mul_gpu(self.gpu, self.gate_up_proj(x), self.config.activation))

    def _attention(self, x: Tensor, batch: DeviceBatch, cache: DeviceCache) -> Tensor:
        config = self.config
        num_heads, num_kv_heads = config.num_heads, config.num_kv_heads
        heads = self.qkv_proj(x).view(len(x), -1, config.head_dim)
        q, k, v = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
        q_norm, k_norm = self.q_norm, self.k_norm
        if q_norm is not None and k_norm is not None and config.norm.heads_together:
            q, k = q_norm(q.flatten(1)).view(q.shape), k_norm(k.flatten(1)).view(k.shape)
            q_norm, k_norm = None, None
        rope_store_kv_gpu(
            self.gpu,
            *(q, k, v, batch.positions, self.table, cache.k, cache.v, batch.slot_mapping),
            q_weight=None if q_norm is None else q_norm.weight,
            k_weight=None if k_norm is None else k_norm.weight,
            k_scales=cache.k_scales,
            v_scales=cache.v_scales,
            interleaved=self.is_interleaved,
            offset=config.norm.offset,
            eps=config.rms_norm_eps,
        )
        seen = paged_attention_gpu(
            self.gpu,
            *(q, cache.k, cache.v, batch.attention),
            k_scales=cache.k_scales,
            v_scales=cache.v_scales,
            scale=config.attention_scale,
            soft_cap=config.scales.attention_bound or 0.0,
            sliding_window=self.sliding_window,
        )
        return self.o_proj(seen.flatten(1))


class _Made:
    """The parts of a decoder as they come to be on a device, those of ``model`` being freed."""

    def __init__(self, model: Decoder, device: Device, progress: Progress) -> None:
        self._model, self._device = model, device
        self._config = model.part.shape(model.config)
        self._tables: dict[int, Tensor] = {}
        """On the device, by the identity of those on the host."""
        self._num_bytes = 0
        tables = {id(table): table.nbytes for table in model.model.rope_tables if table is not None}
        self._carrier = Carrier(device, progress, carried_bytes(model) + sum(tables.values()))

    def layers(self) -> list[_Layer]:
        """All of them, in order."""
        found = []
        for number, layer in enumerate(self._model.model.layers):
            assert isinstance(layer, DecoderLayer)
            found.append(self._layer(number, layer))
        return found

    def _layer(self, number: int, layer: DecoderLayer) -> _Layer:
        config, parts = self._config, layer.as_native()
        rope = config.rope_of(number)
        return _Layer(
            gpu=self._device.gpu,
            config=config,
            sliding_window=config.sliding_windows[number],
            table=self._table(self._model.model.rope_tables[number]),
            is_interleaved=rope is not None and rope.style == "interleaved",
            qkv_proj=self._product(parts.qkv_proj),
            o_proj=self._row_product(parts.o_proj),
            gate_up_proj=self._product(parts.gate_up_proj),
            down_proj=self._row_product(parts.down_proj),
            **{name: None if norm is None else self.norm(norm) for name, norm in parts.norms.items()},
        )

    def norm(self, norm: Norm) -> _Norm:
        """One of them."""
        weight = self._vector(norm.weight.data)
        bias = None if norm.bias is None else self._vector(norm.bias.data)
        config = self._config
        return _Norm(
            self._device.gpu, weight, bias, norm.offset, config.rms_norm_eps, config.norm.kind == "rms"
        )

    def head_and_embeddings(self) -> tuple[Product, Tensor]:
        """The head, and the vectors of tokens, which may be the same matrix."""
        model = self._model
        head = self._dense(model.lm_head, bias=None)
        if model.config.tie_word_embeddings:
            return head, head.weight
        embed_tokens = model.model.embed_tokens
        embeddings = self._carrier.matrix([embed_tokens.weight.data], model.dtype)
        embed_tokens.weight.data = embed_tokens.weight.new_empty(0)
        self._num_bytes += embeddings.nbytes
        return head, embeddings

    def finish(self) -> int:
        """Wait for all of it; returns the bytes that it takes."""
        self._carrier.finish()
        return self._num_bytes

    def _product(self, linear: Linear) -> Product:
        return self._dense(linear, None if linear.bias is None else self._vector(linear.bias.data))

    def _row_product(self, linear: Linear) -> Product:
        sums = self._model.part.sums
        if sums is None:
            return self._product(linear)
        bias = None if linear.bias is None else self._vector(linear.bias.data)
        return Summed(self._dense(linear, None), bias, sums)

    def _dense(self, linear: Linear, bias: Tensor | None) -> Dense:
        weight = self._carrier.matrix(linear.pieces(), self._model.dtype)
        linear.free()
        self._num_bytes += weight.nbytes
        return Dense(weight, bias)

    def _vector(self, numbers: Tensor) -> Tensor:
        vector = self._carrier.vector(numbers, self._model.dtype)
        self._num_bytes += vector.nbytes
        return vector

    def _table(self, table: Tensor | None) -> Tensor:
        """Of rotations; layers that turn alike share one."""
        if id(table) not in self._tables:
            found = torch.empty(1, 2, 0) if table is None else table
            self._tables[id(table)] = self._carrier.vector(found, torch.float32)
            self._num_bytes += found.nbytes
        return self._tables[id(table)]
