"""Builds the Quart application: the table of routes, and what every answer carries."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from quart import Response, request
from quart_trio import QuartTrio

from trioserve.http.chat import chat_completions
from trioserve.http.completions import completions
from trioserve.http.concurrency import Concurrency
from trioserve.http.errors import on_error
from trioserve.http.models import get_model, list_models
from trioserve.http.probes import health, live, ready, version
from trioserve.http.request_id import HEADER, request_id_of
from trioserve.http.services import Services

Handler = Callable[..., Awaitable[Response]]

ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/completions", completions),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/<path:model_id>", get_model),
    ("GET", "/live", live),
    ("GET", "/ready", ready),
    ("GET", "/health", health),
    ("GET", "/version", version),
)


def create_app(services: Services) -> QuartTrio:
    """The application; it may be served before the model is loaded."""
    app = QuartTrio("trioserve", static_folder=None)
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
    Concurrency(services.settings.max_concurrency).guard(app)
    app.register_error_handler(Exception, on_error)
    app.after_request(partial(_finish, services))
    return app


async def _finish(services: Services, response: Response) -> Response:
    """What every answer carries, whatever it is."""
    response.headers[HEADER] = request_id_of(request)
    if services.lifecycle.is_draining and request.http_version.startswith("1"):
        response.headers["connection"] = "close"
    return response
