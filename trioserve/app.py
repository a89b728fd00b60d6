"""The ASGI application: ``hypercorn trioserve.app:app``.

Its lifespan owns the nursery in which the engine and the supervision of the works run; its requests are Quart's.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from trioserve.engine.checkpoint import open_model
from trioserve.engine.engine import Engine
from trioserve.engine.lifecycle import Lifecycle
from trioserve.engine.supervisor import EXIT_ENGINE, give_up, supervise
from trioserve.engine.works import works_for
from trioserve.errors import SettingsError
from trioserve.http.app import METRICS_ROUTES, create_app
from trioserve.http.services import Services
from trioserve.logs import set_up_logs
from trioserve.output.vocabulary import load_vocabulary
from trioserve.prompt.renderer import Renderer
from trioserve.server.hypercorn_hook import install_hypercorn_hook
from trioserve.settings import EXIT_SETTINGS, Settings, load_settings

logger = logging.getLogger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Application:
    """One server: settings, state, an engine that comes up in the background, and the routes.

    Requests are answered from the first moment: with 503 and Retry-After until the model is loaded.
    """

    def __init__(self, settings: Settings) -> None:
        set_up_logs(settings)
        self.settings = settings
        self.lifecycle = Lifecycle()
        self._services = Services(settings, self.lifecycle)
        self._http = create_app(self._services)
        self.side_app = create_app(self._services, routes=METRICS_ROUTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._http(scope, receive, send)

    def abort(self, reason: str) -> int:
        """End every running request with an error that says ``reason``; returns how many sequences there were."""
        engine = self._services.engine
        return 0 if engine is None else engine.abort(reason)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_engine)
            if self.settings.enable_store:
                nursery.start_soon(self._run_store)
            await send({"type": "lifespan.startup.complete"})
            await receive()
            nursery.cancel_scope.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def _run_engine(self) -> None:
        try:
            engine = await trio.to_thread.run_sync(self._load, abandon_on_cancel=True)
        except SettingsError as exc:
            give_up(None, self.lifecycle, str(exc), EXIT_SETTINGS)
            return
        try:
            works = works_for(self.settings, engine.model)
            await supervise(engine, works, self.lifecycle, max_restarts=self.settings.max_restarts)
        except Exception:
            # A bug. Whoever waits must hear of it, and the process must end: no silent server without an engine.
            logger.exception("the engine stopped unexpectedly")
            give_up(engine, self.lifecycle, "the engine stopped unexpectedly", EXIT_ENGINE)

    async def _run_store(self) -> None:
        try:
            await self._services.completions.run()
        except SettingsError as exc:
            give_up(self._services.engine, self.lifecycle, str(exc), EXIT_SETTINGS)

    def _load(self) -> Engine:
        """Everything of the model that the front holds. Blocks."""
        model = open_model(self.settings)
        renderer = Renderer.load(model.tokenizer_path, chat_template=self.settings.chat_template)
        vocabulary = load_vocabulary(renderer.tokenizer.backend)
        engine = Engine(self.settings, model, vocabulary, self.lifecycle)
        self._services.serve(engine, renderer)
        return engine


app = install_hypercorn_hook(Application, load_settings)
