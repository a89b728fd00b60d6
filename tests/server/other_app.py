"""Another app, whose module imports ours: hypercorn must serve it in its own way."""

from typing import Any

from tests.server import apps

OURS = apps.app


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"other"})
