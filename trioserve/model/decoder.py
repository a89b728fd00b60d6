"""The one decoder of all families: embedding, layers of attention and gated MLP, norm, head."""

from collections.abc import Callable, Iterable
from typing import Final

import torch
from torch import Tensor, nn

from trioserve._speedups.exchange import Exchange
from trioserve.kernels.activation import activation_mul
from trioserve.kernels.attention import paged_attention
from trioserve.kernels.rope import apply_rope
from trioserve.kernels.store_kv import store_kv
from trioserve.model.batch import CacheLayout, ForwardBatch, LayerCache
from trioserve.model.config import DecoderConfig
from trioserve.model.layers import (
    Linear,
    MergedColumnParallelLinear,
    ParallelLMHead,
    QKVParallelLinear,
    RMSNorm,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from trioserve.model.native import (
    Crew,
    NativeDecoder,
    NativeLayer,
    Quantization,
    obstacle,
    refuse_quantization,
)
from trioserve.model.parts import WHOLE, Part
from trioserve.model.progress import Progress, unseen
from trioserve.model.rope import rope_table

_PACKED_AT_ONCE_BYTES: Final = 1 << 30
"""Of mapped weights, about: the interpreter is free for other things meanwhile, and progress is told after each."""


class Attention(nn.Module):
    """Grouped-query attention with rotary positions over the paged cache."""

    def __init__(self, config: DecoderConfig, layer: int, dtype: torch.dtype, part: Part) -> None:
        super().__init__()
        self._config = config
        self._sliding_window = config.sliding_windows[layer]
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            config.head_dim,
            config.num_heads,
            config.num_kv_heads,
            bias=config.qkv_bias,
            dtype=dtype,
            part=part,
        )
        self.o_proj = RowParallelLinear(
            config.num_heads * config.head_dim,
            config.hidden_size,
            bias=config.o_bias,
            dtype=dtype,
            part=part,
        )
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype) if config.qk_norm else None

    def forward(self, x: Tensor, batch: ForwardBatch, cache: LayerCache, table: Tensor) -> Tensor:
        """[num_tokens, hidden_size] -> the same; writes the tokens' KV on the way."""
        heads = self.qkv_proj(x).view(x.shape[0], -1, self._config.head_dim)
        q, k, v = heads.split(self.qkv_proj.num_heads, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        apply_rope(q, k, batch.positions, table, interleaved=self._config.rope.style == "interleaved")
        store_kv(k, v, cache.k, cache.v, batch.slot_mapping)
        seen = paged_attention(
            q,
            cache.k,
            cache.v,
            batch.cu_seqlens_q,
            batch.seq_lens,
            batch.block_tables,
            scale=self._config.head_dim**-0.5,
            sliding_window=self._sliding_window,
        )
        out: Tensor = self.o_proj(seen.flatten(1))
        return out


class MLP(nn.Module):
    """Gated: down(activation(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, part: Part) -> None:
        super().__init__()
        self._activation = config.activation
        sizes = {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size}
        self.gate_up_proj = MergedColumnParallelLinear(
            config.hidden_size, sizes, bias=config.mlp_bias, dtype=dtype, part=part
        )
        self.down_proj = RowParallelLinear(
            config.intermediate_size, config.hidden_size, bias=config.mlp_bias, dtype=dtype, part=part
        )

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden_size] -> the same."""
        out: Tensor = self.down_proj(activation_mul(self.gate_up_proj(x), self._activation))
        return out


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm, each added to the residual."""

    def __init__(self, config: DecoderConfig, layer: int, dtype: torch.dtype, part: Part) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer, dtype, part)
        self.mlp = MLP(config, dtype, part)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)

    def forward(
        self, x: Tensor | None, residual: Tensor, batch: ForwardBatch, cache: LayerCache, table: Tensor
    ) -> Tensor:
        """What is still to be added to ``residual``, which this layer updates in place.

        Shapes:
            x: [num_tokens, hidden_size], what the layer before left to be added; None for the first
            residual, result: [num_tokens, hidden_size]
        """
        normed = self.input_layernorm(residual) if x is None else self.input_layernorm.add(x, residual)
        attended = self.self_attn(normed, batch, cache, table)
        out: Tensor = self.mlp(self.post_attention_layernorm.add(attended, residual))
        return out

    def as_native(self) -> NativeLayer:
        """Its weights, for the native decoder."""
        attention = self.self_attn
        return NativeLayer(
            qkv_proj=attention.qkv_proj,
            o_proj=attention.o_proj,
            gate_up_proj=self.mlp.gate_up_proj,
            down_proj=self.mlp.down_proj,
            input_layernorm=self.input_layernorm,
            post_attention_layernorm=self.post_attention_layernorm,
            q_norm=attention.q_norm,
            k_norm=attention.k_norm,
        )


class DecoderModel(nn.Module):
    """Embedding, layers and the last norm; the name ``model`` of the checkpoints."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, num_positions: int, part: Part) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size, dtype, part)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, dtype, part) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.rope_table = rope_table(config.rope, config.head_dim, num_positions)

    def forward(self, batch: ForwardBatch, caches: list[LayerCache]) -> Tensor:
        """Hidden states of the rows that sample, [num_samples, hidden_size]."""
        residual: Tensor = self.embed_tokens(batch.token_ids)
        x: Tensor | None = None
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, residual, batch, cache, self.rope_table)
        assert x is not None, "a decoder has at least one layer"
        rows = batch.sample_rows
        out: Tensor = self.norm.add(x.index_select(0, rows), residual.index_select(0, rows))
        return out


