"""The instantiations that are tested here and compiled for GPUs: every type, every vector width, every variant."""

from typing import Final

import torch

TYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "float": torch.float32}
ACTIVATIONS: Final = {"silu": "Silu", "gelu": "Gelu", "gelu_tanh": "GeluTanh"}
THREADS: Final = 256
"""Of a block."""
ROWS: Final = 8
"""Of a block whose rows have a warp each."""


def width_of(dtype: torch.dtype, *sizes: int) -> int:
    """``kWidth``: the largest power of two, up to 16 bytes, that divides all ``sizes``."""
    width = 16 // dtype.itemsize
    while any(size % width for size in sizes):
        width //= 2
    return width


_TYPES_AND_WIDTHS: Final = [
    f"{name}, {{}}{width}"
    for name, dtype in TYPES.items()
    for width in (1, 2, 4, 8)
    if width * dtype.itemsize <= 16
]


def _each(template: str, *middle: str) -> list[str]:
    """``template`` with its type and width, and each of ``middle`` between them."""
    return [template.format(pair.format(word)) for word in middle or ("",) for pair in _TYPES_AND_WIDTHS]


RMS_NORM: Final = [
    *_each(f"rms_norm<{{}}, {THREADS}, 1>"),
    *_each(f"rms_norm<{{}}, 32, {ROWS}>"),
    *_each(f"add_rms_norm<{{}}, {THREADS}>"),
]
ACTIVATION: Final = _each(f"activation_mul<{{}}, {THREADS}>", *(f"{name}, " for name in ACTIVATIONS.values()))
ROPE: Final = _each(f"apply_rope<{{}}, {THREADS}>", "false, ", "true, ")
STORE_KV: Final = _each(f"store_kv<{{}}, {THREADS}>")
INSTANCES: Final = {
    "rms_norm.cu": RMS_NORM,
    "activation.cu": ACTIVATION,
    "rope.cu": ROPE,
    "store_kv.cu": STORE_KV,
}
