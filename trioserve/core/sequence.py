"""A stream of tokens in the engine and the states it moves through."""

import itertools
from array import array
from collections.abc import Sequence as SequenceOf
from enum import Enum
from typing import Final

from trioserve.core.sampling import SamplingParams

_seq_ids: Final = itertools.count(1)


class SequenceStatus(Enum):
    """Where a sequence stands. Prefill and decode are not states: they follow from the counts."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(Enum):
    """Why a sequence ended; GRAMMAR, ABORT and ERROR never reach the wire as such."""

    STOP = "stop"
    LENGTH = "length"
    REPETITION = "repetition"
    GRAMMAR = "grammar"
    """Its grammar became too complex to go on; the client can fix that."""
    ABORT = "abort"
    ERROR = "error"


_NEXT: Final = {
    SequenceStatus.WAITING: frozenset({SequenceStatus.RUNNING, SequenceStatus.FINISHED}),
    SequenceStatus.RUNNING: frozenset({SequenceStatus.WAITING, SequenceStatus.FINISHED}),  # preempted, done
    SequenceStatus.FINISHED: frozenset[SequenceStatus](),
}


class Sequence:
    """One stream of tokens: a prompt and what the model adds to it. A request with ``n`` choices makes ``n`` of these.

    The scheduler owns all counts; steps overlap, so they speak of what is *planned*, and ``num_pending_tokens`` of the
    samples that are still on their way back.
    """

    __slots__ = (
        "_status",
        "block_table",
        "cache_salt",
        "finish_reason",
        "forces_tokens",
        "num_admitted_tokens",
        "num_cached_tokens",
        "num_certain_tokens",
        "num_computed_tokens",
        "num_pending_drafts",
        "num_pending_tokens",
        "num_prompt_tokens",
        "num_registered_blocks",
        "owner",
        "params",
        "pattern_runs",
        "priority",
        "seq_id",
        "slot",
        "stop_reason",
        "token_ids",
        "turn",
    )

    def __init__(
        self,
        prompt_token_ids: SequenceOf[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: bytes = b"",
        owner: str = "",
    ) -> None:
        self.seq_id = next(_seq_ids)
        self.params = params
        self.forces_tokens = params.forces_tokens
        """Whether a step may add more tokens than the one that it samples."""
        self.priority = priority
        """Lower goes first; equal ones take turns by their owner, and first come first served within his."""
        self.owner = owner
        """Whose it is."""
        self.turn: int | None = None
        """Its place in the line of its priority, which the line gives it."""
        self.cache_salt = cache_salt
        """Only sequences of one salt share KV blocks."""
        self.token_ids = array("i", prompt_token_ids)
        """Prompt, then output; known tokens only."""
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_computed_tokens = 0
        """Tokens whose KV is present, or will be when the planned steps are done."""
        self.num_admitted_tokens = 0
        """Tokens known when it entered its slot; once they are computed, it decodes."""
        self.num_pending_tokens = 0
        """Tokens sampled by planned steps whose results are not back; what is forced or guessed behind them is not
        foreseen."""
        self.num_pending_drafts = 0
        """Tokens that these steps may have guessed and found right, at most."""
        self.num_cached_tokens = 0
        """Prompt tokens that the prefix cache had at the first admission."""
        self.num_registered_blocks = 0
        """Leading blocks of the table that the prefix map knows or has been told of."""
        self.num_certain_tokens = 0
        """Last output tokens, one after the other, that passed the threshold of ``params.early_stop``."""
        self.pattern_runs: dict[int, int] = {}
        """For ``params.repetition_detection``: p -> last output tokens, one after the other, that equal the one p
        before."""
        self.block_table: list[int] = []
        self.slot: int | None = None
        """The rank's row for this sequence while it runs."""
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self._status = SequenceStatus.WAITING

    def __repr__(self) -> str:
        return (
            f"<Sequence {self.seq_id} {self._status.value}: {self.num_prompt_tokens} prompt + "
            f"{self.num_output_tokens} output tokens, {self.num_computed_tokens} computed>"
        )

    @property
    def status(self) -> SequenceStatus:
        """Moved by ``start``, ``preempt`` and ``finish`` only."""
        return self._status

    @property
    def num_output_tokens(self) -> int:
        """Output tokens that are known."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def scores_prompt(self) -> bool:
        """Whether the log probabilities of its prompt are still to come, for which all of it must be computed."""
        return self.params.prompt_logprobs is not None and not self.num_output_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens known or certain to be on their way."""
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens a step could compute now; of a decoding sequence 1, and those that were forced since its last step."""
        return self.num_tokens - self.num_computed_tokens

    def start(self, slot: int, block_table: list[int], num_computed_tokens: int) -> None:
        """Enter ``slot`` with blocks of which the first hold ``num_computed_tokens`` tokens."""
        self._move(SequenceStatus.RUNNING)
        self.slot, self.block_table, self.num_computed_tokens = slot, block_table, num_computed_tokens
        self.num_admitted_tokens = len(self.token_ids)

    def preempt(self) -> list[int]:
        """Give the blocks back and wait again; the tokens stay, the KV is recomputed."""
        self._move(SequenceStatus.WAITING)
        return self._leave()

    def finish(self, reason: FinishReason) -> list[int]:
        """End for good; the blocks that it held are the caller's."""
        self._move(SequenceStatus.FINISHED)
        self.finish_reason = reason
        return self._leave()

    def _leave(self) -> list[int]:
        freed, self.block_table = self.block_table, []
        self.slot, self.num_computed_tokens, self.num_registered_blocks = None, 0, 0
        return freed

    def _move(self, status: SequenceStatus) -> None:
        assert status in _NEXT[self._status], f"{self!r} cannot become {status.value}"
        self._status = status
