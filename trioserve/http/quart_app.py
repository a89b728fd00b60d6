"""Quart, without what nothing here uses: it would cost a small request more than its answer does."""

from collections.abc import Callable
from typing import Any

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart.ctx import RequestContext
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection

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


class HttpApp(QuartTrio):
    """Quart, told the path as ASGI has it. No route speaks WebSocket, so its handshakes get a 403.

    Every handler is a coroutine function that returns a ``Response``, and nobody hears Quart's signals.
    """

    asgi_http_class = _HttpConnection

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
