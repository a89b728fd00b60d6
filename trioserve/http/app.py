"""Builds the Quart application: the table of routes, and what every answer carries."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from quart import Response, request
from quart_trio import QuartTrio

from trioserve.errors import SettingsError
from trioserve.http.chat import chat_completions
from trioserve.http.completions import completions
from trioserve.http.cors import Cors
from trioserve.http.door import Door, under_root_path
from trioserve.http.errors import on_error
from trioserve.http.held import releasing
from trioserve.http.interactive import chat_interactive
from trioserve.http.keys import Keyring
from trioserve.http.models import get_model, list_models
from trioserve.http.probes import health, live, ready, version
from trioserve.http.request_id import HEADER, request_id_of
from trioserve.http.services import Services
from trioserve.http.stored import (
    delete_stored,
    get_stored,
    list_stored,
    list_stored_messages,
    update_stored,
)

Handler = Callable[..., Awaitable[Response]]

ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/chat/interactive", chat_interactive),
    ("GET", "/v1/chat/completions", list_stored),
    ("GET", "/v1/chat/completions/<completion_id>", get_stored),
    ("GET", "/v1/chat/completions/<completion_id>/messages", list_stored_messages),
    ("POST", "/v1/chat/completions/<completion_id>", update_stored),
    ("DELETE", "/v1/chat/completions/<completion_id>", delete_stored),
    ("POST", "/v1/completions", completions),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/<path:model_id>", get_model),
    ("GET", "/live", live),
    ("GET", "/ready", ready),
    ("GET", "/health", health),
    ("GET", "/version", version),
)


class HttpApp(QuartTrio):
    """Quart, told the path as ASGI has it. No route speaks WebSocket, so its handshakes get a 403."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await super().__call__(under_root_path(scope), receive, send)


def create_app(services: Services) -> HttpApp:
    """The application; it may be served before the model is loaded. Blocks for the file of keys.

    Raises:
        SettingsError: The file of keys cannot be used, or the root path is the beginning of a route.
    """
    _check_root_path(services.settings.root_path)
    methods = ", ".join(sorted({"HEAD", *(method for method, _, _ in ROUTES)}))
    door = Door(Keyring(services.settings), Cors(services.settings, methods=methods))
    app = HttpApp("trioserve", static_folder=None)
    app.config.update(
        RESPONSE_TIMEOUT=None,  # a stream ends when it ends
        BODY_TIMEOUT=None,  # http/body.py has its own limits
        MAX_CONTENT_LENGTH=None,
        PROPAGATE_EXCEPTIONS=False,
    )
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False
    for method, path, handler in ROUTES:
        app.add_url_rule(
            path,
            handler.__name__,
            partial(handler, services),
            methods=[method],
            provide_automatic_options=False,
        )
    app.register_error_handler(Exception, on_error)
    app.before_request(door.admit)
    app.after_request(partial(_finish, services, door))
    app.asgi_app = releasing(app.asgi_app)  # type: ignore[assignment,method-assign]  # as Quart's documents advise
    return app


def _check_root_path(root_path: str) -> None:
    """A path such as /v1/models must not be readable in two ways, with its prefix and with it stripped."""
    if root_path and any(path.startswith(root_path + "/") for _, path, _ in ROUTES):
        raise SettingsError(f"root_path = {root_path!r} is the beginning of a route here: choose another.")


async def _finish(services: Services, door: Door, response: Response) -> Response:
    """What every answer carries, whatever it is."""
    door.mark(response)
    response.headers[HEADER] = request_id_of(request)
    if services.lifecycle.is_draining and request.http_version.startswith("1"):
        response.headers["connection"] = "close"
    return response
