"""Tensors for tests, and how near a kernel must come to its reference."""

from typing import Final

import torch
from torch import Tensor

TYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "float": torch.float32}


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def ulps_apart(found: Tensor, expected: Tensor) -> int:
    """The largest distance, counted in values of a 16-bit type between the two."""

    def rank(x: Tensor) -> Tensor:
        bits = x.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return int((rank(found) - rank(expected)).abs().max())


def assert_near(found: Tensor, expected: Tensor, *, absolute: float | Tensor = 0.0) -> None:
    """Within 1e-5 of its size in float32, one value of the type in 16 bits; differences up to ``absolute`` pass."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert bool(found.isfinite().all())
    apart = (found.double() - expected.double()).abs() > absolute
    if found.dtype == torch.float32:
        torch.testing.assert_close(found[apart], expected[apart], rtol=1e-5, atol=0.0)
    elif bool(apart.any()):
        assert ulps_apart(found[apart], expected[apart]) <= 1
