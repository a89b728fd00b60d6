"""How the parts of a decoder come to be on a GPU, those of the host being freed on the way."""

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from trioserve.kernels.device import Device
from trioserve.kernels.quantized_linear import PackedWeight
from trioserve.model.decoder import Decoder, DecoderLayer
from trioserve.model.device_layer import DeviceLayer, DeviceNorm
from trioserve.model.device_products import Dense, Invariant, Product, Quantized, Summed, scratch_for
from trioserve.model.device_quantization import (
    DeviceQuantization,
    head_form,
    keeps_codes,
    layer_forms,
    quantized,
)
from trioserve.model.device_weights import Carrier, bytes_of, carried_bytes
from trioserve.model.layers import Linear, Norm, SharedNorm
from trioserve.model.progress import Progress

_ROW_PRODUCTS: Final = ("o_proj", "down_proj")
"""Whose depth the ranks share out."""


class Maker:
    """Makes the parts of ``model`` one after the other."""

    def __init__(
        self,
        model: Decoder,
        device: Device,
        quantization: DeviceQuantization,
        progress: Progress,
        *,
        batch_invariant: bool,
    ) -> None:
        self._model, self._device = model, device
        self._quantization: DeviceQuantization = quantization
        self._is_invariant = batch_invariant
        self._config = model.part.shape(model.config)
        self._tables: dict[int, Tensor] = {}
        """On the device, by the identity of those on the host."""
        self._num_bytes = 0
        self._scratch: Tensor | None = None
        self._carrier = Carrier(device, progress, carried_bytes(model))

    def layer(self, number: int) -> DeviceLayer:
        """Number ``number`` of them."""
        config, layer = self._config, self._model.model.layers[number]
        assert isinstance(layer, DecoderLayer)
        parts, rope = layer.as_native(), config.rope_of(number)
        forms = layer_forms(self._quantization, number, config.num_hidden_layers)
        norms = {name: None if norm is None else self.norm(norm) for name, norm in parts.norms.items()}
        products = {
            name: self._product(linear, forms[name], is_shared=name in _ROW_PRODUCTS)
            for name, linear in parts.products.items()
        }
        return DeviceLayer(
            gpu=self._device.gpu,
            config=config,
            sliding_window=config.sliding_windows[number],
            table=self._table(self._model.model.rope_tables[number]),
            is_interleaved=rope is not None and rope.style == "interleaved",
            sums=self._model.part.sums if config.is_parallel else None,
            qkv_proj=products["qkv_proj"],
            o_proj=products["o_proj"],
            gate_up_proj=products["gate_up_proj"],
            down_proj=products["down_proj"],
            before_attention=norms["before_attention"],
            after_attention=norms["after_attention"],
            before_mlp=norms["before_mlp"],
            after_mlp=norms["after_mlp"],
            q_norm=norms["q_norm"],
            k_norm=norms["k_norm"],
        )

    def norm(self, norm: Norm) -> DeviceNorm:
        """One of them."""
        weight = self._vector(norm.weight.data)
        bias = None if norm.bias is None else self._vector(norm.bias.data)
        config = self._config
        made = DeviceNorm(
            self._device.gpu, weight, bias, norm.offset, config.rms_norm_eps, config.norm.kind == "rms"
        )
        return replace(made, sums=norm.sums, count=norm.count) if isinstance(norm, SharedNorm) else made

    def head_and_embeddings(self) -> tuple[Product, Tensor]:
        """The head, and the vectors of tokens, which may be the same matrix: not where the head is in few bits."""
        model, form = self._model, head_form(self._quantization)
        if model.config.tie_word_embeddings:
            weight = self._matrix(model.lm_head)
            head = self._multiplied(weight, form, None)
            self._num_bytes += weight.nbytes if isinstance(head, Quantized) else 0
            return head, weight
        head, embed_tokens = self._made(model.lm_head, form, None), model.model.embed_tokens
        embeddings = self._carrier.matrix([embed_tokens.weight.data], model.dtype)
        self._carrier.count(embeddings.nbytes)
        embed_tokens.weight.data = embed_tokens.weight.new_empty(0)
        self._num_bytes += embeddings.nbytes
        return head, embeddings

    def finish(self) -> int:
        """Wait for all of it; returns the bytes that it takes."""
        self._carrier.finish()
        return self._num_bytes

    def _product(self, linear: Linear, form: str, *, is_shared: bool) -> Product:
        """
        Args:
            is_shared: Whether its depth is shared out among the ranks, of which the first has the bias.
        """
        part = self._model.part
        has_bias = linear.bias is not None and not (is_shared and part.tp_rank)
        bias = None
        if has_bias and linear.bias is not None:
            bias = self._carrier.vector(linear.bias.data, self._model.dtype)
        product = self._made(linear, form, bias)
        is_summed = is_shared and part.sums is not None and not self._config.is_parallel
        return Summed(product, part.sums) if is_summed and part.sums is not None else product

    def _made(self, linear: Linear, form: str, bias: Tensor | None) -> Product:
        """A product with the weight of ``linear``, or its checkpoint's codes; dense where no kernel takes these."""
        codes = linear.quantized if keeps_codes(self._quantization) else None
        packed = None if codes is None else codes.packed(self._model.dtype)
        if codes is None or packed is None:
            return self._multiplied(self._matrix(linear), form, bias)
        order = None if codes.columns is None else self._carrier.vector(codes.columns, torch.int64)
        product = self._by_codes(self._carrier.packed(packed), bias, order)
        self._carrier.count(bytes_of(linear))
        linear.free()
        return product

    def _multiplied(self, weight: Tensor, form: str, bias: Tensor | None) -> Product:
        """A product with ``weight``, in codes unless its form is that of the model."""
        if form != "bf16":
            return self._by_codes(quantized(weight, form, self._model.dtype), bias, None)
        gpu = self._device.gpu
        product: Product = Invariant(gpu, weight, bias) if self._is_invariant else Dense(weight, bias)
        self._num_bytes += product.num_bytes
        return product

    def _by_codes(self, packed: PackedWeight, bias: Tensor | None, columns: Tensor | None) -> Quantized:
        memory = self._scratch_memory()
        product = Quantized(self._device.gpu, packed, bias, columns, memory, self._is_invariant)
        self._num_bytes += product.num_bytes
        return product

    def _matrix(self, linear: Linear) -> Tensor:
        weight = self._carrier.matrix(linear.pieces(), self._model.dtype)
        self._carrier.count(bytes_of(linear))
        linear.free()
        return weight

    def _vector(self, numbers: Tensor) -> Tensor:
        vector = self._carrier.vector(numbers, self._model.dtype)
        self._carrier.count(vector.nbytes)
        self._num_bytes += vector.nbytes
        return vector

    def _table(self, table: Tensor | None) -> Tensor:
        """Of rotations; layers that turn alike share one."""
        if id(table) not in self._tables:
            found = torch.empty(1, 2, 0) if table is None else table
            self._tables[id(table)] = self._carrier.vector(found, torch.float32)
            self._carrier.count(found.nbytes)
            self._num_bytes += found.nbytes
        return self._tables[id(table)]

    def _scratch_memory(self) -> Tensor:
        if self._scratch is None:
            config = self._config
            depths = (config.hidden_size, config.num_heads * config.head_dim, config.intermediate_size)
            num_tokens = self._model.part.tokens(config.vocab_size).length
            largest = max(2 * config.intermediate_size, num_tokens) * max(depths)
            self._scratch = scratch_for(largest, max(depths), self._model.dtype, self._device.torch_device)
            self._num_bytes += self._scratch.nbytes
        return self._scratch
