"""From logits to tokens: how those of each slot are chosen, and the choice for all rows of a step in one call."""

from collections.abc import Iterable
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

def available_isas() -> tuple[str, ...]: ...
def weight_of(x: NDArray[np.float32], *, isa: str) -> list[float]:
    """2**x as the weights of a draw are computed, for tests: 0 below -125 and where x is no number.

    Args:
        x: [size], at most 0.
    """

def number_of(seed: int, position: int) -> float:
    """The number in [0, 1) that the draw at ``position`` of a sequence takes, for tests."""

def score(
    logits: NDArray[np.float32],
    token_id: int,
    logprobs: NDArray[np.float64],
    top_ids: NDArray[np.int64],
    *,
    temperature: float,
    top_p: float,
    isa: str,
) -> None:
    """Log probabilities of ``token_id`` and of the likeliest, likeliest first and equals in the order of their ids.

    None is below -9999, which stands for minus infinity, and for what logits that are no numbers have.

    Shapes:
        logits: [vocab_size], unchanged
        logprobs, written: [1 + num_top], that of ``token_id`` first
        top_ids, written: [num_top], at most vocab_size
    Args:
        temperature, top_p: Of the distribution that is meant; 1 and 1 are the model's own.
    Raises:
        ValueError: ``token_id`` is outside the vocabulary, or the arrays do not fit each other.
    """

@final
class Recipes:
    """How the tokens of each slot are chosen; each row is chosen as if it were alone.

    A row's outcome depends on its logits, its slot's recipe, its position and its mask alone: not on the batch, the
    number of threads or the instruction set, to the last bit. What the parameters mean is what
    ``trioserve.core.sampling.SamplingParams`` says.
    """

    def __new__(cls, num_slots: int, vocab_size: int) -> Self:
        """Make recipes that take the likeliest token."""

    def admit(
        self,
        slot: int,
        *,
        is_greedy: bool,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        seed: int,
        num_top: int,
        scope_temperature: float,
        scope_top_p: float,
        certain_above: float,
    ) -> None:
        """Take ``slot`` for a sequence without edits.

        Args:
            seed: 0 to 2**64 - 1.
            num_top: Alternatives to name, at most all; -1: no log probabilities.
            scope_temperature, scope_top_p: As for ``score``.
            certain_above: The probability that a certain token exceeds; 1: none is certain.
        Raises:
            ValueError: There is no such slot.
        """

    def edit(
        self,
        slot: int,
        token_ids: NDArray[np.int32],
        num_prompt_tokens: int,
        *,
        allowed_ids: Iterable[int],
        stop_ids: Iterable[int],
        first_stop: int,
        bias: Iterable[tuple[int, float]],
        bad_words: Iterable[tuple[int, ...]],
        repetition: float,
        frequency: float,
        presence: float,
    ) -> None:
        """Edit the logits of ``slot``, which has been admitted, from now on; ids beyond the vocabulary are passed over.

        Args:
            token_ids: [num_tokens], the sequence so far; all but the first ``num_prompt_tokens`` are output.
            first_stop: The first position at which one of ``stop_ids`` may be chosen.
            bias: Each id once, or the last of its values counts.
        Raises:
            ValueError: There is no such slot.
        """

    def release(self, slot: int) -> None:
        """Forget the edits of ``slot`` and what they have counted."""

    def add(self, slot: int, token_ids: Iterable[int]) -> None:
        """Let the edits of ``slot`` know of output that ``choose`` has had nothing to do with."""

    def choose(
        self,
        logits: NDArray[np.float32],
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
        masks: NDArray[np.int32],
        mask_of: NDArray[np.int64],
        token_ids: NDArray[np.int64],
        logprobs: NDArray[np.float64],
        top_ids: NDArray[np.int64],
        is_certain: NDArray[np.uint8],
        *,
        num_threads: int,
        isa: str,
    ) -> None:
        """Choose a token for each row that has none, and say how likely the tokens of all rows are.

        A slot may have several rows. Its edits know only what was there before the call, in each of them; afterwards
        they know of all.

        Shapes:
            logits: [num_rows, vocab_size], changed meanwhile and afterwards what they were
            slots, positions: [num_rows]; a token becomes number ``positions`` of its sequence, from 0
            masks: [num_masks, ceil(vocab_size / 32)], bit i % 32 of word i / 32 says whether token i is allowed
            mask_of: [num_rows], which of the masks, -1: none; or [0], none at all
            token_ids: [num_rows], -1 where one is to be chosen, which is written
            logprobs, written: [num_rows, 1 + most_top], as by ``score``, in rows whose slots want them
            top_ids, written: [num_rows, most_top], likewise
            is_certain, written: [num_rows]
        Raises:
            ValueError: The arrays do not fit each other, or name a slot, mask or token that there is not; nothing has
                happened.
        """
