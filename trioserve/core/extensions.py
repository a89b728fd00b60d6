"""What our server tells and lends the application beyond ASGI, in the ``extensions`` of a request's scope."""

from typing import Final, Protocol

WHOLE_BODY: Final = "trioserve.whole_body"
"""There where the first message from ``receive`` has come already and holds all of the body. Nobody needs to wait for
another one: when the client leaves, the call is cancelled."""

OUTLET: Final = "trioserve.outlet"
"""An ``Outlet``, if the connection has such a way."""


class Outlet(Protocol):
    """The short way of an answer's bytes to its client, in order with ASGI's ``send``; nothing here waits or raises.

    An event that goes through the application's layers, the server's messages and a task of its own costs several
    times what the system call does. Through an outlet it costs little more than that call.
    """

    @property
    def is_clear(self) -> bool:
        """Whether a part may be written now: the answer is under way, and all that was sent before has left."""

    def write_nowait(self, data: bytes) -> None:
        """Send ``data``, which is not empty, as the next part of the body; only while ``is_clear``.

        What the client does not take at once follows by itself, and until then nothing is clear: whoever has more
        waits in ``send``.
        """
