"""Host memory behind the KV cache of a GPU: where blocks move that it has no room for, and from where they return."""

from typing import Final

import torch
from torch import Tensor

from trioserve.core.step import StepPlan, WorkerConfig
from trioserve.errors import ModelError
from trioserve.kernels.copy_blocks import copy_blocks_gpu
from trioserve.kernels.device import Device
from trioserve.model.batch import DeviceCache
from trioserve.worker.machine import available_memory_bytes

_HOST_SHARE: Final = 0.9
"""Of the host's free memory, what may be pinned: the system cannot take such memory back."""


class SwapSpace:
    """As many blocks of host memory for each tensor of the KV cache, bit for bit what they hold."""

    def __init__(self, caches: list[DeviceCache], num_host_blocks: int, device: Device) -> None:
        """Pin the memory.

        Raises:
            ModelError: The host does not have it.
        """
        self._device = device
        try:
            self._tiers = [
                (tensor, device.pinned(num_host_blocks, *tensor.shape[1:], dtype=tensor.dtype))
                for tensor in _tensors(caches)
            ]
        except RuntimeError as exc:
            raise ModelError(f"the memory of swap_space cannot be pinned, lower it: {exc}") from exc

    def carry_out(self, plan: StepPlan) -> None:
        """Start the copies of ``plan`` on the current stream, those to the host first; whoever starts its other work
        does so afterwards."""
        if plan.swapped_out:
            pairs = self._pairs(plan.swapped_out)
            for tensor, host in self._tiers:
                copy_blocks_gpu(self._device.gpu, host, tensor, pairs)
        if plan.swapped_in:
            pairs = self._pairs([(host_id, block_id) for block_id, host_id in plan.swapped_in])
            for tensor, host in self._tiers:
                copy_blocks_gpu(self._device.gpu, tensor, host, pairs)

    def _pairs(self, pairs: list[tuple[int, int]]) -> Tensor:
        """[num_pairs, 2] int64 on the device, copied from pinned memory so that nobody waits for it; that memory is
        taken again only when the copy is done."""
        pinned = self._device.pinned(len(pairs), 2, dtype=torch.int64)
        pinned.copy_(torch.tensor(pairs))
        return pinned.to(self._device.torch_device, non_blocking=True)


def plan_host_blocks(config: WorkerConfig, bytes_per_block: int) -> int:
    """How many blocks ``swap_bytes`` of each rank hold.

    Raises:
        ModelError: The host has not so much memory for all its ranks, or it is less than a block.
    """
    num_ranks = config.num_local_ranks
    wanted, free = config.swap_bytes * num_ranks, int(available_memory_bytes() * _HOST_SHARE)
    if wanted > free:
        each = f" for each of {num_ranks} GPUs" if num_ranks > 1 else ""
        raise ModelError(
            f"swap_space = {config.swap_bytes / 2**30:g} GiB{each} is more than the {free / 2**30:.1f} GiB of host "
            "memory that can be pinned: lower it"
        )
    if config.swap_bytes and config.swap_bytes < bytes_per_block:
        raise ModelError(
            f"swap_space = {config.swap_bytes / 2**30:g} GiB does not hold one KV block of {bytes_per_block} bytes: "
            "raise it or leave it out"
        )
    return config.swap_bytes // bytes_per_block


def _tensors(caches: list[DeviceCache]) -> list[Tensor]:
    """All that a block has, each tensor [num_blocks, num_kv_heads, block_size, ...] with four dimensions."""
    tensors = []
    for cache in caches:
        tensors += [cache.k, cache.v]
        tensors += [scales.unsqueeze(-1) for scales in (cache.k_scales, cache.v_scales) if scales is not None]
    return tensors
