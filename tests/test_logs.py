"""Lines of the log: one for each record, whatever a client has put into it."""

import json
import logging
import sys

import pytest

from trioserve.logs import JsonFormatter, TextFormatter

EVIL = "a\nb\x1b[2Jc\x85d\x00"


def record(message: str, *, fails: bool = False) -> logging.LogRecord:
    told = None
    if fails:
        try:
            raise ValueError(message)
        except ValueError:
            told = sys.exc_info()
    return logging.LogRecord("trioserve.http.x", logging.INFO, __file__, 1, "%s", (message,), told)


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_control_characters_are_escaped(formatter: logging.Formatter) -> None:
    line = formatter.format(record(EVIL))
    assert line.isprintable()
    assert "a\\x0ab\\x1b[2Jc\\x85d\\x00" in (json.loads(line)["message"] if line[0] == "{" else line)


def test_a_traceback_is_no_line_of_the_log() -> None:
    """What an exception says may be a client's."""
    first, *rest = TextFormatter().format(record(EVIL, fails=True)).split("\n")
    assert "info    http" in first
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert any("ValueError: a" in line for line in rest)


def test_a_traceback_is_part_of_its_json_line() -> None:
    line = JsonFormatter().format(record(EVIL, fails=True))
    assert line.isprintable()
    assert "ValueError" in json.loads(line)["traceback"]
