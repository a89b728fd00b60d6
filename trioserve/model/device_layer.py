"""A layer of the decoder on a GPU, of the parts that ``device_maker`` gives it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from trioserve.kernels.activation import activation_mul_gpu
from trioserve.kernels.gpu import Gpu
from trioserve.kernels.layer_norm import add_layer_norm_gpu
from trioserve.kernels.paged_attention_gpu import paged_attention_gpu
from trioserve.kernels.rms_norm import add_normed_gpu, add_rms_norm_gpu, rms_norm_gpu
from trioserve.kernels.rope_store_kv import rope_store_kv_gpu
from trioserve.model.batch import DeviceBatch, DeviceCache
from trioserve.model.config import DecoderConfig
from trioserve.model.device_products import Product, summed
from trioserve.model.layers import shared_rms_norm
from trioserve.model.ranks import Sums


@dataclass(frozen=True, slots=True)
class DeviceNorm:
    """A norm of rows or of heads."""

    gpu: Gpu
    weight: Tensor
    bias: Tensor | None
    offset: float
    eps: float
    is_rms: bool
    sums: Sums | None = None
    """Where every rank has a part of a row; None: all of it is here."""
    count: int = 0
    """Numbers that all ranks have together, then."""

    def __call__(self, x: Tensor) -> Tensor:
        if self.sums is not None:
            factors = self.weight.float() + self.offset
            return shared_rms_norm(x, factors, self.sums, count=self.count, eps=self.eps)
        if self.is_rms:
            return rms_norm_gpu(self.gpu, x, self.weight, eps=self.eps, offset=self.offset)
        return layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

    def add(self, x: Tensor, residual: Tensor, x_scale: float) -> Tensor:
        """Norm of ``residual``, once ``x_scale * x`` is added to it in place."""
        if not self.is_rms:
            return add_layer_norm_gpu(
                self.gpu, x, residual, self.weight, self.bias, eps=self.eps, x_scale=x_scale
            )
        return add_rms_norm_gpu(
            self.gpu, x, residual, self.weight, eps=self.eps, offset=self.offset, x_scale=x_scale
        )


@dataclass(frozen=True, slots=True)
class Left:
    """What attention or MLP leaves to be added to the residual, where the next norm is: one pass for all of it."""

    x: Tensor
    """[num_tokens, hidden_size]"""
    norm: DeviceNorm | None
    """Of ``x``, before it is added."""
    scale: float
    """Of that."""

    def enter(self, norm: DeviceNorm | None, residual: Tensor) -> Tensor:
        """``residual``, once this is added to it in place, as ``norm`` leaves it."""
        before = self.norm
        if before is None:
            return (
                residual.add_(self.x, alpha=self.scale)
                if norm is None
                else norm.add(self.x, residual, self.scale)
            )
        return add_normed_gpu(
            before.gpu,
            *(self.x, residual, before.weight, None if norm is None else norm.weight),
            eps=before.eps,
            offset=before.offset,
            x_scale=self.scale,
        )


@dataclass(frozen=True, slots=True)
class DeviceLayer:
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
    before_attention: DeviceNorm | None
    after_attention: DeviceNorm | None
    before_mlp: DeviceNorm | None
    after_mlp: DeviceNorm | None
    q_norm: DeviceNorm | None
    k_norm: DeviceNorm | None
    sums: Sums | None
    """Of what attention and MLP add side by side: once for both, and not in ``o_proj`` and ``down_proj``."""

    def run(
        self,
        left: Left | None,
        residual: Tensor,
        batch: DeviceBatch,
        cache: DeviceCache,
        rows: Tensor | None = None,
    ) -> tuple[Left, Tensor]:
        """What is still to be added to the residual, and the residual, which is updated in place.

        Args:
            left: By the layer before; None for the first.
            rows: Of the tokens that are wanted, [num_rows] int64: behind attention the others are left out. None: all.
        """
        scale, norm = self.config.scales.residual, self.before_attention
        if left is not None:
            normed = left.enter(norm, residual)
        else:
            normed = residual if norm is None else norm(residual)
        seen = self._attention(normed, batch, cache)
        if rows is not None:
            seen, residual = seen.index_select(0, rows), residual.index_select(0, rows)
        attended = self.o_proj(seen)
        if self.config.is_parallel:
            both = attended.add_(self._mlp(normed if rows is None else normed.index_select(0, rows)))
            return Left(both if self.sums is None else summed(both, self.sums), None, scale), residual
        entering = Left(attended, self.after_attention, scale).enter(self.before_mlp, residual)
        return Left(self._mlp(entering), self.after_mlp, scale), residual

    def _mlp(self, x: Tensor) -> Tensor:
        return self.down_proj(activation_mul_gpu(self.gpu, self.gate_up_proj(x), self.config.activation))

    def _attention(self, x: Tensor, batch: DeviceBatch, cache: DeviceCache) -> Tensor:
        """[num_tokens, hidden_size] -> [num_tokens, num_heads * head_dim]"""
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
        return seen.flatten(1)
