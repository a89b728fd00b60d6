"""Every kernel that a launch function may ask for."""

from collections.abc import Iterator

from trioserve.kernels import (
    activation,
    copy_blocks,
    invariant_linear,
    layer_norm,
    paged_attention_gpu,
    quantized_linear,
    rms_norm,
    rope,
    rope_store_kv,
    sampling_gpu,
    store_kv,
    unpack_weight,
)
from trioserve.kernels.source import Kernel

_MODULES = (
    rms_norm,
    layer_norm,
    activation,
    rope,
    store_kv,
    rope_store_kv,
    copy_blocks,
    paged_attention_gpu,
    sampling_gpu,
    quantized_linear,
    unpack_weight,
    invariant_linear,
)


def kernels() -> Iterator[Kernel]:
    """File by file; a module of kernels names its own by ``instances``."""
    for module in _MODULES:
        yield from module.instances()


def kernels_for(architecture: str) -> Iterator[Kernel]:
    """Those that a GPU of ``architecture``, such as ``"sm_90a"``, can have."""
    return (kernel for kernel in kernels() if kernel.architecture in ("", architecture))


def shared_bytes(kernel: Kernel) -> int:
    """Shared memory that a launch asks for, beside what the source says."""
    if kernel.file.startswith("paged_"):
        return paged_attention_gpu.shared_bytes(kernel)
    if kernel.file == "linear.cu":
        return invariant_linear.shared_bytes(kernel)
    return sampling_gpu.shared_bytes(kernel)
