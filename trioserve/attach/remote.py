"""What requests use of the owner in a process that is attached to it: its engine, and what it keeps for all."""

import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import trio

from trioserve._speedups.detokenizer import Vocabulary
from trioserve.attach.attachment import Answer, Attachment
from trioserve.attach.wire import Call, Granted, Head, Keep, Part, Permit, Stop, Taken, open_message
from trioserve.core.delta import OutputDelta
from trioserve.core.sequence import Sequence
from trioserve.engine.checkpoint import ModelFolder
from trioserve.engine.engine import EngineStatistics
from trioserve.engine.lifecycle import Lifecycle
from trioserve.engine.mailbox import Mailbox
from trioserve.engine.permits import Rate
from trioserve.errors import TrioserveError, WireError
from trioserve.store.database import StoredCompletion

logger = logging.getLogger(__name__)

_KEEP_S: Final = 5.0
"""How long an answer waits for the owner to have taken it into its store."""


class RemoteEngine:
    """``engine.face.EngineFace`` for a process that does not own the engine."""

    def __init__(self, attachment: Attachment, vocabulary: Vocabulary) -> None:
        self._attachment = attachment
        self._vocabulary = vocabulary
        self._places: dict[int, tuple[int, int]] = {}  # seq_id -> ticket and index

    @property
    def lifecycle(self) -> Lifecycle:
        """Where this process stands, and the owner's works."""
        return self._attachment.lifecycle

    @property
    def model(self) -> ModelFolder:
        """What is served."""
        return self._attachment.model

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together."""
        return self.model.max_model_len

    @property
    def vocabulary(self) -> Vocabulary:
        """What each token stands for."""
        return self._vocabulary

    def check(self, num_prompt_tokens: int, *, num_sequences: int = 1) -> int:
        """Raise what can be told here; the owner alone knows the queue, and answers to ``stream``.

        Raises:
            NotReady, Draining: Nothing is served now.
            PromptTooLong: The prompt leaves no room for an answer.
        """
        self.lifecycle.check()
        self._attachment.check()
        return self.model.room_for(num_prompt_tokens)

    @contextmanager
    def stream(self, sequences: list[Sequence]) -> Iterator[Mailbox]:
        """Run the choices of one request for as long as the block is open; leaving it early aborts them."""
        mailbox = Mailbox(len(sequences), is_admitted=False)
        ticket = self._attachment.claim(_Stream(mailbox), lambda ticket: open_message(ticket, sequences))
        try:
            for index, seq in enumerate(sequences):
                self._places[seq.seq_id] = ticket, index
            yield mailbox
        finally:
            for seq in sequences:
                del self._places[seq.seq_id]
            self._attachment.close(ticket)

    def stop(self, sequences: list[Sequence]) -> None:
        """End those of ``sequences`` that run or wait, as if their answers had ended there."""
        indices: dict[int, list[int]] = {}
        for seq in sequences:
            if (place := self._places.get(seq.seq_id)) is not None:
                indices.setdefault(place[0], []).append(place[1])
        for ticket, of_ticket in indices.items():
            self._attachment.tell(ticket, Stop(ticket, of_ticket))

    def abort(self, error: str) -> int:
        """End every request of this process with an error that says ``error``; returns how many there were."""
        return self._attachment.abort(error)

    def statistics(self) -> EngineStatistics:
        """The counts that the owner told last."""
        counts, counted_at = self._attachment.counts
        age_s = counts.last_step_age_s
        if age_s is None:
            return counts
        return replace(counts, last_step_age_s=age_s + trio.current_time() - counted_at)


@dataclass(frozen=True, slots=True)
class _Stream:
    """The claimant of sequences."""

    mailbox: Mailbox

    def take(self, answer: Answer) -> None:
        self.mailbox.admit()

    def take_delta(self, index: int, delta: OutputDelta) -> None:
        self.mailbox.put_nowait(index, delta)
        self.mailbox.hand_over()

    def fail(self, failure: TrioserveError) -> None:
        self.mailbox.fail(failure)


class RemoteOwner:
    """What the owner does for all processes besides running sequences."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment

    async def permit(self, key: str) -> tuple[Callable[[], None], Rate | None]:
        """``Permits.take`` of the owner's; returns what gives it back, too.

        Raises:
            QueueFull: None is left.
            RateLimited: The key's requests of a minute are used up.
            NotReady: There is no owner just now.
        """
        answers = _Answers()
        ticket = self._attachment.claim(answers, lambda ticket: Permit(ticket, key))
        try:
            granted = await answers.next()
        except BaseException:
            self._attachment.close(ticket)
            raise
        rate = granted.rate if isinstance(granted, Granted) else None
        return partial(self._attachment.close, ticket), rate

    async def keep(self, record: StoredCompletion) -> None:
        """Have ``record`` stored; then whoever asks finds it. Without an owner it is lost, with a line in the log."""
        answers = _Answers()
        try:
            ticket = self._attachment.claim(answers, lambda ticket: Keep(ticket, record))
            try:
                with trio.fail_after(_KEEP_S):
                    await answers.next()
            finally:
                self._attachment.close(ticket)
        except TrioserveError as exc:
            logger.warning("an answer is not stored: %s", exc)
        except trio.TooSlowError:
            logger.warning("an answer is not stored: the engine's process does not answer")

    @contextmanager
    def call(self, ask: Callable[[int], Call]) -> "Iterator[RemoteCall]":
        """Have the owner's app answer a request; leaving the block early is the end of the request.

        Raises:
            NotReady: There is no owner just now.
        """
        answers = _Answers()
        ticket = self._attachment.claim(answers, ask)
        try:
            yield RemoteCall(self._attachment, ticket, answers)
        finally:
            self._attachment.close(ticket)


class RemoteCall:
    """A request that the owner's app answers."""

    def __init__(self, attachment: Attachment, ticket: int, answers: "_Answers") -> None:
        self._attachment = attachment
        self._ticket = ticket
        self._answers = answers

    async def head(self) -> Head:
        """Wait for the beginning of the answer.

        Raises:
            TrioserveError: There will be none.
        """
        head = await self._answers.next()
        if not isinstance(head, Head):
            raise WireError("an answer began without its head")
        return head

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """What follows; the owner makes the next part when this one is taken.

        Raises:
            TrioserveError: The rest will not come.
        """
        while True:
            part = await self._answers.next()
            if not isinstance(part, Part):
                raise WireError("an answer began twice")
            if part.data:
                yield part.data
            if part.is_last:
                return
            self._attachment.tell(self._ticket, Taken(self._ticket))


class _Answers:
    """The claimant of everything else: one waits for the owner's words, one after the other."""

    def __init__(self) -> None:
        self._answers: list[Answer] = []
        self._failure: TrioserveError | None = None
        self._filled = trio.Event()

    def take(self, answer: Answer) -> None:
        self._answers.append(answer)
        self._filled.set()

    def take_delta(self, index: int, delta: OutputDelta) -> None:
        """No sequences of ours run."""

    def fail(self, failure: TrioserveError) -> None:
        self._failure = failure
        self._filled.set()

    async def next(self) -> Answer:
        """Wait for the next one.

        Raises:
            TrioserveError: There will be none.
        """
        while not self._answers:
            if self._failure is not None:
                raise self._failure
            await self._filled.wait()
            self._filled = trio.Event()
        return self._answers.pop(0)
