"""A decoder on the emulated GPU, driven by the pieces that torch's layers are driven by."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.emu.device import EmulatedGpu
from tests.model.pieces import BLOCK_SIZE, Piece, batch_of
from trioserve.kernels import (
    activation,
    invariant_linear,
    layer_norm,
    paged_attention_gpu,
    quantized_linear,
    rms_norm,
    rope_store_kv,
    unpack_weight,
)
from trioserve.kernels.attention_plan import plan_attention
from trioserve.kernels.source import Kernel
from trioserve.model.batch import DeviceBatch, DeviceCache
from trioserve.model.device import DeviceDecoder


def decoder_kernels() -> Iterator[Kernel]:
    """Those that decoders of heads of 64 and of vectors of 8 elements launch."""
    for query in ("bf16", "fp16"):
        yield rms_norm.norm_kernel(query, 8, rms_norm.THREADS, 1)
        yield rms_norm.add_norm_kernel(query, 8)
        yield rms_norm.add_normed_kernel(query, 8)
        yield layer_norm.kernel(query, 8)
        yield from (activation.kernel(query, name, 8) for name in ("silu", "gelu", "gelu_tanh"))
        yield paged_attention_gpu.merge_kernel(query)
        for kv in (query, "e4m3"):
            yield rope_store_kv.kernel(query, kv, 64)
            yield paged_attention_gpu.decode_kernel(query, kv, 64)
            yield paged_attention_gpu.single_kernel(query, kv, 64)
            yield paged_attention_gpu.prefill_kernel(query, kv, 64)


def quantized_kernels() -> Iterator[Kernel]:
    """Those that weights of few bits need beside them, in bfloat16."""
    for code in ("u8", "e4m3"):
        yield unpack_weight.channel_kernel("bf16", code)
        yield from (quantized_linear.channel_kernel("bf16", code, tiles) for tiles in range(3))
    for is_fine in (True, False):
        yield unpack_weight.group_kernel("bf16", is_fine=is_fine)
        yield from (
            quantized_linear.group_kernel("bf16", is_fine=is_fine, num_tiles=tiles) for tiles in range(3)
        )


def invariant_kernels() -> Iterator[Kernel]:
    """Those whose products do not depend on the batch, in bfloat16."""
    yield from (kernel for kernel in invariant_linear.instances() if kernel.choices[0] == "bf16")


class Done:
    """A moment of a device that does everything at once."""

    is_done = True

    def wait(self) -> None:
        """Nothing is left to do."""


@dataclass
class HostDevice:
    """The emulated GPU and memory of the host, as far as a decoder asks for them."""

    gpu: EmulatedGpu
    torch_device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def record(self) -> Done:
        return Done()


@dataclass
class DeviceBench:
    """A decoder on a device, with a cache of its own."""

    decoder: DeviceDecoder
    gpu: EmulatedGpu
    kv_dtype: torch.dtype
    num_kv_heads: int
    num_blocks: int = 64
    is_invariant: bool = False
    caches: list[DeviceCache] = field(init=False)

    def __post_init__(self) -> None:
        self.caches = self.decoder.new_caches(self.num_blocks, BLOCK_SIZE, self.kv_dtype)
        for cache in self.caches:
            for tensor in (cache.k, cache.v, cache.k_scales, cache.v_scales):
                if tensor is not None:
                    tensor.fill_(torch.nan)  # what is read unwritten shows

    def batch(self, *pieces: Piece) -> DeviceBatch:
        """One step that computes all pieces and samples after every token."""
        batch = batch_of(pieces)
        plan = plan_attention(
            batch.cu_seqlens_q,
            batch.seq_lens,
            batch.block_tables,
            num_kv_heads=self.num_kv_heads,
            num_multiprocessors=self.gpu.num_multiprocessors,
            device=torch.device("cpu"),
            batch_invariant=self.is_invariant,
        )
        return DeviceBatch(batch.token_ids, batch.positions, batch.slot_mapping, batch.sample_rows, plan)

    @torch.inference_mode()
    def run(self, *pieces: Piece) -> Tensor:
        """Logits of every token of every piece, [num_tokens, vocab_size] float32."""
        logits = self.decoder.compute_logits(self.decoder(self.batch(*pieces), self.caches))
        return logits.float()
