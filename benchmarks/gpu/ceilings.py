"""What this GPU can do at most: bytes copied and products of matrices, measured before anything else."""

from typing import Final

import torch

from benchmarks.gpu.report import Report, Row
from benchmarks.gpu.timing import medians

COPY: Final = "copy"
PRODUCT: Final = "product, bf16"
_COPIED_BYTES: Final = 4 << 30
_SIZE: Final = 8192


def measure(report: Report) -> None:
    """Add both; bytes of a copy count twice, read and written."""
    report.add(Row("ceilings", COPY, 2 * _COPIED_BYTES / _time_copy() * 1e-6, "TB/s"))
    report.add(Row("ceilings", PRODUCT, 2 * _SIZE**3 / _time_product() * 1e-6, "TFLOP/s"))


def _time_copy() -> float:
    source = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device="cuda").random_()
    to = torch.empty_like(source)
    return medians({"copy": [lambda: to.copy_(source)]})["copy"]


def _time_product() -> float:
    a, b = (torch.randn(_SIZE, _SIZE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return medians({"product": [lambda: a @ b]})["product"]


def copy_rate(report: Report) -> float:
    """Bytes a second."""
    return (report.value(COPY) or float("nan")) * 1e12


def product_rate(report: Report) -> float:
    """Floating-point operations a second."""
    return (report.value(PRODUCT) or float("nan")) * 1e12
