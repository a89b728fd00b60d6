"""Scores prompts: the log probabilities of their tokens, chunk by chunk as they are computed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trioserve.core.step import Admission, PromptLogprobs
from trioserve.sampling.logprobs import Scores, rank_of, score
from trioserve.worker.slots import SlotTable

MakeLogits = Callable[[Tensor], Tensor]
"""[num_rows, hidden_size] -> [num_rows, vocab_size]"""
_NOT: Final = -1
_PIECE_VALUES: Final = 1 << 23
"""Logits that are made together: 32 MiB of them."""


class Stretch(NamedTuple):
    """Neighbouring tokens of one slot in a step whose successors in the prompt are to be scored."""

    slot: int
    first_row: int
    """The row of the step in which the first of them is computed."""
    start: int
    """Position of the first one's successor."""
    num_tokens: int


class PromptScorer:
    """Knows which slots hold a prompt to be scored; a step without any costs one look at an array."""

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._num_top = np.full(max_num_seqs, _NOT)
        """[max_num_seqs], alternatives to name at each position"""
        self._num_prompt_tokens = np.zeros(max_num_seqs, np.int64)

    def admit(self, admission: Admission) -> None:
        """Take note of what a sequence asks for; one back from preemption that has output is scored already."""
        wanted = admission.params.prompt_logprobs
        has_output = len(admission.token_ids) > admission.num_prompt_tokens
        self._num_top[admission.slot] = _NOT if wanted is None or has_output else wanted
        self._num_prompt_tokens[admission.slot] = admission.num_prompt_tokens

    def stretches(
        self, slots: NDArray[np.int64], counts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> list[Stretch]:
        """What a step computes that is to be scored; ``ends`` are positions; every argument is [num_seqs]."""
        asking = np.flatnonzero(self._num_top[slots] != _NOT)
        if not asking.size:
            return []
        rows = counts.cumsum() - counts
        found = []
        for index in asking:
            first = int(ends[index] - counts[index])
            # the last token of the prompt is followed by a sample, not by a token of the prompt
            last = min(int(ends[index]), int(self._num_prompt_tokens[slots[index]]) - 1)
            if last > first:
                found.append(Stretch(int(slots[index]), int(rows[index]), first + 1, last - first))
        return found

    def score(
        self, stretches: Sequence[Stretch], hidden: Tensor, make_logits: MakeLogits, table: SlotTable
    ) -> list[PromptLogprobs]:
        """The log probabilities of all stretches, whose hidden states are the rows of ``hidden``, one after the other.

        ``make_logits`` must leave them on the host.

        The logits of a whole chunk would be several hundred MB, so they are made piece by piece.
        """
        records, row = [], 0
        for stretch in stretches:
            rows = hidden[row : row + stretch.num_tokens]
            row += stretch.num_tokens
            targets = table.token_ids[stretch.slot, stretch.start : stretch.start + stretch.num_tokens]
            scores, ranks = _scores(
                make_logits, rows, targets, int(self._num_top[stretch.slot]), self._vocab_size
            )
            records.append(
                PromptLogprobs(
                    seq_id=int(table.seq_ids[stretch.slot]),
                    start=stretch.start,
                    logprobs=np.array([at.logprob for at in scores], np.float32).tobytes(),
                    top_ids=np.array([at.top_ids for at in scores], np.int32).tobytes(),
                    top_logprobs=np.array([at.top_logprobs for at in scores], np.float32).tobytes(),
                    ranks=np.array(ranks, np.int32).tobytes(),
                )
            )
        return records

    def skip(self, stretches: Sequence[Stretch], hidden: Tensor, make_logits: MakeLogits) -> None:
        """Have part in the logits that ``score`` takes on another rank."""
        row = 0
        for stretch in stretches:
            for _ in _logits_of(make_logits, hidden[row : row + stretch.num_tokens], self._vocab_size):
                pass
            row += stretch.num_tokens


def _logits_of(make_logits: MakeLogits, hidden: Tensor, vocab_size: int) -> Iterator[Tensor]:
    """Logits of all rows, piece by piece, each of use until the next."""
    step = max(1, _PIECE_VALUES // vocab_size)
    for start in range(0, len(hidden), step):
        yield make_logits(hidden[start : start + step])


def _scores(
    make_logits: MakeLogits, hidden: Tensor, targets: NDArray[np.int32], num_top: int, vocab_size: int
) -> tuple[list[Scores], list[int]]:
    """Of each target, and its rank."""
    scores, ranks = [], []
    rows = (row for piece in _logits_of(make_logits, hidden, vocab_size) for row in piece.float().numpy())
    for row, target in zip(rows, targets.tolist(), strict=True):
        scores.append(score(row, target, num_top))
        ranks.append(rank_of(row, target))
    return scores, ranks
