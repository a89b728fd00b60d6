"""The decoder of all families on a GPU: the modules of ``Decoder`` by kernels, and dense products by torch.

Nothing here waits for the device or looks at what lies in a tensor: all shapes follow from those of the batch, so that
a step can be captured in a graph and replayed with other contents.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import embedding

from trioserve.kernels.device import Device
from trioserve.kernels.paged_attention_gpu import HEAD_DIMS
from trioserve.kernels.rope_store_kv import can_turn
from trioserve.model.batch import DeviceBatch, DeviceCache
from trioserve.model.config import DecoderConfig
from trioserve.model.decoder import Decoder
from trioserve.model.device_layer import Left
from trioserve.model.device_maker import Maker
from trioserve.model.device_quantization import SLABS, DeviceQuantization, depths_of
from trioserve.model.progress import Progress, unseen

FP8: Final = torch.float8_e4m3fn
_INVARIANT_STEP: Final = 8
"""What ``invariant_linear_gpu`` takes along the depth at once."""


def device_obstacle(
    config: DecoderConfig,
    dtype: torch.dtype,
    *,
    quantization: DeviceQuantization = "auto",
    batch_invariant: bool = False,
) -> str | None:
    """Why such a decoder, or a rank's part of it, cannot be run on a GPU in such a way; None where it can."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"weights are {str(dtype).removeprefix('torch.')}, neither bfloat16 nor float16"
    if config.head_dim not in HEAD_DIMS:
        return f"head_dim {config.head_dim} is none of {', '.join(map(str, HEAD_DIMS))}"
    if config.qk_norm and config.norm.kind != "rms":
        return "heads are normalised by layer norms"
    if config.norm.after_attention or config.norm.after_mlp:
        if config.norm.kind != "rms":
            return "what attention and MLP add is normalised by layer norms"
        if config.is_parallel:
            return "what attention and MLP add side by side is normalised before"
    for layer in range(config.num_hidden_layers):
        rope = config.rope_of(layer)
        num_pairs = 0 if rope is None else rope.num_pairs(config.head_dim)
        if not can_turn(config.head_dim, num_pairs):
            return f"{num_pairs} pairs of head_dim {config.head_dim} are rotated, no multiple of a vector"
    step = max(SLABS[quantization], _INVARIANT_STEP if batch_invariant else 1)
    uneven = [depth for depth in depths_of(config) if depth % step]
    return f"the depth of a matrix is {uneven[0]}, no multiple of {step}" if uneven else None


class DeviceDecoder:
    """A decoder whose weights are on a GPU; runs one step at a time on the current stream."""

    def __init__(
        self,
        model: Decoder,
        device: Device,
        *,
        batch_invariant: bool = False,
        quantization: DeviceQuantization = "auto",
        progress: Progress = unseen,
    ) -> None:
        """Carry the weights of ``model`` over; they can be neither loaded nor read after, and take no memory.

        Args:
            batch_invariant: Whether a token's result is the same to the bit whatever else is in the batch; plans of
                attention must be made for that too.
            quantization: What the weights are brought to.
            progress: Told of what is carried, in bytes.
        Raises:
            torch.OutOfMemoryError: The device has not enough memory.
            RuntimeError: The host has none to pin.
        """
        config = model.part.shape(model.config)
        why = device_obstacle(config, model.dtype, quantization=quantization, batch_invariant=batch_invariant)
        assert why is None, why
        self._dtype = model.dtype
        self._config = config
        self._part = model.part
        self._vocab_sizes = model.lm_head.sizes
        self._device = device
        made = Maker(model, device, quantization, progress, batch_invariant=batch_invariant)
        self._layers = [made.layer(number) for number in range(config.num_hidden_layers)]
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
        left: Left | None = None
        for layer, cache in zip(self._layers, caches, strict=True):
            rows = batch.sample_rows if layer is self._layers[-1] else None
            left, residual = layer.run(left, residual, batch, cache, rows)
        assert left is not None, "a decoder has at least one layer"
        return left.enter(self._norm, residual)

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
