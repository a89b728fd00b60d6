"""Guesses at the next tokens of sequences that repeat themselves or their prompt, as far as these pay.

A step with guesses takes longer: by something for there being any, and by something for each. That was measured, in
tokens: how many tokens the step could have computed in that time. A right guess gains a token. Each sequence keeps an
account of these, begins with next to nothing and is given a two-hundredth for each token; it may spend what it has, so
that guessing costs it no more than that, whatever its text is. Where steps with guesses take longer than was measured,
as when something else wants the cores, guesses become dearer.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trioserve._speedups.ngrams import NgramIndex
from trioserve.core.sampling import SamplingParams
from trioserve.core.step import Speculation
from trioserve.worker.slots import SlotTable

_ALLOWANCE: Final = 0.005
"""Tokens that a sequence may lose by each that it gets."""
_FIRST_BALANCE: Final = 0.5
_MOST_BALANCE: Final = 2.0
"""What a sequence that repeated itself for long can lose when it does so no more; in tokens."""
_FIRST_RATE: Final = 0.5
_NEWEST: Final = 0.2
"""Weight of the last step in the share of right guesses."""
_LONGEST_REST: Final = 32
"""Tokens after which a sequence asks for the price again."""
_FACTORS: Final = (0.5, 20.0)
"""Between what times may make guesses cheaper or dearer."""
_CALMING: Final = 0.01
"""By what share of the way each step without guesses brings prices back to those measured."""
_NEVER: Final = np.iinfo(np.int64).max


class Price(NamedTuple):
    """What guesses cost in a step, in tokens."""

    any: float
    """For there being some."""
    each: float
    """For each."""

    def of(self, num_guesses: int) -> float:
        """What so many cost together."""
        return self.any + self.each * num_guesses


class Drafter:
    """What a rank guesses, by slot: from what, how many, and how well that went."""

    def __init__(self, speculation: Speculation, table: SlotTable) -> None:
        """Guess from what ``table`` has."""
        max_num_seqs = len(table.num_tokens)
        self._table = table
        self._wakes_at = np.full(max_num_seqs, _NEVER)
        """[max_num_seqs], known tokens of a sequence with which it may guess again"""
        self._index = NgramIndex(
            table.token_ids,
            table.num_tokens,
            table.limits,
            self._wakes_at,
            shortest=speculation.shortest,
            longest=speculation.longest,
        )
        self.prices: Sequence[Price] = ()
        """By the number of sequences in a step less one; with more of them nothing is guessed."""
        self._factor = 1.0
        """By which guesses cost more than was measured."""
        self._plain_s: dict[int, float] = {}
        """Seconds of a step without guesses, of late, by its sequences."""
        self._balances = [0.0] * max_num_seqs
        """Tokens gained and not spent, when ``_seen`` tokens were known."""
        self._seen = [0] * max_num_seqs
        self._rates = [0.0] * max_num_seqs
        """The share of guesses, each after right ones, that were right of late."""

    def admit(self, slot: int, params: SamplingParams) -> None:
        """A sequence enters ``slot``, with its tokens in the table; one whose tokens may be forced guesses none."""
        self._index.forget(slot)
        self._wakes_at[slot] = _NEVER if params.forces_tokens else 0
        self._balances[slot], self._rates[slot] = _FIRST_BALANCE, _FIRST_RATE
        self._seen[slot] = int(self._table.num_tokens[slot])

    def guess(
        self, slots: NDArray[np.int64], is_whole: NDArray[np.bool_], most: int
    ) -> NDArray[np.int64] | None:
        """Write guesses behind the tokens of ``slots`` in the table; returns how many of each, None where of none.

        Shapes:
            slots, is_whole, result: [num_seqs]; is_whole: whether a sequence computes all of its tokens now
            most: for each
        """
        if len(slots) > len(self.prices):
            return None
        counts = np.empty_like(slots)
        num_guesses = self._index.draft(slots, is_whole.view(np.uint8), most, counts)
        if not num_guesses:
            return None
        price = self.prices[len(slots) - 1]
        found = [(at, int(slots[at]), int(counts[at])) for at in counts.nonzero()[0].tolist()]
        while num_guesses:
            counts[:] = 0
            one = self._factor * price.of(num_guesses) / num_guesses
            for at, slot, length in found:
                counts[at] = self._affordable(slot, length, self._factor * price.each, one)
            num_affordable = int(counts.sum())
            if num_affordable == num_guesses:
                return counts
            num_guesses = num_affordable  # what is not guessed makes the rest dearer
        return None

    def learn(
        self, slots: NDArray[np.int64], num_guessed: NDArray[np.int64], num_right: NDArray[np.int64]
    ) -> None:
        """Take note of how the guesses of a step were; every argument is [num_seqs]."""
        num_guesses = int(num_guessed.sum())
        price = self._factor * self.prices[len(slots) - 1].of(num_guesses) / num_guesses
        for at in num_guessed.nonzero()[0].tolist():
            slot, guessed, right = int(slots[at]), int(num_guessed[at]), int(num_right[at])
            self._balances[slot] = min(self._balances[slot] + right - guessed * price, _MOST_BALANCE)
            self._rates[slot] += _NEWEST * (right / min(right + 1, guessed) - self._rates[slot])

    def time(self, num_seqs: int, num_guesses: int, seconds: float) -> None:
        """Take note of how long a step of so many sequences took in which each computed a token, and guesses."""
        plain_s = self._plain_s.get(num_seqs)
        if not num_guesses:
            self._plain_s[num_seqs] = seconds if plain_s is None else plain_s + _NEWEST * (seconds - plain_s)
            self._factor += _CALMING * (1.0 - self._factor)
        elif plain_s is not None and num_seqs <= len(self.prices):
            spent = (seconds - plain_s) / plain_s * num_seqs
            least, most = _FACTORS
            factor = min(max(spent / self.prices[num_seqs - 1].of(num_guesses), least), most)
            self._factor += _NEWEST * (factor - self._factor)

    def _affordable(self, slot: int, most: int, next_price: float, price: float) -> int:
        """How many guesses a sequence may pay for and should; where none, it sleeps until it might."""
        num_tokens = int(self._table.num_tokens[slot])
        balance = self._balances[slot] + _ALLOWANCE * (num_tokens - self._seen[slot])
        self._balances[slot], self._seen[slot] = balance, num_tokens
        if balance < price:
            rest = int((price - balance) / _ALLOWANCE) + 1
            self._wakes_at[slot] = num_tokens + min(rest, _LONGEST_REST)
            return 0
        count, chance = 1, self._rates[slot] ** 2
        while count < most and chance > next_price and (count + 1) * price <= balance:
            count, chance = count + 1, chance * self._rates[slot]
        return count
