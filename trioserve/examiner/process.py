"""``python -m trioserve.examiner.process FD``: examines one form after the other, on the inherited socket FD.

What a form takes is limited by the kernel, and by whoever started this process and kills it when it takes too long. A
library that panics, overflows its stack or runs out of memory takes no more with it than this process.
"""

import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from trioserve.core.confinement import die_with_parent, limit_memory, run_behind, step_back, taken_bytes
from trioserve.core.forms import AnswerForm, RegexForm
from trioserve.core.frames import FrameReader, encode_frame
from trioserve.errors import InvalidGrammar, SettingsError
from trioserve.examiner.wire import Finding, FromProcess, Opened, Opening, Task, ToProcess, Unusable
from trioserve.grammars.backend import Backend, Matcher
from trioserve.grammars.registry import open_backend

_READ_BYTES: Final = 1 << 16
_MAX_REASON_CHARS: Final = 400
_NICENESS: Final = 10
"""Where every CPU is busy, a tenth of one is left for forms, until one has taken more than forms usually do."""
_KEPT_SHARE: Final = 0.25
"""Of ``memory_bytes``: a process that has not given back more than so much after a task makes room for a new one."""


class Desk:
    """A backend, and how much of a form's memory is left for the next."""

    def __init__(self, opening: Opening) -> None:
        """Load the tokenizer.

        Raises:
            SettingsError: The backend is not to be had for it.
        """
        self._backend = open_backend(
            opening.backend,
            tokenizer_path=Path(opening.tokenizer_path),
            vocab_size=opening.vocab_size,
            eos_token_ids=tuple(opening.eos_token_ids),
            disable_any_whitespace=opening.disable_any_whitespace,
            max_depth=opening.max_depth,
        )
        self._vocab_size = opening.vocab_size
        self._memory_bytes = opening.memory_bytes
        # What the library makes once and keeps is no form's to pay for.
        examine(self._backend, AnswerForm(body=RegexForm("a+")), self._vocab_size)
        self._taken_bytes = taken_bytes()

    def find(self, form: AnswerForm) -> Finding:
        """Examine ``form`` within the limits."""
        limit_memory(self._memory_bytes, for_good=False)
        try:
            text = run_behind(lambda: examine(self._backend, form, self._vocab_size))
            refusal = ""
        except InvalidGrammar as exc:
            text, refusal = "", str(exc).partition("\n")[0][:_MAX_REASON_CHARS]
        except MemoryError:
            text, refusal = "", f"it takes more than grammar_memory_bytes = {self._memory_bytes}"
        kept_bytes = taken_bytes() - self._taken_bytes
        is_last = kept_bytes > _KEPT_SHARE * self._memory_bytes
        return Finding(text=text, refusal=refusal, is_last=is_last)


def examine(backend: Backend, form: AnswerForm, vocab_size: int) -> str:
    """The text of the grammar of ``form``, once it has been compiled and has given a first mask.

    Raises:
        InvalidGrammar: It is broken or too complex, or no answer could satisfy it.
    """
    text = backend.write(form)
    matcher = backend.compile(text).matcher()
    _check(matcher)
    masks = np.zeros((1, -(-vocab_size // 32)), np.int32)
    backend.fill_masks([(matcher, 0)], masks)
    _check(matcher)
    if not masks.any():
        raise InvalidGrammar("no answer satisfies it")
    matcher.forced()
    _check(matcher)
    return text


def _check(matcher: Matcher) -> None:
    if matcher.failure:
        raise InvalidGrammar(matcher.failure)


def serve(sock: socket.socket) -> int:
    """Examine what comes until the other end is closed; returns the exit code."""
    messages = _messages(sock)
    opening = next(messages, None)
    if not isinstance(opening, Opening):
        return 0
    step_back(
        _NICENESS
    )  # before the tokenizer is loaded: one comes after the other while hostile forms come in
    try:
        desk = Desk(opening)
    except SettingsError as exc:
        _send(sock, Unusable(str(exc)))
        return 0
    _send(sock, Opened())
    for message in messages:
        assert isinstance(message, Task), "an opening comes once"
        finding = desk.find(message.form)
        _send(sock, finding)
        if finding.is_last:
            break
    return 0


def _messages(sock: socket.socket) -> Iterator[ToProcess]:
    reader: FrameReader[ToProcess] = FrameReader(ToProcess)
    while data := sock.recv(_READ_BYTES):
        yield from reader.feed(data)


def _send(sock: socket.socket, message: FromProcess) -> None:
    sock.sendall(encode_frame(message))


def main() -> int:
    """Serve the socket whose number is the argument; signals to the process group are meant for the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(
        signal.SIGTTOU, signal.SIG_IGN
    )  # a terminal may stop whatever writes to it from the background
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent()
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        return serve(sock)


if __name__ == "__main__":
    sys.exit(main())
