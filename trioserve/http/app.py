"""Builds the Quart application: the table of routes, and what every answer carries."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from quart import Request, Response, request

from trioserve.errors import SettingsError
from trioserve.http.chat import chat_completions
from trioserve.http.completions import completions
from trioserve.http.concurrency import rate_headers, take_permit
from trioserve.http.cors import Cors
from trioserve.http.docs import docs, docs_file, openapi_document
from trioserve.http.door import Door
from trioserve.http.errors import on_error
from trioserve.http.handover import hand_over
from trioserve.http.held import releasing
from trioserve.http.interactive import chat_interactive
from trioserve.http.keys import Keyring
from trioserve.http.models import get_model, list_models
from trioserve.http.operator import load, metrics, server_info
from trioserve.http.probes import health, live, ready, version
from trioserve.http.quart_app import HttpApp
from trioserve.http.request_id import HEADER, request_id_of
from trioserve.http.sagemaker import invocations, ping
from trioserve.http.services import Services
from trioserve.http.stored import (
    delete_stored,
    get_stored,
    list_stored,
    list_stored_messages,
    update_stored,
)
from trioserve.http.tokenize import apply_template, detokenize, encode, tokenize, tokenizer_info
from trioserve.http.traffic import name_route

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
    ("POST", "/tokenize", tokenize),
    ("POST", "/v1/tokenize", tokenize),
    ("POST", "/detokenize", detokenize),
    ("POST", "/v1/detokenize", detokenize),
    ("POST", "/v1/encode", encode),
    ("POST", "/apply-template", apply_template),
    ("GET", "/tokenizer_info", tokenizer_info),
    ("GET", "/ping", ping),
    ("POST", "/ping", ping),
    ("POST", "/invocations", invocations),
    ("GET", "/live", live),
    ("GET", "/ready", ready),
    ("GET", "/health", health),
    ("GET", "/version", version),
    ("GET", "/load", load),
    ("GET", "/server_info", server_info),
    ("GET", "/metrics", metrics),
    ("GET", "/openapi.json", openapi_document),
    ("GET", "/", docs),
    ("GET", "/docs", docs),
    ("GET", "/docs/<name>", docs_file),
)
ANSWERED_BY_OWNER: Final = frozenset(
    {
        chat_interactive,
        list_stored,
        get_stored,
        list_stored_messages,
        update_stored,
        delete_stored,
        load,
        server_info,
        metrics,
    }
)
"""Handlers of what is kept or counted for the whole server, and so in one of its processes."""
METRICS_ROUTES: Final = tuple(
    route for route in ROUTES if route[1] in {"/live", "/ready", "/health", "/metrics"}
)
"""What ``metrics_port`` serves."""


def create_app(services: Services, *, routes: Sequence[tuple[str, str, Handler]] = ROUTES) -> HttpApp:
    """The application; it may be served before the model is loaded. Blocks for the file of keys.

    Raises:
        SettingsError: The file of keys cannot be used, or the root path is the beginning of a route.
    """
    _check_root_path(services.settings.root_path)
    methods = ", ".join(sorted({"HEAD", *(method for method, _, _ in routes)}))
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
    for method, path, handler in routes:
        hands_over = services.owner is not None and handler in ANSWERED_BY_OWNER
        app.add_url_rule(
            path,
            f"{method} {path}",
            partial(hand_over if hands_over else handler, services),
            methods=[method],
            provide_automatic_options=False,
        )
    app.register_error_handler(Exception, on_error)
    app.before_request(partial(_admit, services, door))
    app.after_request(partial(_finish, services, door))
    # Quart's way to put something around an application
    app.asgi_app = releasing(app.asgi_app)  # type: ignore[assignment,method-assign]
    app.asgi_app = services.traffic.watched(app.asgi_app)  # type: ignore[assignment,method-assign]
    return app


def _check_root_path(root_path: str) -> None:
    """A path such as /v1/models must not be readable in two ways, with its prefix and with it stripped."""
    if root_path and any(path.startswith(root_path + "/") for _, path, _ in ROUTES):
        raise SettingsError(f"root_path = {root_path!r} is the beginning of a route here: choose another.")


def _this_request() -> Request:
    """What ``request`` stands for, which is asked for much of it."""
    asked: Request = request._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # Werkzeug's way to ask
    return asked


async def _admit(services: Services, door: Door) -> Response | None:
    """What comes before every handler; an answer ends the request here. What no route matches has no name."""
    asked = _this_request()
    if asked.url_rule is not None:
        name_route(asked.scope, asked.url_rule.rule)
    if (answer := door.admit(asked)) is None:
        await take_permit(services, asked)
    return answer


async def _finish(services: Services, door: Door, response: Response) -> Response:
    """What every answer carries, whatever it is."""
    asked = _this_request()
    door.mark(asked, response)
    response.headers[HEADER] = request_id_of(asked)
    if services.is_bounded:
        response.headers.update(rate_headers())
    if services.lifecycle.is_draining and asked.http_version.startswith("1"):
        response.headers["connection"] = "close"
    return response
