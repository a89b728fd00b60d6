"""How many KV blocks a GPU has room for, beside the weights and what the largest step takes."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from trioserve.core.step import WorkerConfig
from trioserve.errors import ModelError
from trioserve.kernels.device import Device

_FEW_SEQS: Final = 2
"""Sequences of ``max_model_len`` below which it is said that there is little room."""
_MOST_UTILIZATION: Final = 0.97
"""What is advised at most: the driver and what is in the way take some memory by themselves."""


def plan_device_blocks(
    device: Device,
    config: WorkerConfig,
    bytes_per_block: int,
    run_largest_step: Callable[[], None],
    *,
    lent_blocks: int = 0,
) -> int:
    """How many blocks to allocate: as told, or as fit into the bytes or the shares told.

    What is there already is the weights', the process's own or another's; of what is left the largest step needs a
    part, and the KV cache takes the rest.

    Args:
        bytes_per_block: In all layers, of this rank.
        run_largest_step: Computes ``max_num_batched_tokens`` of prompts and ``max_num_seqs`` tokens, and whatever else
            takes memory while the server runs, graphs among it.
        lent_blocks: That lie on the device for that step and are given back before the others are allocated.
    Raises:
        ModelError: The step does not fit, or the blocks that are told, or they would not hold one sequence of
            ``max_model_len``; with numbers, and with what to change.
    """
    memory = _measure(device, config, run_largest_step, lent_blocks * bytes_per_block)
    per_seq = -(-config.max_model_len // config.block_size)
    num_bytes, source = _wanted(config, memory, bytes_per_block)
    num_blocks = max(0, num_bytes // bytes_per_block)
    if num_blocks < per_seq:
        needed = per_seq * bytes_per_block
        raise ModelError(
            f"{source} {'makes' if config.num_blocks else 'leaves'} {_gb(num_bytes)} for the KV cache{memory.told}; "
            f"one sequence of max_model_len {config.max_model_len} needs {_gb(needed)}: "
            f"{_advice(config, memory, num_blocks, needed)}"
        )
    if num_bytes > memory.room_bytes:
        raise ModelError(
            f"{source} is {_gb(num_bytes)} of KV cache, and {_gb(memory.room_bytes)} are free{memory.told}: lower it"
        )
    _warn_of_little(config, num_blocks, per_seq)
    return num_blocks


@dataclass(frozen=True, slots=True)
class _Memory:
    """Of a device, in bytes."""

    total_bytes: int
    used_bytes: int
    """By the weights, by others and by the process itself."""
    step_bytes: int
    """That the largest step needs besides."""

    @property
    def room_bytes(self) -> int:
        """What is left."""
        return self.total_bytes - self.used_bytes - self.step_bytes

    @property
    def told(self) -> str:
        return f" beside {_gb(self.used_bytes)} in use and {_gb(self.step_bytes)} of the largest step"


def _measure(
    device: Device, config: WorkerConfig, run_largest_step: Callable[[], None], lent_bytes: int
) -> _Memory:
    try:
        step_bytes = device.peak_bytes(run_largest_step)
    except torch.OutOfMemoryError as exc:
        memory = device.memory()
        raise ModelError(
            f"a step of max_num_batched_tokens = {config.max_num_batched_tokens} tokens does not fit beside "
            f"{_gb(memory.total_bytes - memory.free_bytes)} in use of the {_gb(memory.total_bytes)} of {device.name}: "
            f"lower max_num_batched_tokens or max_num_seqs, {', '.join(_smaller_weights(config))}"
        ) from exc
    memory = device.memory()
    return _Memory(memory.total_bytes, memory.total_bytes - memory.free_bytes - lent_bytes, step_bytes)


def _wanted(config: WorkerConfig, memory: _Memory, bytes_per_block: int) -> tuple[int, str]:
    """Bytes for the KV cache, which may be less than none, and what says so."""
    if config.num_blocks is not None:
        return config.num_blocks * bytes_per_block, f"num_kv_blocks = {config.num_blocks}"
    if config.kv_cache_bytes > 0:
        return config.kv_cache_bytes // config.tp_size, f"kv_cache_bytes = {config.kv_cache_bytes}"
    if config.kv_cache_share is not None:
        free_bytes = memory.total_bytes - memory.used_bytes
        num_bytes = min(int(free_bytes * config.kv_cache_share), memory.room_bytes)
        return (
            num_bytes,
            f"cache_max_entry_count = {config.kv_cache_share} of {_gb(free_bytes)} that are free",
        )
    share = config.gpu_memory_utilization
    num_bytes = int(memory.total_bytes * share) - memory.used_bytes - memory.step_bytes
    # what others take beyond this server's share is not there, however much it may use
    return min(num_bytes, memory.room_bytes), f"gpu_memory_utilization = {share} of {_gb(memory.total_bytes)}"


def _advice(config: WorkerConfig, memory: _Memory, num_blocks: int, needed: int) -> str:
    """What would make room for one sequence."""
    changes = []
    if num_blocks:
        changes.append(f"lower max_model_len to {num_blocks * config.block_size}")
    if config.num_blocks is not None:
        changes.append(f"raise num_kv_blocks to {-(-config.max_model_len // config.block_size)}")
    elif config.kv_cache_bytes:
        changes.append(f"raise kv_cache_bytes to {needed * config.tp_size}")
    elif config.kv_cache_share is not None:
        changes.append("raise cache_max_entry_count")
    else:
        share = (memory.used_bytes + memory.step_bytes + needed) / memory.total_bytes
        share = math.ceil(share * 100) / 100
        if config.gpu_memory_utilization < share <= _MOST_UTILIZATION:
            changes.append(f"raise gpu_memory_utilization to {share:.2f}")
    if config.kv_cache_dtype != "fp8":
        changes.append("set kv_cache_dtype to fp8")
    return ", ".join(changes + _smaller_weights(config))


def _smaller_weights(config: WorkerConfig) -> list[str]:
    """What makes the weights of a rank smaller."""
    shared = f"share the model among more GPUs by tensor_parallel_size, now {config.tp_size}"
    return ["set quantization", shared] if config.quantization in ("auto", "none") else [shared]


def _warn_of_little(config: WorkerConfig, num_blocks: int, per_seq: int) -> None:
    if config.tp_rank or num_blocks >= min(_FEW_SEQS, config.max_num_seqs) * per_seq:
        return
    print(
        f"the KV cache has {num_blocks} blocks, {num_blocks / per_seq:.1f} times what one sequence of max_model_len "
        f"{config.max_model_len} needs, and max_num_seqs {config.max_num_seqs} may run: long ones will wait for each "
        "other",
        file=sys.stderr,
    )


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
