"""Quart, without what nothing here uses: it would cost a small request more than its answer does."""

from collections.abc import Callable
from contextvars import Token
from functools import partial
from typing import Any, Self

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import Request
from quart.ctx import AppContext, RequestContext
from quart.globals import _cv_app, _cv_request
from quart.utils import encode_headers
from quart.wrappers.response import DataBody
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule

from trioserve.core.extensions import WHOLE_BODY
from trioserve.http.door import under_root_path


class _HttpConnection(TrioASGIHTTPConnection):
    """One call. A task beside the handler's reads its body only where more of it is to come."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        extensions: Any = self.scope.get("extensions") or {}
        if WHOLE_BODY not in extensions:
            await super().__call__(receive, send)
            return
        message: Any = await receive()
        request = self._create_request_from_scope(send)
        request.body.append(message["body"])
        request.body.set_complete()
        await self._send_response(send, await self.app.handle_request(request))

    def _create_request_from_scope(self, send: ASGISendCallable) -> Request:
        """As Quart's, with headers that are not checked again for what no server lets through."""
        headers, scope = Headers(), self.scope
        (peer, *_) = scope.get("client") or ("<local>",)
        given = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        headers._list = [("remote-addr", peer), *given]  # noqa: SLF001
        return self.app.request_class(
            scope["method"],
            scope["scheme"],
            scope["path"].removeprefix(scope["root_path"]),  # which `under_root_path` has put there
            scope["query_string"],
            headers,
            scope["root_path"],
            scope["http_version"],
            send_push_promise=partial(self._send_push_promise, send),
            scope=scope,
        )

    async def _send_response(self, send: Any, response: Any) -> None:
        """The answer; one that is there as a whole in two messages."""
        if type(response.response) is not DataBody:
            await super()._send_response(send, response)
            return
        headers = encode_headers(response.headers)
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": response.response.data, "more_body": False})


class _Context(RequestContext):
    """What ``request`` and ``g`` mean while a request is answered. No session, no adapter for URLs, no signals."""

    def __init__(self, app: "HttpApp", request: Request) -> None:
        self.app = app
        self.request_websocket = request
        self.session = None
        self._app_context = AppContext(app)
        self._tokens: tuple[Token[RequestContext], Token[AppContext]] | None = None
        rule = app.plain_routes.get((request.method, request.path))
        if rule is None:
            self.match_request()
        else:
            request.url_rule, request.view_args = rule, {}  # type: ignore[assignment]  # Quart's rules are Rules

    def match_request(self) -> None:
        """Ask Werkzeug, which finds what is wrong too."""
        request = self.request_websocket
        try:
            adapter = self.app.create_url_adapter(request)
            assert adapter is not None
            request.url_rule, request.view_args = adapter.match(return_rule=True)  # type: ignore[assignment]
        except HTTPException as exc:
            request.routing_exception = exc

    async def __aenter__(self) -> Self:
        self._tokens = _cv_request.set(self), _cv_app.set(self._app_context)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._tokens is not None
        of_request, of_app = self._tokens
        _cv_app.reset(of_app)
        _cv_request.reset(of_request)


class HttpApp(QuartTrio):
    """Quart, told the path as ASGI has it. No route speaks WebSocket, so its handshakes get a 403.

    Every handler is a coroutine function that returns a ``Response``, and nobody hears Quart's signals.
    """

    asgi_http_class = _HttpConnection

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plain_routes: dict[tuple[str, str], Rule] = {}
        """Those without variables, by method and path, which need no search."""

    def add_url_rule(self, rule: str, endpoint: str | None = None, *args: Any, **kwargs: Any) -> None:
        """As Quart's."""
        super().add_url_rule(rule, endpoint, *args, **kwargs)
        for added in self.url_map.iter_rules():
            if not added.arguments:
                self.plain_routes |= {(method, added.rule): added for method in added.methods or ()}

    def request_context(self, request: Request) -> RequestContext:
        """What a request is answered in."""
        return _Context(self, request)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await super().__call__(under_root_path(scope), receive, send)

    def ensure_async(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """``func``, as it is."""
        return func

    async def full_dispatch_request(self, request_context: RequestContext | None = None) -> Any:
        """What comes before the handler, the handler, and what comes after it."""
        assert request_context is not None
        try:
            response: Any = await self._answer(request_context)
        except (Exception, BaseExceptionGroup) as exc:  # noqa: BLE001  # Quart's own wall, `on_error` behind it
            response = await self.make_response(await self.handle_user_exception(exc))
        for finish in self.after_request_funcs[None]:
            response = await self.ensure_async(finish)(response)
        return response

    async def _answer(self, context: RequestContext) -> Any:
        for admit in self.before_request_funcs[None]:
            if (response := await self.ensure_async(admit)()) is not None:
                return response
        return await self.dispatch_request(context)
