"""Log probabilities of a chosen token and of the likeliest, from the logits as the model made them."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from trioserve.core.step import TokenLogprobs
from trioserve.sampling.filters import kth_largest

LOWEST: Final = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


def token_logprobs(logits: NDArray[np.float32], token_id: int, num_top: int) -> TokenLogprobs:
    """Of ``token_id`` and of the ``num_top`` likeliest, equals in the order of their ids.

    Shapes:
        logits: [vocab_size], before any edit
    """
    largest = logits.max()
    norm = largest + np.log(np.exp(logits - largest).sum(dtype=np.float64))

    def logprob(logit: np.float32) -> float:
        return max(float(logit - norm), LOWEST)

    top_ids: list[int] = []
    if num_top:
        num_top = min(num_top, len(logits))
        candidates = np.flatnonzero(logits >= kth_largest(logits, num_top))
        order = np.argsort(-logits[candidates], kind="stable")[:num_top]
        top_ids = candidates[order].tolist()
    return TokenLogprobs(logprob(logits[token_id]), top_ids, [logprob(logits[top]) for top in top_ids])
