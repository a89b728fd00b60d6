"""Log probabilities of chosen tokens and of the likeliest, from the logits as the model made them."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trioserve.core.sampling import GREEDY_BELOW, SamplingParams
from trioserve.sampling.filters import nucleus_border

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
    """Log probabilities of some rows; none is below LOWEST."""

    logprobs: NDArray[np.float64]
    """[num_rows], of the token that each row asks about"""
    top_ids: NDArray[np.int64]
    """[num_rows, num_top], likeliest first, equals in the order of their ids"""
    top_logprobs: NDArray[np.float64]
    """[num_rows, num_top]"""


def score(
    logits: NDArray[np.float32],
    token_ids: NDArray[np.int64],
    num_top: int,
    scopes: Sequence[Scope] | None = None,
) -> Scores:
    """Of one token a row and of the ``num_top`` likeliest; a row's numbers do not depend on the rows around it.

    Shapes:
        logits: [num_rows, vocab_size], before any edit
        token_ids: [num_rows]
        scopes: [num_rows]; None: the model's own distribution for all
    """
    top_ids = top_of(logits, num_top)
    asked = np.concatenate((token_ids[:, None], top_ids), axis=1)
    found = np.empty(asked.shape, np.float64)
    for row, ids in enumerate(asked):
        found[row] = _logprobs(logits[row], ids, MODELS_OWN if scopes is None else scopes[row])
    return Scores(found[:, 0], top_ids, found[:, 1:])


def top_of(logits: NDArray[np.float32], num_top: int) -> NDArray[np.int64]:
    """The ``num_top`` likeliest ids of each row, at most all, likeliest first, equals in the order of their ids.

    Shapes:
        logits: [num_rows, vocab_size]
        result: [num_rows, num_top]
    """
    num_rows, vocab_size = logits.shape
    num_top = min(num_top, vocab_size)
    if not num_top or not num_rows:
        return np.empty((num_rows, num_top), np.int64)
    # torch finds the k-th largest many times faster than numpy, but picks any of those equal to it
    borders = torch.from_numpy(logits).topk(num_top, dim=1).values[:, -1].numpy()
    if np.isnan(borders).any():  # a broken model; its rank must not break
        logits = np.nan_to_num(logits, nan=-np.inf)
        borders = torch.from_numpy(logits).topk(num_top, dim=1).values[:, -1].numpy()
    rows, ids = np.nonzero(logits >= borders[:, None])
    order = np.lexsort((ids, -logits[rows, ids], rows))
    firsts = rows.searchsorted(np.arange(num_rows))  # already ascending, and so in the new order
    found: NDArray[np.int64] = ids[order[firsts[:, None] + np.arange(num_top)]]
    return found


def probability(logits: NDArray[np.float32], token_id: int) -> float:
    """What the model itself gives to ``token_id``.

    Shapes:
        logits: [vocab_size], before any edit
    """
    return float(1 / np.exp(logits - logits[token_id]).sum(dtype=np.float64))


def _logprobs(logits: NDArray[np.float32], ids: NDArray[np.int64], scope: Scope) -> NDArray[np.float64]:
    largest = logits.max()
    weights = logits - largest
    if scope.temperature != 1.0:
        weights /= np.float32(scope.temperature)
    found = weights[ids].astype(np.float64)
    np.exp(weights, out=weights)
    if scope.top_p < 1.0:
        weights[weights < nucleus_border(weights, scope.top_p)] = 0
        found[weights[ids] == 0] = -np.inf
    found -= np.log(weights.sum(dtype=np.float64))
    clamped: NDArray[np.float64] = np.fmax(found, LOWEST)
    return clamped
