"""hypercorn's HTTP/2, with its faults fixed at their cause.

Data for a stream that has been answered already, such as the body of a request refused by its headers, raised a
KeyError that ended the connection and every other stream on it. Here it is acknowledged and dropped.
"""

import h2.events
from hypercorn.protocol.h2 import H2Protocol


class Http2Protocol(H2Protocol):
    """One HTTP/2 connection, from bytes to ASGI calls and back."""

    async def farewell(self) -> None:
        """Tell the client to open no more streams here; only while none is open, as it ends those too."""
        self.connection.close_connection()
        await self._flush()

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                await self._flush()
            else:
                await super()._handle_events([event])
        await self._flush()
