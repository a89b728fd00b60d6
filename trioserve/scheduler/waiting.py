"""The line of sequences that wait for a slot and for blocks."""

import heapq

from trioserve.core.sequence import Sequence, SequenceStatus
from trioserve.errors import QueueFull


class WaitingLine:
    """First come first served within a priority; a preempted sequence is back at its old place.

    ``push``, ``peek`` and ``pop`` are O(log n); ``discard`` is O(1) amortised: an entry that is gone is only counted
    and swept out when more than half of the heap is.
    """

    def __init__(self, max_num_reqs: int, max_num_tokens: int) -> None:
        self._max_num_reqs = max_num_reqs
        self._max_num_tokens = max_num_tokens
        self._heap: list[tuple[int, int, Sequence]] = []
        self._waiting: set[int] = set()
        self.num_tokens = 0
        """Known tokens of all that wait."""

    def __len__(self) -> int:
        return len(self._waiting)

    def check(self, num_sequences: int, num_tokens: int) -> None:
        """Whether ``num_sequences`` more of ``num_tokens`` tokens in all may wait.

        Raises:
            QueueFull: A bound would be passed. An empty line takes any one request.
        """
        if not self._waiting:
            return
        if len(self) + num_sequences > self._max_num_reqs:
            raise QueueFull(f"{len(self)} sequences are waiting, the limit is {self._max_num_reqs}")
        if self.num_tokens + num_tokens > self._max_num_tokens:
            raise QueueFull(f"{self.num_tokens} tokens are waiting, the limit is {self._max_num_tokens}")

    def hold(self, seq: Sequence) -> None:
        """Let a waiting sequence count, though its turn cannot come before it is pushed."""
        self._waiting.add(seq.seq_id)
        self.num_tokens += len(seq.token_ids)

    def push(self, seq: Sequence) -> None:
        """Let a waiting sequence queue up by its priority and age."""
        heapq.heappush(self._heap, (seq.priority, seq.seq_id, seq))
        if seq.seq_id not in self._waiting:
            self.hold(seq)

    def peek(self) -> Sequence | None:
        """The one whose turn it is, if any."""
        while self._heap and self._heap[0][1] not in self._waiting:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def pop(self) -> Sequence:
        """Take the one that ``peek`` showed."""
        seq = self.peek()
        assert seq is not None, "pop from an empty line"
        heapq.heappop(self._heap)
        self._forget(seq)
        return seq

    def discard(self, seq: Sequence) -> None:
        """Take a sequence out wherever it stands; no effect when it does not wait."""
        if seq.seq_id not in self._waiting:
            return
        self._forget(seq)
        if len(self._heap) > 2 * len(self._waiting) + 16:
            self._heap = [entry for entry in self._heap if entry[1] in self._waiting]
            heapq.heapify(self._heap)

    def _forget(self, seq: Sequence) -> None:
        assert seq.status is not SequenceStatus.RUNNING, f"{seq!r} stands in the waiting line"
        self._waiting.remove(seq.seq_id)
        self.num_tokens -= len(seq.token_ids)
