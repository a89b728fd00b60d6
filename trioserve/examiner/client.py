"""Has forms examined elsewhere: by processes that are killed when one of them takes too much."""

import hashlib
import logging
import os
from dataclasses import dataclass, field
from typing import Final

import msgspec
import trio

from trioserve.core.forms import AnswerForm
from trioserve.core.sampling import Grammar
from trioserve.engine.checkpoint import ModelFolder
from trioserve.errors import InvalidGrammar, QueueFull, SettingsError, Unavailable, UnsupportedParameter
from trioserve.examiner.cache import Outcome, OutcomeCache, Refusal
from trioserve.examiner.child import ExaminingProcess, ProcessFailed
from trioserve.examiner.sizes import num_bytes
from trioserve.examiner.wire import Opening
from trioserve.grammars.registry import backend_named
from trioserve.settings import Settings

logger = logging.getLogger(__name__)

_RETRY_S: Final = 2.0
"""Between attempts to start a process where the last one did not start."""
_DIGEST_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class ExaminerStatistics:
    """What an examiner is doing."""

    num_waiting: int
    """Forms that no process has taken up yet."""
    num_known: int
    """Outcomes that are remembered."""
    pids: tuple[int, ...]
    """Of the processes that are ready or at work."""


@dataclass(eq=False, slots=True)
class _Examination:
    """A form on its way, and those who wait for it."""

    key: bytes
    form: AnswerForm
    num_waiting: int = 0
    done: trio.Event = field(default_factory=trio.Event)
    outcome: Outcome | None = None
    """None once it is done: it was given up, which says nothing of the form."""


