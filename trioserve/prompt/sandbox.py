"""``python -m trioserve.prompt.sandbox``: renders one template, read from standard input, and ends.

The limits are the kernel's, and set before the template is even compiled: constants fold at compile time.
"""

import math
import resource
import sys
from typing import Final

import msgspec

from trioserve.core.confinement import limit_memory, step_back
from trioserve.errors import InvalidRequest, ModelError
from trioserve.prompt.template import ChatTemplate, Conversation

_MAX_REASON_CHARS: Final = 400
_NAME: Final = "the request's chat template"
_NICENESS: Final = 10


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the process reads."""

    source: str
    conversation: Conversation
    timeout_s: float
    memory_bytes: int
    max_bytes: int


class Rendered(msgspec.Struct, frozen=True):
    """What it answers."""

    text: str = ""
    refusal: str | None = None


def render(job: Job) -> Rendered:
    """The text, or why there is none."""
    try:
        text = job.conversation.rendered_by(ChatTemplate(job.source, name=_NAME))
    except (InvalidRequest, ModelError) as exc:
        return Rendered(refusal=str(exc)[:_MAX_REASON_CHARS])
    except MemoryError:
        return Rendered(refusal=f"{_NAME} takes more than template_memory_bytes = {job.memory_bytes}")
    if len(text) > job.max_bytes:
        return Rendered(
            refusal=f"{_NAME} makes {len(text)} characters, more than max_body_bytes = {job.max_bytes}"
        )
    return Rendered(text)


def _limit(job: Job) -> None:
    seconds = math.ceil(job.timeout_s)
    limit_memory(job.memory_bytes)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    step_back(_NICENESS)


def main() -> None:
    """Read a job, write its outcome."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    _limit(job)
    sys.stdout.buffer.write(msgspec.json.encode(render(job)))


if __name__ == "__main__":
    main()
