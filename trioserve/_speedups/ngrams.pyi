from typing import Self, final

import numpy as np
from numpy.typing import NDArray

@final
class NgramIndex:
    @property
    def shortest(self) -> int: ...
    @property
    def longest(self) -> int: ...
    def __new__(cls, num_slots: int, *, shortest: int, longest: int) -> Self: ...
    def forget(self, slot: int) -> None: ...
    def draft(
        self,
        token_ids: NDArray[np.int32],
        slots: NDArray[np.int64],
        num_tokens: NDArray[np.int64],
        room: NDArray[np.int64],
        found: NDArray[np.int64],
    ) -> None: ...
