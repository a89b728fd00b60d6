"""Guesses at the next tokens of sequences that repeat themselves or their prompt, as far as these pay.

A guess costs a row of a step, whose price in tokens was measured: how many tokens the step could have computed in the
time that the row takes. A right guess gains a token. Each sequence keeps an account of these, begins with next to
nothing and is given a hundredth for each token; it may spend what it has, so that guessing costs it never more than
that, whatever its text is.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trioserve._speedups.ngrams import NgramIndex
from trioserve.core.sampling import SamplingParams
from trioserve.core.step import Speculation
from trioserve.worker.slots import SlotTable

_ALLOWANCE: Final = 0.01
"""Tokens that a sequence may lose by each that it gets."""
_FIRST_BALANCE: Final = 0.5
_MOST_BALANCE: Final = 2.0
"""What a sequence that repeated itself for long can lose when it does so no more; in tokens."""
_FIRST_RATE: Final = 0.5
_NEWEST: Final = 0.2
"""Weight of the last step in the share of right guesses."""
_NEVER: Final = np.iinfo(np.int64).max


class Drafter:
    """What a rank guesses, by slot: from what, how many, and how well that went."""

    def __init__(self, speculation: Speculation, max_num_seqs: int) -> None:
        self._index = NgramIndex(max_num_seqs, shortest=speculation.shortest, longest=speculation.longest)
        self.prices: Sequence[float] = ()
        """Of a guess in tokens, more than 0, by the number of sequences in a step less one; with more of them nothing
        is guessed."""
        self._wakes_at = np.full(max_num_seqs, _NEVER)
        """[max_num_seqs], known tokens of a sequence with which it may guess again"""
        self._balances = [0.0] * max_num_seqs
        """Tokens gained and not spent, when ``_seen`` tokens were known."""
        self._seen = [0] * max_num_seqs
        self._rates = [0.0] * max_num_seqs
        """The share of guesses, each after right ones, that were right of late."""

    def admit(self, slot: int, params: SamplingParams, num_tokens: int) -> None:
        """A sequence of so many tokens enters ``slot``; one whose tokens may be forced guesses none."""
        self._index.forget(slot)
        self._wakes_at[slot] = _NEVER if params.forces_tokens else 0
        self._balances[slot], self._seen[slot], self._rates[slot] = _FIRST_BALANCE, num_tokens, _FIRST_RATE

    def guess(
        self, table: SlotTable, slots: NDArray[np.int64], is_whole: NDArray[np.bool_], most: int
    ) -> NDArray[np.int64] | None:
        """Write guesses behind the tokens of ``slots`` in ``table``; returns how many of each, None where of none.

        Shapes:
            slots, is_whole, result: [num_seqs]; is_whole: whether a sequence computes all of its tokens now
            most: for each
        """
        if not 0 < len(slots) <= len(self.prices):
            return None
        num_tokens = table.num_tokens[slots]
        awake = np.flatnonzero((self._wakes_at[slots] <= num_tokens) & is_whole)
        if not awake.size:
            return None
        trying, known = slots[awake], num_tokens[awake]
        found = np.empty_like(known)
        self._index.draft(table.token_ids, trying, known, np.minimum(table.room(trying), most), found)
        if not found.any():
            return None
        price = self.prices[len(slots) - 1]
        counts = np.zeros_like(slots)
        for at in np.flatnonzero(found).tolist():
            counts[awake[at]] = self._affordable(int(trying[at]), int(known[at]), int(found[at]), price)
        return counts if counts.any() else None

    def learn(
        self, slots: NDArray[np.int64], num_guessed: NDArray[np.int64], num_right: NDArray[np.int64]
    ) -> None:
        """Take note of how the guesses of a step were; every argument is [num_seqs]."""
        price = self.prices[len(slots) - 1]
        for at in np.flatnonzero(num_guessed).tolist():
            slot, guessed, right = int(slots[at]), int(num_guessed[at]), int(num_right[at])
            self._balances[slot] = min(self._balances[slot] + right - guessed * price, _MOST_BALANCE)
            self._rates[slot] += _NEWEST * (right / min(right + 1, guessed) - self._rates[slot])

    def _affordable(self, slot: int, num_tokens: int, most: int, price: float) -> int:
        """How many guesses a sequence may pay for and should; where none, it sleeps until it could."""
        balance = self._balances[slot] + _ALLOWANCE * (num_tokens - self._seen[slot])
        self._balances[slot], self._seen[slot] = balance, num_tokens
        if balance < price:
            self._wakes_at[slot] = num_tokens + int((price - balance) / _ALLOWANCE) + 1
            return 0
        count, chance = 1, self._rates[slot] ** 2
        while count < most and chance > price and (count + 1) * price <= balance:
            count, chance = count + 1, chance * self._rates[slot]
        return count
