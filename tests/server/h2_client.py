"""An HTTP/2 client that sends what it is told."""

from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import trio


class H2Client:
    """As much of an HTTP/2 client as shows what hypercorn's server does wrong."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.connection.initiate_connection()
        self.seen: list[h2.events.Event] = []

    async def send(self) -> None:
        await self._stream.send_all(self.connection.data_to_send())

    def ask(self, stream_id: int, path: str, method: str = "GET") -> None:
        headers = [(":method", method), (":path", path), (":authority", "x"), (":scheme", "http")]
        self.connection.send_headers(stream_id, headers, end_stream=method == "GET")

    async def until(self, condition: Callable[[h2.events.Event], bool], within_s: float = 2.0) -> None:
        """Read until an event fulfils ``condition``, or the server closes."""
        with trio.fail_after(within_s):
            while not any(map(condition, self.seen)):
                data = await self._stream.receive_some()
                if not data:
                    return
                self.seen += self.connection.receive_data(data)
                await self.send()

    def body(self, stream_id: int) -> bytes:
        events = [event for event in self.seen if isinstance(event, h2.events.DataReceived)]
        return b"".join(event.data or b"" for event in events if event.stream_id == stream_id)


def ended(stream_id: int) -> Callable[[h2.events.Event], bool]:
    return lambda event: isinstance(event, h2.events.StreamEnded) and event.stream_id == stream_id
