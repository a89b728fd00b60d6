"""Log lines: text for people, one JSON object a line for machines. No prompt, no key, no control character gets in."""

import json
import logging
import sys
import time
from typing import Final

from trioserve.settings import Settings

_PLAIN: Final = str.maketrans({code: f"\\x{code:02x}" for code in [*range(0x20), *range(0x7F, 0xA0)]})
"""Control characters escaped: what a client sends cannot forge a line or move a terminal's cursor."""


class TextFormatter(logging.Formatter):
    """``12:00:00.123 info    engine  message``"""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        room = record.name.removeprefix("trioserve.").split(".")[0]
        line = record.getMessage().translate(_PLAIN)
        text = f"{at}.{int(record.msecs):03d} {record.levelname.lower():8}{room:10}{line}"
        return f"{text}\n{_indented(self.formatException(record.exc_info))}" if record.exc_info else text


def _indented(traceback: str) -> str:
    """A traceback whose lines cannot be taken for lines of the log, whatever the exception says."""
    return "\n".join(f"    {line.translate(_PLAIN)}" for line in traceback.split("\n"))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message and, after a fault, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().translate(_PLAIN),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def set_up_logs(settings: Settings) -> None:
    """Send this process's log lines to standard error as the settings say."""
    handler = logging.StreamHandler()
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    root = logging.getLogger("trioserve")
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    root.propagate = False
