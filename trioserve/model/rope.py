"""The table of rotations: cos and sin of every position a sequence can reach."""

import math

import torch
from torch import Tensor

from trioserve.model.rope_config import RopeConfig


def rope_table(rope: RopeConfig, head_dim: int, num_positions: int) -> Tensor:
    """cos and sin of every position, scaled as the checkpoint wants them.

    Shapes:
        result: [num_positions, 2, num_pairs] float32, cos then sin; num_pairs is head_dim / 2 where whole heads
            are rotated
    """
    frequencies = inverse_frequencies(rope, head_dim, num_positions)
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies
    return torch.stack((angles.cos(), angles.sin()), dim=1) * rope.attention_factor


def inverse_frequencies(rope: RopeConfig, head_dim: int, num_positions: int) -> Tensor:
    """Radians per position of each pair; one rotation for all sequences, so longrope asks how long one may become.

    Shapes:
        result: [num_pairs] float32
    """
    size = 2 * rope.num_pairs(head_dim)
    exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
    plain = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "longrope":
        is_long = num_positions > rope.original_max_positions
        return plain / torch.tensor(rope.long_factors if is_long else rope.short_factors)
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope, plain, size)
    return plain


def _llama3(rope: RopeConfig, plain: Tensor) -> Tensor:
    """Long waves are slowed by ``factor``, short ones kept, those between blended.

    Source: transformers ``_compute_llama3_parameters``, after Llama 3.1's own code.
    """
    wavelength = 2 * math.pi / plain
    longest_kept = rope.original_max_positions / rope.high_freq_factor
    shortest_slowed = rope.original_max_positions / rope.low_freq_factor
    keep = (rope.original_max_positions / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - keep) * plain / rope.factor + keep * plain
    slowed = torch.where(wavelength > shortest_slowed, plain / rope.factor, blended)
    return torch.where(wavelength < longest_kept, plain, slowed)


def _yarn(rope: RopeConfig, plain: Tensor, size: int) -> Tensor:
    """Interpolates where a dimension turns few times within the first context, extrapolates where it turns often.

    Source: arXiv:2309.00071, section 3.2; the ramp as transformers' ``_compute_yarn_parameters`` cuts it.
    """

    def dimension_turning(rotations: float) -> float:
        return (size * math.log(rope.original_max_positions / (rotations * 2 * math.pi))) / (
            2 * math.log(rope.theta)
        )

    low, high = dimension_turning(rope.beta_fast), dimension_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(size // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)
