"""Logits to weights, with temperature, min-p, top-k and top-p; values decide, never the order of ids.

Each filter keeps whatever is as likely as the last one it keeps, so that a tie never depends on how a sort broke it.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trioserve.sampling.random import padded_size

_NUCLEUS: Final = 512
"""Candidates among which the border of top-p is looked for before all ids are sorted."""


def sampling_weights(
    logits: Tensor,
    temperature: NDArray[np.float32],
    top_k: NDArray[np.int64],
    top_p: NDArray[np.float64],
    min_p: NDArray[np.float32],
) -> Tensor:
    """What ``draw`` picks by: proportional to the probabilities, 0 where filtered, 1 at the likeliest.

    min-p and top-k look at the distribution after temperature, top-p at what they leave, renormalised.

    Shapes:
        logits: [num_rows, vocab_size] float32, overwritten
        temperature, top_k, top_p, min_p: [num_rows]; 0, 1 and 0 switch top_k, top_p and min_p off
        result: [num_rows, padded_size(vocab_size)] float32
    """
    num_rows, vocab_size = logits.shape
    _mask_top_k(logits, top_k)
    logits -= logits.amax(-1, keepdim=True)
    logits /= torch.from_numpy(temperature)[:, None]
    weights = logits.new_zeros((num_rows, padded_size(vocab_size)))
    torch.exp(logits, out=weights[:, :vocab_size])
    if min_p.any():
        weights.masked_fill_(weights < torch.from_numpy(min_p)[:, None], 0.0)
    _mask_top_p(weights, top_p)
    return weights


def _mask_top_k(logits: Tensor, top_k: NDArray[np.int64]) -> None:
    rows = np.flatnonzero((top_k > 0) & (top_k < logits.shape[1]))
    if not rows.size:
        return
    index, counts = torch.from_numpy(rows), torch.from_numpy(top_k[rows])
    largest = logits[index].topk(int(counts.max()), dim=-1).values
    border = largest.gather(1, counts[:, None] - 1)
    logits[index] = logits[index].masked_fill(logits[index] < border, -torch.inf)


def _mask_top_p(weights: Tensor, top_p: NDArray[np.float64]) -> None:
    rows = np.flatnonzero(top_p < 1.0)
    if not rows.size:
        return
    index = torch.from_numpy(rows)
    chosen = weights[index]
    wanted = torch.from_numpy(top_p[rows])[:, None] * chosen.sum(-1, keepdim=True, dtype=torch.float64)
    border, found = _nucleus_border(chosen, wanted, _NUCLEUS)
    if not found.all():
        flat = ~found[:, 0]
        border[flat], _ = _nucleus_border(chosen[flat], wanted[flat], chosen.shape[1])
    weights[index] = chosen.masked_fill(chosen < border, 0.0)


def _nucleus_border(weights: Tensor, wanted: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """The weight at which the largest weights together reach ``wanted``, and whether so few candidates reach it.

    Shapes:
        weights: [num_rows, num_weights]
        wanted: [num_rows, 1] float64
        results: [num_rows, 1] float32, bool
    """
    largest = weights.topk(min(num_candidates, weights.shape[1]), dim=-1).values
    sums = largest.cumsum(-1, dtype=torch.float64)
    crossing = (sums < wanted).sum(-1, keepdim=True)
    found = crossing < largest.shape[1]
    return largest.gather(1, crossing.clamp(max=largest.shape[1] - 1)), found
