"""Log probabilities of chosen tokens and of the likeliest, from the logits as the model made them."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trioserve._speedups import sampling as native
from trioserve.core.sampling import GREEDY_BELOW, SamplingParams
from trioserve.kernels.cpu import ISA

LOWEST: Final = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


class Scope(NamedTuple):
    """Of which distribution log probabilities are; as it stands, of the model's own."""

    temperature: float = 1.0
    top_p: float = 1.0

    @classmethod
    def of(cls, params: SamplingParams) -> "Scope":
        """What ``params`` ask for."""
        return cls(
            max(params.temperature, GREEDY_BELOW) if params.temp_scaled_logprobs else 1.0,
            params.top_p if params.top_p_normalized_logprobs else 1.0,
        )


MODELS_OWN: Final = Scope()


class Scores(NamedTuple):
    """Log probabilities at one position; none is below LOWEST."""

    logprob: float
    """Of the token asked about."""
    top_ids: NDArray[np.int64]
    """[num_top], likeliest first, equals in the order of their ids"""
    top_logprobs: NDArray[np.float64]
    """[num_top]"""


def score(logits: NDArray[np.float32], token_id: int, num_top: int, scope: Scope = MODELS_OWN) -> Scores:
    """Of ``token_id`` and of the ``num_top`` likeliest, at most all.

    Shapes:
        logits: [vocab_size], before any edit
    """
    top_ids = np.empty(min(num_top, len(logits)), np.int64)
    logprobs = np.empty(1 + len(top_ids))
    native.score(
        logits, token_id, logprobs, top_ids, temperature=scope.temperature, top_p=scope.top_p, isa=ISA
    )
    return Scores(float(logprobs[0]), top_ids, logprobs[1:])


def rank_of(logits: NDArray[np.float32], token_id: int) -> int:
    """The place of ``token_id`` in the order of ``score``, from 1.

    Shapes:
        logits: [vocab_size]
    """
    own = logits[token_id]
    return 1 + int(np.count_nonzero(logits > own)) + int(np.count_nonzero(logits[:token_id] == own))