class Decoder(nn.Module):
    """A causal language model whose family is data; parameters bear the checkpoints' names, merged ones aside."""

    def __init__(
        self, config: DecoderConfig, dtype: torch.dtype, num_positions: int, part: Part = WHOLE
    ) -> None:
        """Allocate ``part`` of it, unfilled; sequences may reach ``num_positions`` tokens."""
        super().__init__()
        self.config = config
        """Of the whole model."""
        self.part = part
        self.dtype = dtype
        self._native: NativeDecoder | None = None
        self.model = DecoderModel(config, dtype, num_positions, part)
        self.lm_head = ParallelLMHead(config.hidden_size, config.vocab_size, dtype, part)
        if config.tie_word_embeddings:
            self.lm_head.tie(self.model.embed_tokens)

    def pack(
        self,
        crew: Crew | None = None,
        quantization: Quantization = "none",
        progress: Progress = unseen,
        *,
        layout: CacheLayout | None = None,
        exchange: Exchange | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> str:
        """Bring the weights into the form in which they are multiplied; they can be neither loaded nor read after.

        Args:
            crew: Who computes the steps where the decoder is one that can be run natively; None: torch's layers.
            quantization: What the weights of native layers are brought to.
            progress: Told of what was borrowed, as it is packed.
            layout: What the KV cache will hold; None: numbers of the weights' type, as torch's layers need them.
            exchange: Where native layers meet those of the other ranks; None: there are no others.
            meanwhile: Called once, just before weights are packed, to start what needs the interpreter's lock for long.
        Returns:
            What computes the steps from now on, such as "native avx512, 2 threads"; or torch's layers, and why.
        Raises:
            ModelError: Weights are to be quantized and the decoder cannot be run natively.
        """
        refuse_quantization(self.config, self.dtype, quantization)
        assert crew is not None or quantization == "none", "torch's layers keep the weights as they are"
        why = "as told" if crew is None else obstacle(self.config, self.dtype)
        if crew is not None and why is None:
            packed = NativeDecoder(
                self.config,
                crew,
                embeddings=None if self.config.tie_word_embeddings else self.model.embed_tokens.weight.data,
                rope_table=self.model.rope_table,
                quantization=quantization,
                layout=layout or CacheLayout("bfloat16", self.config.head_dim),
                part=self.part,
                exchange=exchange,
            )
            self._fill(packed, _Added(packed, self.modules(), progress, meanwhile))
            self._native = packed
            return self._native.description
        meanwhile()
        for layer in self.modules():
            if isinstance(layer, Linear):
                layer.pack(keep_weight=layer is self.lm_head and self.config.tie_word_embeddings)
        shared = "" if self.part.tp_size == 1 else f" in each of {self.part.tp_size} ranks over Gloo"
        return f"torch layers{shared}: {why}"

    @property
    def packed_bytes(self) -> int | None:
        """Memory of the weights of native layers; None without such."""
        return None if self._native is None else self._native.num_bytes

    def _fill(self, packed: NativeDecoder, added: "_Added") -> None:
        """Make ``packed`` this decoder; what has memory of its own is freed before the next is packed."""
        model = self.model
        for number, layer in enumerate(model.layers):
            assert isinstance(layer, DecoderLayer)
            packed.add_layer(number, native := layer.as_native())
            added.extend(native.products.values())
        packed.add_head(model.norm, self.lm_head)
        added.extend([self.lm_head])
        added.pack()

    def forward(self, batch: ForwardBatch, caches: list[LayerCache]) -> Tensor:
        """Run a step: write its KV, return the hidden states of the rows that sample.

        Shapes:
            result: [num_samples, hidden_size]
        """
        if self._native is not None:
            return self._native.forward(batch, caches)
        hidden: Tensor = self.model(batch, caches)
        return hidden

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[num_samples, hidden_size] -> [num_samples, vocab_size], in the model's dtype or float32."""
        if self._native is not None:
            return self._native.compute_logits(hidden)
        logits: Tensor = self.lm_head(hidden)
        return logits


class _Added:
    """Matrices that were added to a native decoder: packed many at a time, and freed then."""

    def __init__(
        self,
        packed: NativeDecoder,
        modules: Iterable[nn.Module],
        progress: Progress,
        meanwhile: Callable[[], None],
    ) -> None:
        self._packed = packed
        self._progress = progress
        self._total = sum(module.num_borrowed_bytes for module in modules if isinstance(module, Linear))
        self._meanwhile: Callable[[], None] | None = meanwhile
        self._num_packed = 0
        self._waiting: list[Linear] = []

    def extend(self, linears: Iterable[Linear]) -> None:
        """Some more; those that are borrowed take no memory while they wait."""
        self._waiting += linears
        borrowed = sum(linear.num_borrowed_bytes for linear in self._waiting)
        if not borrowed or borrowed >= _PACKED_AT_ONCE_BYTES:
            self.pack()

    def pack(self) -> None:
        """Pack those that wait."""
        if self._meanwhile is not None:
            self._meanwhile()
            self._meanwhile = None
        self._packed.pack()
        for linear in self._waiting:
            self._num_packed += linear.num_borrowed_bytes
            linear.free()
        self._waiting.clear()
        if self._total:
            self._progress(self._num_packed, self._total)
