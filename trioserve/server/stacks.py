"""Where every task and every thread stands: what SIGQUIT writes to standard error."""

import faulthandler
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO

import trio

_LINKS = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))


def write_stacks(file: TextIO | None = None) -> None:
    """Write the tree of tasks, innermost frame last, then all threads; safe in a signal handler of the main thread.

    Shows file names, lines and functions only, never values.
    """
    out = sys.stderr if file is None else file
    try:
        root = trio.lowlevel.current_root_task()
    except RuntimeError:
        root = None
    if root is not None:
        out.write("Tasks:\n")
        for line in _tree(root, 1):
            out.write(line + "\n")
    out.flush()
    faulthandler.dump_traceback(file=out, all_threads=True)


def _tree(task: trio.lowlevel.Task, depth: int) -> Iterator[str]:
    indent = "  " * depth
    yield f"{indent}{task.name}"
    for frame in _frames(task.coro):
        yield f"{indent}| {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _tree(child, depth + 1)


def _frames(awaitable: Any) -> Iterator[FrameType]:
    """The frames of a suspended coroutine, outermost first, through generators and async generators."""
    while awaitable is not None:
        frame_name, next_name = next((names for names in _LINKS if hasattr(awaitable, names[0])), ("", ""))
        frame = getattr(awaitable, frame_name, None)
        if frame is None:
            return
        yield frame
        awaitable = getattr(awaitable, next_name, None)
