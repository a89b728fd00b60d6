"""A rank that has a part of the model and leaves the choice of tokens to rank 0."""

import numpy as np
import torch
from numpy.typing import NDArray

from trioserve.core.step import Admission, PromptLogprobs, SampledToken
from trioserve.sampling.verify import Guesses
from trioserve.worker.runner import StepRunner, as_numbers
from trioserve.worker.scoring import Stretch
from trioserve.worker.slots import NEWS_WIDTH


class FollowingRunner(StepRunner):
    """Carries out the same plans as rank 0, and learns from it what was guessed and what was chosen.

    It has part in every product, so it computes its part of the logits as well, but knows no parameters, no grammar and
    no random numbers. Its results say nothing.
    """

    def _admit(self, admission: Admission) -> None:
        self._slots.admit(admission)

    def _release(self, slot: int) -> None:
        self._slots.release(slot)

    def _guess(self, slots: NDArray[np.int64], samples: NDArray[np.bool_], most: int) -> Guesses | None:
        numbers = as_numbers(None, len(slots), most)
        self._ranks.share(numbers)
        counts = numbers[:, 0]
        if not counts.any():
            return None
        guesses = Guesses(numbers[:, 1 : 1 + counts.max()].astype(np.int32), counts)
        self._slots.write_behind(slots, guesses.token_ids)
        return guesses

    def _choose(
        self,
        hidden: torch.Tensor,
        slots: NDArray[np.int64],
        samples: NDArray[np.bool_],
        guesses: Guesses | None,
    ) -> list[list[SampledToken]]:
        self._model.compute_logits(hidden)
        news = np.empty((int(np.count_nonzero(samples)), NEWS_WIDTH), np.int64)
        self._ranks.share(news)
        self._slots.take_over(slots[samples], news)
        return [[]]

    def _score(self, stretches: list[Stretch], hidden: torch.Tensor) -> list[PromptLogprobs]:
        self._scorer.skip(stretches, hidden, self._model.compute_logits)
        return []