class Examiner:
    """Makes grammars of the forms that requests to one model ask for; ``run`` must run meanwhile."""

    def __init__(self, settings: Settings, model: ModelFolder) -> None:
        self.backend = backend_named(settings.guided_decoding_backend)
        """Which of ``trioserve.grammars`` is behind it; empty where requests may ask for no form."""
        self._settings = settings
        self._opening = Opening(
            backend=self.backend,
            tokenizer_path=str(model.tokenizer_path),
            vocab_size=model.vocab_size,
            eos_token_ids=list(model.eos_token_ids),
            disable_any_whitespace=settings.guided_decoding_disable_any_whitespace,
            max_depth=settings.max_grammar_depth,
            memory_bytes=settings.grammar_memory_bytes,
        )
        self._reason = "" if self.backend else "its setting guided_decoding_backend is off"
        """Why this server takes no forms, where it takes none."""
        self._cache = OutcomeCache(settings.max_cached_grammars)
        self._pending: dict[bytes, _Examination] = {}
        self._put, self._line = trio.open_memory_channel[_Examination](settings.max_num_queued_reqs)
        self._wanted = trio.Event()
        """Set when a form waits because every process is busy."""
        self._processes: set[ExaminingProcess] = set()

    async def grammar(self, form: AnswerForm, *, param: str) -> Grammar:
        """The grammar of ``form``, which came in the field ``param``; examined, so that it compiles, and soon.

        Raises:
            InvalidGrammar: The form is broken, cannot be expressed, or takes more than it may.
            UnsupportedParameter: There is no backend.
            QueueFull: Too many forms wait to be examined.
            Unavailable: No process can be started now.
        """
        self._check_backend(param)
        size, limit = num_bytes(form.body), self._settings.max_grammar_bytes
        if size > limit:
            raise InvalidGrammar(
                f"{param}: at most max_grammar_bytes = {limit} bytes, not {size}", param=param
            )
        key = _digest(msgspec.msgpack.encode(form))
        outcome = self._cache.get(key) or await self._outcome(key, form)
        self._check_backend(param)  # that there is none may have turned out meanwhile
        if outcome is None:
            raise Unavailable("no form of an answer can be examined now", retry_after_s=_RETRY_S)
        if isinstance(outcome, Refusal):
            raise InvalidGrammar(f"{param}: {outcome.reason}", param=param)
        return outcome

    def statistics(self) -> ExaminerStatistics:
        """What is going on now."""
        return ExaminerStatistics(
            num_waiting=self._line.statistics().current_buffer_used,
            num_known=len(self._cache),
            pids=tuple(process.pid for process in self._processes),
        )

    async def run(self) -> None:
        """Keep processes until cancelled: one from the beginning, further ones once all are busy, up to half as many as
        there are CPUs. Returns at once where there is no backend.

        Raises:
            SettingsError: The backend that the settings name is not to be had for this model.
        """
        if not self.backend:
            return
        try:
            first = await self._open_first()
        except SettingsError as exc:
            if self._settings.guided_decoding_backend != "auto":
                raise
            logger.warning("requests may ask for no form of their answers: %s", exc)
            self._reason = str(exc)
            self._give_up_waiting()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._attend, first)
            for _ in range(_max_processes(self._settings) - 1):
                await self._wanted.wait()
                self._wanted = trio.Event()
                nursery.start_soon(self._attend, None)

    # --- forms ---

    def _check_backend(self, param: str) -> None:
        if self._reason:
            raise UnsupportedParameter(f"{param}: not supported by this server: {self._reason}", param=param)

    async def _outcome(self, key: bytes, form: AnswerForm) -> Outcome | None:
        """What comes of ``form``: those who ask for the same at the same time share one examination."""
        examination = self._pending.get(key) or self._enqueue(_Examination(key, form))
        examination.num_waiting += 1
        try:
            await examination.done.wait()
        finally:
            examination.num_waiting -= 1
        return examination.outcome

    def _enqueue(self, examination: _Examination) -> _Examination:
        try:
            self._put.send_nowait(examination)
        except trio.WouldBlock:
            limit = self._settings.max_num_queued_reqs
            raise QueueFull(
                f"{limit} forms of answers wait to be examined; max_num_queued_reqs is the limit"
            ) from None
        self._pending[examination.key] = examination
        if self._line.statistics().current_buffer_used:
            self._wanted.set()
        return examination

    def _conclude(self, examination: _Examination, outcome: Outcome | None) -> None:
        del self._pending[examination.key]
        if outcome is not None:
            self._cache.put(examination.key, outcome)
        examination.outcome = outcome
        examination.done.set()

    def _give_up_waiting(self) -> None:
        while True:
            try:
                examination = self._line.receive_nowait()
            except trio.WouldBlock:
                return
            self._conclude(examination, None)

    # --- processes ---

    async def _open(self) -> ExaminingProcess:
        return await ExaminingProcess.open(self._opening, timeout_s=self._settings.start_timeout_s)

    async def _open_first(self) -> ExaminingProcess:
        """A process, or a reason for the operator."""
        try:
            return await self._open()
        except ProcessFailed as exc:
            raise SettingsError(f"guided_decoding_backend: a process of {self.backend} {exc}") from exc

    async def _open_again(self) -> ExaminingProcess:
        """Another one, sooner or later; nobody waits for it who came before it could be tried."""
        while True:
            try:
                return await self._open()
            except (ProcessFailed, SettingsError) as exc:
                logger.error("a process that examines grammars did not start: %s", exc)
                self._give_up_waiting()
                await trio.sleep(_RETRY_S)

    async def _attend(self, process: ExaminingProcess | None) -> None:
        """Examine what waits, in one process after the other."""
        while True:
            process = process or await self._open_again()
            self._processes.add(process)
            try:
                await self._use(process)
            finally:
                self._processes.remove(process)
                await process.aclose()
            process = None

    async def _use(self, process: ExaminingProcess) -> None:
        """Examine what waits until the process is of no more use."""
        async for examination in self._line:
            if not examination.num_waiting:
                self._conclude(examination, None)
                continue
            try:
                outcome, is_last = await self._examine(process, examination.form)
            except BaseException:
                self._conclude(examination, None)
                raise
            self._conclude(examination, outcome)
            if is_last:
                return

    async def _examine(self, process: ExaminingProcess, form: AnswerForm) -> tuple[Outcome, bool]:
        """What comes of ``form``, and whether the process is of no more use."""
        settings = self._settings
        try:
            finding = await process.find(form, timeout_s=settings.grammar_timeout_s)
        except ProcessFailed as exc:
            logger.warning("a process that examined a grammar %s", exc)
            reason = (
                f"it takes more than grammar_memory_bytes = {settings.grammar_memory_bytes} or is too complex"
            )
            return Refusal(reason, is_lasting=False), True
        if finding is None:
            reason = f"it could not be examined within grammar_timeout_s = {settings.grammar_timeout_s:g}"
            return Refusal(reason, is_lasting=False), True
        if finding.refusal:
            return Refusal(finding.refusal), finding.is_last
        key = _digest(self.backend.encode() + b"\0" + finding.text.encode())
        return Grammar(self.backend, finding.text, key), finding.is_last


def _max_processes(settings: Settings) -> int:
    """Half as many as there are CPUs, over all HTTP processes."""
    return max(1, len(os.sched_getaffinity(0)) // (2 * settings.workers))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
