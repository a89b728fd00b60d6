"""``trioserve chat`` under a pseudo-terminal, as a person at the keyboard has it."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT_S = 120.0
PROMPT = ">>> "
CTRL_C, CTRL_D = "\x03", "\x04"

_CHAT = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal
from trioserve.cli import main
sys.exit(main(["chat", *sys.argv[1:]]))
"""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """The process and what it showed."""

    def __init__(self, process: subprocess.Popen[bytes], keyboard: int) -> None:
        self.process = process
        self.raw = ""
        """Everything shown, escape sequences included."""
        self._keyboard = keyboard
        self._num_seen = 0

    def type(self, text: str) -> None:
        """Press these keys; a line feed is Enter."""
        os.write(self._keyboard, text.replace("\n", "\r").encode())

    def interrupt(self) -> None:
        """What Ctrl-C is to the program. The key itself makes the system drop what is on its way to the screen, and it
        does so after the signal: a quick program's answer too."""
        self.process.send_signal(signal.SIGINT)

    def wait_for(self, text: str) -> str:
        """Wait until ``text`` is shown after what was waited for last; returns what came, ``text`` included."""
        deadline = time.monotonic() + TIMEOUT_S
        while (at := self._shown().find(text, self._num_seen)) < 0:
            assert time.monotonic() < deadline, f"no {text!r} in {self._shown()[self._num_seen :]!r}"
            assert self._read(), f"ended without {text!r}: {self._shown()[self._num_seen :]!r}"
        start, self._num_seen = self._num_seen, at + len(text)
        return self._shown()[start : self._num_seen]

    def wait_for_end(self) -> int:
        """Wait until the program leaves; returns its exit code."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._read():
            assert time.monotonic() < deadline, self._shown()[self._num_seen :]
        return self.process.wait(TIMEOUT_S)

    def _shown(self) -> str:
        return _ESCAPES.sub("", self.raw).replace("\r", "")

    def _read(self) -> bool:
        """Take what was shown since; False when the terminal is closed."""
        if select.select([self._keyboard], [], [], 0.2)[0]:
            try:
                self.raw += os.read(self._keyboard, 65536).decode(errors="replace")
            except OSError:
                return False
        return True


@contextmanager
def chatting(*arguments: str) -> Iterator[Terminal]:
    """A terminal with the program in it for as long as the block is open."""
    keyboard, screen = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIOSERVE_")}
    process = subprocess.Popen(
        [sys.executable, "-c", _CHAT, *arguments],
        stdin=screen,
        stdout=screen,
        stderr=screen,
        env=environment | {"TERM": "xterm", "COLUMNS": "200"},
        start_new_session=True,
    )
    os.close(screen)
    try:
        yield Terminal(process, keyboard)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        os.close(keyboard)
