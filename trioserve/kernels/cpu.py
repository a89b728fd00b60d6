"""What the compiled CPU kernels have in common."""

from typing import Final

import torch

from trioserve._speedups import elementwise

ISA: Final = elementwise.available_isas()[-1]
"""The best instruction set that this processor has kernels for."""
VECTOR: Final = 16
"""Elements that the widest vector holds; the kernels take rows of whole vectors."""
_DTYPES: Final = (torch.bfloat16, torch.float32)


def is_native(dtype: torch.dtype, *row_sizes: int) -> bool:
    """Whether the compiled kernels take rows of these sizes; torch takes all."""
    return dtype in _DTYPES and not any(size % VECTOR for size in row_sizes)
