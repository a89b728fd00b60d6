"""Tokens that were guessed, and which of them the sequences would have had anyway."""

from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trioserve.sampling.sampler import Samples


class Chooses(Protocol):
    """What chooses a token for each row, such as a ``Sampler``."""

    def sample(self, logits: Tensor, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> Samples:
        """As ``Sampler.sample``."""
        ...


class Guesses(NamedTuple):
    """What was tried behind the known tokens of the sequences of a step."""

    token_ids: NDArray[np.int32]
    """[num_seqs, most], of each row the first ones"""
    counts: NDArray[np.int64]
    """[num_seqs], how many of these"""

    @property
    def num_with(self) -> list[int]:
        """How many sequences have one guess or more, two or more, and so on."""
        return [int(np.count_nonzero(self.counts > place)) for place in range(self.token_ids.shape[1])]

    def of(self, chosen: NDArray[np.bool_]) -> "Guesses":
        """Those of some sequences alone, [num_seqs]."""
        return self if chosen.all() else Guesses(self.token_ids[chosen], self.counts[chosen])

    def rows(self, firsts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Which tokens of a step logits are wanted after, in rounds: the last known of each sequence, then the first
        guess of each that has one, and so on.

        Shapes:
            firsts: [num_seqs], the row of each sequence's last known token; its guesses are in the rows behind
        """
        return [firsts] + [
            firsts[self.counts >= place] + place for place in range(1, self.token_ids.shape[1] + 1)
        ]


class Round(NamedTuple):
    """A token more of some sequences."""

    members: NDArray[np.int64]
    """[num_members], which of the step's sequences"""
    samples: Samples
    """Of ``num_members`` rows."""


def verify(
    sampler: Chooses, logits: Tensor, slots: NDArray[np.int64], positions: NDArray[np.int64], guesses: Guesses
) -> list[Round]:
    """Choose a token for each sequence, one more for each whose first guess it is, and so on.

    Every token is chosen as in a step of its own, by the same numbers and after the same edits, so a guess decides
    nothing but whether there is a next choice: the tokens are those of steps without guesses, whatever was guessed.

    Shapes:
        logits: [num_rows, vocab_size], in the order of ``Guesses.rows``
        slots, positions: [num_seqs], as ``Sampler.sample`` takes them
    """
    members, first, rounds = np.arange(len(slots)), 0, list[Round]()
    for place in range(guesses.token_ids.shape[1] + 1):
        tried = np.flatnonzero(guesses.counts >= place)
        rows, first = logits[first : first + len(tried)], first + len(tried)
        if len(members) < len(tried):
            rows = rows[torch.from_numpy(tried.searchsorted(members))]
        samples = sampler.sample(rows, slots[members], positions[members] + place)
        rounds.append(Round(members, samples))
        going_on = guesses.counts[members] > place
        members, chosen = members[going_on], samples.token_ids[going_on]
        if members.size:
            members = members[chosen == guesses.token_ids[members, place]]
        if not members.size:
            break
    return rounds
