"""The short way of an answer's bytes to its client, which the server lends to the application with a request.

An event that goes through the application's layers, the server's messages and a task of its own costs several times
what the system call does. Through an outlet it costs little more than that call.
"""

from typing import Final, Protocol

OUTLET: Final = "trioserve.outlet"
"""Where the ``extensions`` of an ASGI scope have it, if the connection has such a way."""


class Outlet(Protocol):
    """Takes parts of one answer's body beside ASGI's ``send``, in order with it; nothing here waits or raises."""

    @property
    def is_clear(self) -> bool:
        """Whether a part may be written now: the answer is under way, and all that was sent before has left."""

    def write_nowait(self, data: bytes) -> None:
        """Send ``data``, which is not empty, as the next part; only while ``is_clear``.

        What the client does not take at once follows by itself, and until then nothing is clear: whoever has more
        waits in ``send``.
        """
