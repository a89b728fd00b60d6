import numpy as np
from numpy.typing import NDArray

def available_isas() -> tuple[str, ...]: ...
def mask_logits(
    out: NDArray[np.float32], logits: NDArray[np.float32], mask: NDArray[np.int32], *, isa: str
) -> bool: ...
def masked_argmax(
    logits: NDArray[np.float32],
    masks: NDArray[np.int32],
    rows: NDArray[np.int64],
    found: NDArray[np.int64],
    *,
    num_threads: int,
    isa: str,
) -> None: ...
