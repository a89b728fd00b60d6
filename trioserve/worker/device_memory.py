"""How many KV blocks a GPU has room for."""

from collections.abc import Callable

from trioserve.core.step import WorkerConfig
from trioserve.errors import ModelError
from trioserve.kernels.device import Device


def plan_device_blocks(
    device: Device, config: WorkerConfig, bytes_per_block: int, run_largest_step: Callable[[], None]
) -> int:
    """As told, or as fit into the device's share beside weights and the largest step.

    Raises:
        ModelError: They would not hold one sequence of ``max_model_len``.
    """
    if config.num_blocks is not None:
        return config.num_blocks
    peak = device.peak_bytes(run_largest_step)
    memory = device.memory()
    room = memory.free_bytes - int(memory.total_bytes * (1 - config.gpu_memory_utilization)) - peak
    blocks_per_seq = -(-config.max_model_len // config.block_size)
    if room // bytes_per_block < blocks_per_seq:
        raise ModelError("the GPU has no room for the KV blocks of one sequence: lower max_model_len")
    return room // bytes_per_block
