"""Log probabilities of chosen tokens and of the likeliest, from the logits as the model made them."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from trioserve.core.sampling import MAX_LOGPROBS
from trioserve.core.step import TokenLogprobs

LOWEST: Final = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: Sequence[int]) -> list[TokenLogprobs]:
    """One record a row.

    Shapes:
        logits: [num_rows, vocab_size], before any edit
        token_ids: [num_rows] int64, the chosen ones
        num_top: [num_rows], 0 to MAX_LOGPROBS alternatives each
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1).clamp_(min=LOWEST)
    chosen = logprobs.gather(1, token_ids[:, None])[:, 0].tolist()
    if not any(num_top):
        return [TokenLogprobs(logprob, [], []) for logprob in chosen]
    # always as many as may be asked for: which of two equals comes first must not depend on the batch
    values, ids = logprobs.topk(min(MAX_LOGPROBS, logprobs.shape[1]), dim=-1)
    return [
        TokenLogprobs(logprob, row_ids[:count], row_values[:count])
        for logprob, row_ids, row_values, count in zip(
            chosen, ids.tolist(), values.tolist(), num_top, strict=True
        )
    ]
