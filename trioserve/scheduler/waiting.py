"""The line of sequences that wait for a slot and for blocks."""

import heapq
from dataclasses import dataclass, field

from trioserve.core.sequence import Sequence, SequenceStatus
from trioserve.errors import QueueFull


@dataclass(slots=True)
class _Owner:
    last_turn: int
    """The last that he was given."""
    num_waiting: int = 0


@dataclass(slots=True)
class _Priority:
    """Those who have something waiting at one priority, and those who had their last of it served in this turn."""

    turn: int
    num_waiting: int = 0
    owners: dict[str, _Owner] = field(default_factory=dict)
    served: list[str] = field(default_factory=list)
    """Owners who had nothing more waiting at some moment of this turn."""

    def enter(self, name: str) -> int:
        """One more waits; returns its turn."""
        owner = self.owners.setdefault(name, _Owner(self.turn - 1))
        owner.num_waiting += 1
        owner.last_turn = max(self.turn, owner.last_turn + 1)
        self.num_waiting += 1
        return owner.last_turn

    def enter_again(self, name: str) -> None:
        """One waits that has its turn already."""
        self.owners.setdefault(name, _Owner(self.turn - 1)).num_waiting += 1
        self.num_waiting += 1

    def leave(self, name: str) -> None:
        """One waits no more. Turns that its owner was given and has not used are no debt of his."""
        owner = self.owners[name]
        owner.num_waiting -= 1
        self.num_waiting -= 1
        if not owner.num_waiting:
            owner.last_turn = min(owner.last_turn, self.turn)
            self.served.append(name)

    def serve(self, turn: int) -> None:
        """It is ``turn``'s turn."""
        if turn <= self.turn:
            return
        self.turn = turn
        for name in self.served:
            if name in self.owners and not self.owners[name].num_waiting:
                del self.owners[name]
        self.served.clear()


class WaitingLine:
    """Within a priority owners take turns, and each of them is first come first served; a preempted sequence is back at
    its old place.

    A sequence gets the turn after its owner's last one, or the present one if he had none in it: whoever comes waits
    for one sequence or two of each other owner, however many they have brought. Where all is one owner's, turns are
    the order of arrival.

    ``push``, ``peek`` and ``pop`` are O(log n); ``discard`` is O(1) amortised: an entry that is gone is only counted
    and swept out when more than half of the heap is.
    """

    def __init__(self, max_num_reqs: int, max_num_tokens: int) -> None:
        self._max_num_reqs = max_num_reqs
        self._max_num_tokens = max_num_tokens
        self._heap: list[tuple[int, int, int, Sequence]] = []
        self._waiting: set[int] = set()
        self._priorities: dict[int, _Priority] = {}
        self._latest_turn = 0  # of all; where a priority begins that nobody waited at
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
        at = self._priorities.setdefault(seq.priority, _Priority(self._latest_turn))
        if seq.turn is None:
            seq.turn = at.enter(seq.owner)
        else:
            at.enter_again(seq.owner)

    def push(self, seq: Sequence) -> None:
        """Let a waiting sequence queue up by its priority and turn."""
        if seq.seq_id not in self._waiting:
            self.hold(seq)
        assert seq.turn is not None
        heapq.heappush(self._heap, (seq.priority, seq.turn, seq.seq_id, seq))

    def peek(self) -> Sequence | None:
        """The one whose turn it is, if any."""
        while self._heap and self._heap[0][2] not in self._waiting:
            heapq.heappop(self._heap)
        return self._heap[0][3] if self._heap else None

    def pop(self) -> Sequence:
        """Take the one that ``peek`` showed."""
        seq = self.peek()
        assert seq is not None, "pop from an empty line"
        _, turn, _, _ = heapq.heappop(self._heap)
        self._priorities[seq.priority].serve(turn)
        self._latest_turn = max(self._latest_turn, turn)
        self._forget(seq)
        return seq

    def discard(self, seq: Sequence) -> None:
        """Take a sequence out wherever it stands; no effect when it does not wait."""
        if seq.seq_id not in self._waiting:
            return
        self._forget(seq)
        if len(self._heap) > 2 * len(self._waiting) + 16:
            self._heap = [entry for entry in self._heap if entry[2] in self._waiting]
            heapq.heapify(self._heap)

    def _forget(self, seq: Sequence) -> None:
        assert seq.status is not SequenceStatus.RUNNING, f"{seq!r} stands in the waiting line"
        self._waiting.remove(seq.seq_id)
        self.num_tokens -= len(seq.token_ids)
        at = self._priorities[seq.priority]
        at.leave(seq.owner)
        if not at.num_waiting:
            del self._priorities[seq.priority]
