"""Templates that came with a request: rendered in a process that is killed when it takes too much.

Jinja's sandbox keeps a template from reading what it should not; it does not keep it from nested loops, nor from
``'a' * 200000000``.
"""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from trioserve.core.confinement import clean_environment
from trioserve.errors import InvalidRequest, QueueFull
from trioserve.prompt.sandbox import Job, Rendered
from trioserve.prompt.template import Conversation

_MAX_PROCESSES: Final = max(1, (os.cpu_count() or 1) // 2)
_PARAM: Final = "chat_template"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTemplate:
    """A template, and what it may take."""

    source: str
    timeout_s: float
    memory_bytes: int
    """Beyond what the interpreter itself takes."""
    max_bytes: int
    """Of the rendered text."""
    max_waiting: int
    """Requests that may wait for such a process."""


class ForeignTemplates:
    """Renders them, a few at a time."""

    def __init__(self) -> None:
        self._processes = trio.CapacityLimiter(_MAX_PROCESSES)

    async def render(self, template: RequestTemplate, conversation: Conversation) -> str:
        """The text that ``template`` makes.

        Raises:
            InvalidRequest: It does not compile, cannot render the conversation, or takes more than it may.
            QueueFull: Too many wait for such a process.
        """
        waiting = self._processes.statistics().tasks_waiting
        if waiting >= template.max_waiting:
            raise QueueFull(
                f"{waiting} chat templates of requests wait to be rendered; max_num_queued_reqs is the limit"
            )
        job = Job(
            source=template.source,
            conversation=conversation,
            timeout_s=template.timeout_s,
            memory_bytes=template.memory_bytes,
            max_bytes=template.max_bytes,
        )
        async with self._processes:
            with trio.move_on_after(template.timeout_s):
                return _text_of(await _run(msgspec.json.encode(job)))
        raise InvalidRequest(
            f"chat_template: it did not render within template_timeout_s = {template.timeout_s:g}",
            param=_PARAM,
        )


async def _run(job: bytes) -> bytes:
    """What the process answers; it is dead when this returns or is cancelled."""
    done = await trio.run_process(
        [sys.executable, "-m", "trioserve.prompt.sandbox"],
        stdin=job,
        capture_stdout=True,
        stderr=subprocess.DEVNULL,
        check=False,
        deliver_cancel=_kill,
        process_group=0,
        env=clean_environment(),
    )
    return done.stdout or b""


async def _kill(process: trio.Process) -> None:
    process.send_signal(signal.SIGKILL)


def _text_of(answer: bytes) -> str:
    """What a process has answered: nothing, or half of it, where the kernel has ended it."""
    try:
        rendered = msgspec.json.decode(answer, type=Rendered)
    except msgspec.DecodeError as exc:
        raise InvalidRequest(
            "chat_template: it took more than template_memory_bytes or template_timeout_s allow", param=_PARAM
        ) from exc
    if rendered.refusal is not None:
        raise InvalidRequest(f"chat_template: {rendered.refusal}", param=_PARAM)
    return rendered.text
