"""One of the examiner's processes, as the front sees it."""

import signal
from typing import Final, Self

import trio

from trioserve.children import Child, SocketClosed
from trioserve.core.confinement import clean_environment
from trioserve.core.forms import AnswerForm
from trioserve.core.frames import encode_frame
from trioserve.errors import SettingsError, WireError
from trioserve.examiner.wire import Finding, FromProcess, Opened, Opening, Task, Unusable

_THREADS: Final = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
"""A form is one thread's work; and what many threads reserve of the address space would count as taken."""


class ProcessFailed(Exception):
    """The process ended, or said something that is no answer; the message says how."""


class ExaminingProcess:
    """A process ``python -m trioserve.examiner.process`` that has loaded a tokenizer."""

    def __init__(self, child: Child[FromProcess]) -> None:
        self._child = child

    @property
    def pid(self) -> int:
        return self._child.process.pid

    @classmethod
    async def open(cls, opening: Opening, *, timeout_s: float) -> Self:
        """Start one and wait until it has loaded.

        Raises:
            SettingsError: The backend is not to be had for this model.
            ProcessFailed: The process is gone, or was not ready after ``timeout_s``.
        """
        env = {**clean_environment(), **_THREADS}
        process = cls(Child("trioserve.examiner.process", FromProcess, env=env))
        try:
            with trio.move_on_after(timeout_s):
                answer = await process._ask(encode_frame(opening))
                if isinstance(answer, Opened):
                    return process
                if isinstance(answer, Unusable):
                    raise SettingsError(answer.reason)
            raise ProcessFailed(f"was not ready after {timeout_s:g} s")
        except BaseException:
            await process.aclose()
            raise

    async def find(self, form: AnswerForm, *, timeout_s: float) -> Finding | None:
        """What comes of ``form``; None if that takes longer than ``timeout_s``.

        Unless it returns a finding that is not the process's last, the process is to be closed.

        Raises:
            ProcessFailed: It did not outlive the form.
        """
        with trio.move_on_after(timeout_s):
            finding = await self._ask(encode_frame(Task(form)))
            if not isinstance(finding, Finding):
                raise ProcessFailed(f"sent {type(finding).__name__} in place of a finding")
            return finding
        return None

    async def aclose(self) -> None:
        """Kill the process: nothing that it does is worth waiting for."""
        self._child.process.send_signal(signal.SIGKILL)
        await self._child.aclose()

    async def _ask(self, frame: bytes) -> FromProcess:
        try:
            await self._child.send_bytes(frame)
            return await self._child.receive()
        except SocketClosed:
            how = await self._child.process.end()
        except WireError as exc:
            how = f"is not understood: {exc}"
        raise ProcessFailed(how)
