"""Weights of a plain checkpoint in few bits: brought to them on the GPU itself, as they are loaded."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal

import torch
from torch import Tensor

from trioserve.kernels.quantized_linear import (
    PackedWeight,
    pack_codes,
    pack_nibbles,
    quantize_e4m3,
    quantize_int4,
    quantize_int8,
)
from trioserve.model.config import DecoderConfig
from trioserve.model.native_matrices import PRODUCTS, head_format, layer_formats

DeviceQuantization = Literal["auto", "none", "int8", "int4", "fp8"]
"""What weights are brought to at load; auto: nothing but what the checkpoint holds."""
DEVICE_QUANTIZATIONS: Final[tuple[DeviceQuantization, ...]] = ("auto", "none", "int8", "int4", "fp8")
GROUP_SIZE: Final = 32
"""Weights of int4 that have one scale, as on a CPU."""
TILE: Final = 16
"""Rows of a matrix that its packed form keeps together."""
SLABS: Final[Mapping[DeviceQuantization, int]] = {"auto": 1, "none": 1, "int8": 32, "fp8": 32, "int4": 64}
"""What the depth of a matrix must be a multiple of; else every activation would have to be padded."""
_AT_ONCE: Final = 1 << 24
"""Weights that are quantized together: float32 of some copies of them is all the memory that it takes."""


def depths_of(config: DecoderConfig) -> tuple[int, int, int]:
    """Of the matrices of a decoder, or of a rank's part of it."""
    return config.hidden_size, config.num_heads * config.head_dim, config.intermediate_size


def layer_forms(quantization: DeviceQuantization, layer: int, num_layers: int) -> Mapping[str, str]:
    """The forms of a layer's matrices, by name; as on a CPU, or all e4m3."""
    if quantization == "fp8":
        return dict.fromkeys(PRODUCTS, "fp8")
    return layer_formats(quantization, layer, num_layers)


def head_form(quantization: DeviceQuantization) -> str:
    """The form of the head, which errs last: int8 with all of them."""
    return head_format("int8" if quantization == "fp8" else quantization)


def keeps_codes(quantization: DeviceQuantization) -> bool:
    """Whether a checkpoint's codes stay what they are, as on a CPU; else its matrices are made dense first."""
    return quantization in ("auto", "int4")


def quantized(weight: Tensor, form: str, dtype: torch.dtype) -> PackedWeight:
    """``weight`` in codes of ``form``, where it lies.

    Shapes:
        weight: [out_size, in_size]
    Args:
        dtype: Of activations.
    """
    step = max(_AT_ONCE // weight.shape[1] // TILE, 1) * TILE
    parts = [_packed(rows, form, dtype) for rows in torch.split(weight, step)]
    return replace(
        parts[0],
        weight=torch.cat([part.weight.view(torch.uint8) for part in parts]).view(parts[0].weight.dtype),
        scales=torch.cat([part.scales for part in parts]),
        out_size=len(weight),
    )


def _packed(weight: Tensor, form: str, dtype: torch.dtype) -> PackedWeight:
    if form == "int4":
        codes = quantize_int4(weight, group_size=GROUP_SIZE)
        return pack_nibbles(*codes, has_zero_points=False, dtype=dtype)
    return pack_codes(*(quantize_e4m3 if form == "fp8" else quantize_int8)(weight))
