"""The one decoder of all families: embedding, layers of attention and gated MLP, norm, head."""

from collections.abc import Callable, Iterable
from typing import Final, cast

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
    Norm,
    ParallelLMHead,
    QKVParallelLinear,
    RowParallelLinear,
    SharedNorm,
    VocabParallelEmbedding,
)
from trioserve.model.native import (
    Crew,
    NativeDecoder,
    NativeLayer,
    obstacle,
    refuse_quantization,
)
from trioserve.model.native_matrices import Quantization
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
        self.q_norm = self._head_norm(config.num_heads, dtype, part)
        self.k_norm = self._head_norm(config.num_kv_heads, dtype, part)

    def _head_norm(self, num_heads: int, dtype: torch.dtype, part: Part) -> Norm | None:
        """Of each of so many heads, or of all of them together; None where there is none."""
        config = self._config
        if not config.qk_norm:
            return None
        if not config.norm.heads_together:
            return Norm(config.head_dim, config.norm, config.rms_norm_eps, dtype)
        if part.sums is not None:
            return SharedNorm(num_heads, config.head_dim, config.norm, config.rms_norm_eps, dtype, part)
        return Norm(num_heads * config.head_dim, config.norm, config.rms_norm_eps, dtype)

    def forward(self, x: Tensor, batch: ForwardBatch, cache: LayerCache, table: Tensor | None) -> Tensor:
        """[num_tokens, hidden_size] -> the same; writes the tokens' KV on the way.

        Args:
            table: Of rotations; None: heads are not rotated.
        """
        heads = self.qkv_proj(x).view(x.shape[0], -1, self._config.head_dim)
        q, k, v = heads.split(self.qkv_proj.num_heads, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self._normed(q, self.q_norm), self._normed(k, self.k_norm)
        if table is not None:
            apply_rope(q, k, batch.positions, table, interleaved=self._config.rope.style == "interleaved")
        store_kv(k, v, cache.k, cache.v, batch.slot_mapping)
        seen = paged_attention(
            q,
            cache.k,
            cache.v,
            batch.cu_seqlens_q,
            batch.seq_lens,
            batch.block_tables,
            scale=self._config.attention_scale,
            sliding_window=self._sliding_window,
            bound=self._config.scales.attention_bound,
        )
        out: Tensor = self.o_proj(seen.flatten(1))
        return out

    def _normed(self, heads: Tensor, norm: Norm) -> Tensor:
        """[num_tokens, num_heads, head_dim] -> the same."""
        if self._config.norm.heads_together:
            return cast("Tensor", norm(heads.flatten(1)).view(heads.shape))
        return cast("Tensor", norm(heads))


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
    """Attention and MLP, each between two norms or fewer, each added to the residual."""

    def __init__(self, config: DecoderConfig, layer: int, dtype: torch.dtype, part: Part) -> None:
        super().__init__()
        self._config = config
        self._residual_scale = config.scales.residual
        self.self_attn = Attention(config, layer, dtype, part)
        self.mlp = MLP(config, dtype, part)
        norm = config.norm
        for name in {norm.before_attention, norm.after_attention, norm.before_mlp, norm.after_mlp} - {None}:
            assert name is not None, "a norm that is there has a name"
            self.add_module(name, Norm(config.hidden_size, norm, config.rms_norm_eps, dtype))

    def norm_named(self, name: str | None) -> Norm | None:
        """The norm that a checkpoint calls ``name``; None for None."""
        if name is None:
            return None
        norm = self.get_submodule(name)
        assert isinstance(norm, Norm), f"{name} is no norm"
        return norm

    def forward(
        self, x: Tensor | None, residual: Tensor, batch: ForwardBatch, cache: LayerCache, table: Tensor | None
    ) -> Tensor:
        """What is still to be added to ``residual``, which this layer updates in place.

        Shapes:
            x: [num_tokens, hidden_size], what the layer before left to be added; None for the first
            residual, result: [num_tokens, hidden_size]
        """
        norm = self._config.norm
        normed = self._entering(norm.before_attention, x, residual)
        attended = self._leaving(norm.after_attention, self.self_attn(normed, batch, cache, table))
        if self._config.is_parallel:
            return attended + self._leaving(norm.after_mlp, self.mlp(normed))
        return self._leaving(norm.after_mlp, self.mlp(self._entering(norm.before_mlp, attended, residual)))

    def _entering(self, norm_name: str | None, x: Tensor | None, residual: Tensor) -> Tensor:
        """The residual, once ``x`` is added to it, as attention or MLP reads it."""
        norm = self.norm_named(norm_name)
        if norm is None:
            return residual if x is None else residual.add_(x)
        normed: Tensor = norm(residual) if x is None else norm.add(x, residual)
        return normed

    def _leaving(self, norm_name: str | None, x: Tensor) -> Tensor:
        """What attention or MLP found as it is added to the residual."""
        norm = self.norm_named(norm_name)
        if norm is not None:
            x = norm(x)
        return x if self._residual_scale == 1.0 else x * self._residual_scale

    def as_native(self) -> NativeLayer:
        """Its weights, for the native decoder."""
        attention, norm = self.self_attn, self._config.norm
        return NativeLayer(
            qkv_proj=attention.qkv_proj,
            o_proj=attention.o_proj,
            gate_up_proj=self.mlp.gate_up_proj,
            down_proj=self.mlp.down_proj,
            before_attention=self.norm_named(norm.before_attention),
            after_attention=self.norm_named(norm.after_attention),
            before_mlp=self.norm_named(norm.before_mlp),
            after_mlp=self.norm_named(norm.after_mlp),
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
        self.norm = Norm(config.hidden_size, config.norm, config.rms_norm_eps, dtype)
        self.rope_table = rope_table(config.rope, config.head_dim, num_positions)
        self.local_rope_table = (
            rope_table(config.local_rope, config.head_dim, num_positions) if config.local_rope else None
        )
        self._config = config
        self._embedding_scale = torch.tensor(config.scales.embedding).to(dtype)

    @property
    def rope_tables(self) -> list[Tensor | None]:
        """The table of each layer; None where heads are not rotated."""
        ropes = [self._config.rope_of(layer) for layer in range(len(self.layers))]
        local = self._config.local_rope
        return [
            None if rope is None else self.local_rope_table if rope is local else self.rope_table
            for rope in ropes
        ]

    def forward(self, batch: ForwardBatch, caches: list[LayerCache]) -> Tensor:
        """Hidden states of the rows that sample, [num_samples, hidden_size]."""
        residual: Tensor = self.embed_tokens(batch.token_ids)
        if self._embedding_scale != 1.0:
            residual *= self._embedding_scale
        x: Tensor | None = None
        for layer, cache, table in zip(self.layers, caches, self.rope_tables, strict=True):
            x = layer(x, residual, batch, cache, table)
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
        quantization: Quantization = "auto",
        progress: Progress = unseen,
        *,
        layout: CacheLayout | None = None,
        exchange: Exchange | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> str:
        """Bring the weights into the form in which they are multiplied; they can be neither loaded nor read after.

        Args:
            crew: Who computes the steps where the decoder is one that can be run natively; None: torch's layers.
            quantization: What the weights of native layers are brought to; torch's layers have them as dense ones.
            progress: Told of what was borrowed, as it is packed.
            layout: What the KV cache will hold; None: numbers of the weights' type, as torch's layers need them.
            exchange: Where native layers meet those of the other ranks; None: there are no others.
            meanwhile: Called once, just before weights are packed, to start what needs the interpreter's lock for long.
        Returns:
            What computes the steps from now on, such as "native avx512, 2 threads"; or torch's layers, and why.
        Raises:
            ModelError: Weights are to be quantized and the decoder cannot be run natively.
        """
        refuse_quantization(self.config, self.dtype, quantization, tp_size=self.part.tp_size)
        assert crew is not None or quantization in ("auto", "none"), (
            "torch's layers keep the weights as they are"
        )
        tp_size = self.part.tp_size
        why = "as told" if crew is None else obstacle(self.config, self.dtype, tp_size=tp_size)
        if why is None and self.part.sums is not None:
            why = "native ones meet in the memory of one machine"
        if crew is not None and why is None:
            packed = NativeDecoder(
                self.config,
                crew,
                embeddings=None if self.config.tie_word_embeddings else self.model.embed_tokens.weight.data,
                rope_tables=self.model.rope_tables,
                num_positions=len(self.model.rope_table),
                quantization=quantization,
                layout=layout or CacheLayout("bfloat16", self.config.head_dim),
                part=self.part,
                exchange=exchange,
            )
            self._fill(packed, _Added(packed, self.modules(), progress, meanwhile))
            self._native = packed
            return self._native.description
        meanwhile()
        linears = [layer for layer in self.modules() if isinstance(layer, Linear)]
        kept = sorted({layer.quantized.name for layer in linears if layer.quantized is not None})
        brought = "".join(f"; {name} as {str(self.dtype).removeprefix('torch.')}" for name in kept)
        for layer in linears:
            layer.pack(keep_weight=layer is self.lm_head and self.config.tie_word_embeddings)
        shared = "" if self.part.tp_size == 1 else f" in each of {self.part.tp_size} ranks over Gloo"
        return f"torch layers{shared}: {why}{brought}"

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
        scales = self.config.scales
        logits: Tensor = self.lm_head(hidden)
        if scales.logits != 1.0:
            logits *= scales.logits
        if scales.logits_bound is not None:
            logits = scales.logits_bound * (logits / scales.logits_bound).tanh()
        return logits

    def time_products(self, name: str, num_rows: int) -> float:
        """``NativeDecoder.time_products``; of a decoder that was packed as one."""
        assert self._native is not None, "torch's layers cannot be timed"
        return self._native.time_products(name, num_rows)


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
        """Some more; those that are borrowed take no memory while they wait, unless they had to be unpacked."""
        self._waiting += linears
        borrowed = sum(linear.num_borrowed_bytes for linear in self._waiting)
        has_unpacked = any(linear.quantized is not None for linear in self._waiting)
        if not borrowed or has_unpacked or borrowed >= _PACKED_AT_ONCE_BYTES:
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
