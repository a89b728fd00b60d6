"""The small app again, with requests by quart-trio."""

from typing import Any

import trio
from quart import Response
from quart_trio import QuartTrio

from tests.server.apps import TinyApp
from trioserve.settings import Settings


def quart_app() -> QuartTrio:
    """What most routes look like: a value, a body, a stream."""
    app = QuartTrio(__name__)

    @app.get("/hello")
    async def hello() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/stream")
    async def stream() -> Response:
        async def events() -> Any:
            for number in range(3):
                yield b"data: %d\n\n" % number
                await trio.lowlevel.checkpoint()

        response = Response(events(), content_type="text/event-stream")
        response.timeout = None
        return response

    return app


class TinyQuart(TinyApp):
    """TinyApp's life with quart's requests."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self._quart = quart_app()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
        else:
            await self._quart(scope, receive, send)
