"""The blocks of keys and values: how many, and the tensors."""

from dataclasses import dataclass
from typing import Final

import torch

from trioserve.core.step import WorkerConfig
from trioserve.errors import ModelError
from trioserve.model.batch import CacheLayout, LayerCache
from trioserve.model.config import DecoderConfig
from trioserve.model.native import obstacle
from trioserve.model.ranks import ALONE, Ranks
from trioserve.worker.machine import available_memory_bytes

MEMORY_SHARE: Final = 0.4
"""Of the memory that is free once the weights are loaded, where nothing else was told; the rest is for activations, the
front and the page cache."""


@dataclass(frozen=True, slots=True)
class KVCache:
    """The KV blocks of all layers."""

    layers: list[LayerCache]
    num_blocks: int
    num_bytes: int


def cache_layout(name: str, model: DecoderConfig, dtype: torch.dtype, *, tp_size: int = 1) -> CacheLayout:
    """What ``name``, a setting's value, means for a model whose weights are ``dtype``, on so many ranks.

    Raises:
        ModelError: Such a cache is read by the native decoder alone, and the model is not one of those that it runs; or
            the numbers would be of another type than the model's.
    """
    model_type = str(dtype).removeprefix("torch.")
    if name in ("auto", model_type):
        return CacheLayout(model_type, model.head_dim)
    if name == "bfloat16":
        raise ModelError(
            f"kv_cache_dtype bfloat16 needs bfloat16 weights, these are {model_type}: leave it at auto"
        )
    if why := obstacle(model, dtype, tp_size=tp_size):
        raise ModelError(
            f"kv_cache_dtype {name} needs a model that the native decoder runs, and this one stays on torch's layers "
            f"({why}): leave it at auto{'' if dtype == torch.bfloat16 else ', or set dtype to bfloat16'}"
        )
    return CacheLayout(name, model.head_dim)


def block_bytes(model: DecoderConfig, block_size: int, layout: CacheLayout) -> int:
    """Bytes that one block takes in all layers together."""
    return (
        2 * model.num_hidden_layers * model.num_kv_heads * block_size * layout.width * layout.dtype.itemsize
    )


def plan_num_blocks(config: WorkerConfig, bytes_per_block: int) -> int:
    """How many blocks to allocate: as told, or as fit into the bytes or the share told, or as are of use and fit.

    Each rank has a part of every block, ``bytes_per_block``, and of the memory.

    Raises:
        ModelError: They would not hold one sequence of ``max_model_len``.
    """
    blocks_per_seq = -(-config.max_model_len // config.block_size)
    if config.num_blocks is not None:
        num_blocks, source = config.num_blocks, f"num_blocks {config.num_blocks}"
    elif config.kv_cache_bytes > 0:
        num_blocks, source = (
            config.kv_cache_bytes // config.tp_size // bytes_per_block,
            f"{config.kv_cache_bytes} bytes of KV cache",
        )
    else:
        share = config.kv_cache_share or MEMORY_SHARE
        num_blocks = int(available_memory_bytes() * share / config.num_local_ranks) // bytes_per_block
        source = f"{share:.0%} of the free memory"
        if config.kv_cache_share is None:
            num_blocks = min(num_blocks, config.max_num_seqs * blocks_per_seq + 1)
    if num_blocks < blocks_per_seq:
        needed = blocks_per_seq * bytes_per_block * config.tp_size
        raise ModelError(
            f"{source} makes {num_blocks} KV blocks of {config.block_size} tokens, one sequence of max_model_len "
            f"{config.max_model_len} needs {blocks_per_seq} ({needed} bytes): "
            f"lower max_model_len or give the KV cache more"
        )
    return num_blocks


def allocate_kv_cache(
    model: DecoderConfig, config: WorkerConfig, layout: CacheLayout, ranks: Ranks = ALONE
) -> KVCache:
    """Allocate the blocks, as many on every rank; their memory becomes resident as they are first written.

    Args:
        model: With the KV heads that are here.
    Raises:
        ModelError: They would not hold one sequence, or the memory is not there.
    """
    bytes_per_block = block_bytes(model, config.block_size, layout)
    ranks.least(0)  # all have their weights, so what is free now is for the blocks
    num_blocks = ranks.least(plan_num_blocks(config, bytes_per_block))
    try:
        layers = [
            layout.empty(num_blocks, model.num_kv_heads, config.block_size)
            for _ in range(model.num_hidden_layers)
        ]
    except RuntimeError as exc:
        needed = num_blocks * bytes_per_block
        raise ModelError(
            f"the KV cache of {needed} bytes cannot be allocated: lower it or max_model_len"
        ) from exc
    return KVCache(layers, num_blocks, num_blocks * bytes_per_block)
