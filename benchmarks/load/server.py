"""Starts the server that is to be measured, and ends it."""

import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from benchmarks.load.wire import Client

_ASK_EVERY_S = 0.1
_TERM_TIMEOUT_S = 30.0
_TAIL_BYTES = 2000


class ServerError(Exception):
    """The server did not become ready; the message holds the end of its output."""


async def wait_ready(client: Client, path: str, timeout_s: float, process: trio.Process) -> None:
    """Ask ``path`` until it answers 200.

    Raises:
        ServerError: It did not within ``timeout_s``, or ``process`` has ended.
    """
    last = "no answer"
    with trio.move_on_after(timeout_s):
        while process.poll() is None:
            try:
                status, _ = await client.get(path)
            except OSError as exc:
                last = str(exc)
            else:
                if status == 200:
                    return
                last = f"status {status}"
            await trio.sleep(_ASK_EVERY_S)
        raise ServerError(f"the server ended with exit code {process.returncode} before it was ready")
    raise ServerError(f"{client.url}{path} did not answer 200 within {timeout_s:g} s; last: {last}")


@asynccontextmanager
async def running(command: str, client: Client, ready_path: str, timeout_s: float) -> AsyncIterator[None]:
    """Run ``command`` while the block is open: entered when it is ready, left when it has ended after a SIGTERM.

    It gets a process group of its own, so that a Ctrl-C is for the measurement alone, which then ends the server.

    Raises:
        ServerError: It ended or stayed silent instead of becoming ready.
    """
    with tempfile.TemporaryFile() as output:
        process = await trio.lowlevel.open_process(
            shlex.split(command), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            await wait_ready(client, ready_path, timeout_s, process)
        except ServerError as exc:
            output.seek(max(0, output.seek(0, 2) - _TAIL_BYTES))
            raise ServerError(f"{exc}\n{output.read().decode(errors='replace')}") from None
        else:
            yield
        finally:
            await _end(process)


async def _end(process: trio.Process) -> None:
    """SIGTERM, as a service manager would; SIGKILL to all of its group if it takes too long or the user cannot wait."""
    with trio.CancelScope(shield=True):
        try:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            with trio.move_on_after(_TERM_TIMEOUT_S):
                await process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
