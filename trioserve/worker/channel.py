"""Frames over the blocking socket to the front."""

import socket
import threading
from collections import deque
from contextlib import suppress
from typing import Final

from trioserve.core.frames import FrameReader, encode_frame
from trioserve.core.step import FromWorker, ToWorker

_RECEIVE_BYTES: Final = 1 << 20


class Channel:
    """Receives what the front sends, one message at a time; plans may wait in the socket meanwhile.

    One thread receives, any may send.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        self._reader = FrameReader[ToWorker](ToWorker)
        self._ready = deque[ToWorker]()

    def receive(self) -> ToWorker | None:
        """The next message; None once the front has closed.

        Raises:
            WireError: A frame is too long, undecodable or cut off.
        """
        while not self._ready:
            data = self._socket.recv(_RECEIVE_BYTES)
            if not data:
                self._reader.flush()
                return None
            self._ready.extend(self._reader.feed(data))
        return self._ready.popleft()

    def stop_receiving(self) -> None:
        """Let ``receive`` find the end, whoever waits in it; what is being received is lost."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def wait_closed(self) -> None:
        """Wait until the front has closed, whatever it still sends."""
        with suppress(OSError):
            while self._socket.recv(_RECEIVE_BYTES):
                pass

    def send(self, message: FromWorker) -> None:
        """Send ``message`` whole.

        Raises:
            OSError: The front is gone.
        """
        frame = encode_frame(message)
        with self._sending:
            self._socket.sendall(frame)
