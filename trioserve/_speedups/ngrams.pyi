from typing import Self, final

import numpy as np
from numpy.typing import NDArray

@final
class NgramIndex:
    @property
    def shortest(self) -> int: ...
    @property
    def longest(self) -> int: ...
    def __new__(
        cls,
        token_ids: NDArray[np.int32],
        num_tokens: NDArray[np.int64],
        limits: NDArray[np.int64],
        wakes_at: NDArray[np.int64],
        *,
        shortest: int,
        longest: int,
    ) -> Self: ...
    def forget(self, slot: int) -> None: ...
    def draft(
        self, slots: NDArray[np.int64], is_whole: NDArray[np.uint8], most: int, found: NDArray[np.int64]
    ) -> int: ...
