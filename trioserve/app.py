"""The ASGI application: ``hypercorn trioserve.app:app``.

Its lifespan owns the nursery in which the engine and the supervision of the works run; its requests are Quart's. In a
group of processes (``workers``) each has an application of its own: the first one's engine serves them all.
"""

import gc
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

import trio

from trioserve._speedups.detokenizer import Vocabulary
from trioserve.attach.attachment import Attachment
from trioserve.attach.host import Host
from trioserve.attach.remote import RemoteEngine, RemoteOwner
from trioserve.attach.seat import Seat, make_seats
from trioserve.engine.checkpoint import ModelFolder, open_model
from trioserve.engine.engine import Engine
from trioserve.engine.lifecycle import Lifecycle
from trioserve.engine.permits import Permits
from trioserve.engine.supervisor import EXIT_ENGINE, give_up, supervise
from trioserve.engine.works import Works
from trioserve.errors import RequestError, SettingsError
from trioserve.examiner.client import Examiner
from trioserve.http.app import METRICS_ROUTES, create_app
from trioserve.http.quart_app import HttpApp
from trioserve.http.services import Services
from trioserve.logs import set_up_logs
from trioserve.output.vocabulary import load_vocabulary
from trioserve.parsers.dialects import Dialects
from trioserve.parsers.reasoning import ReasoningFormat
from trioserve.parsers.registry import Registry
from trioserve.prompt.renderer import Renderer
from trioserve.protocol.reasoning import THINKING_SWITCHES
from trioserve.server.group import run_group
from trioserve.server.hypercorn_hook import install_hypercorn_hook
from trioserve.server.run import run
from trioserve.settings import EXIT_SETTINGS, Settings, load_settings
from trioserve.store.database import StoredCompletion

logger = logging.getLogger(__name__)

_COLLECT_AT: Final = 50_000
"""Objects more than there were at the last collection; Python's own choice is 700."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Application:
    """One server: settings, state, an engine that comes up in the background, and the routes.

    Requests are answered from the first moment: with 503 and Retry-After until the model is loaded.
    """

    def __init__(self, settings: Settings, seat: Seat | None = None) -> None:
        set_up_logs(settings)
        self.settings = settings
        self.lifecycle = Lifecycle()
        self._seat = seat
        self._attachment: Attachment | None = None
        self._host: Host | None = None
        owner: RemoteOwner | None = None
        if seat is not None and not seat.is_owner:
            self._attachment = Attachment(self.lifecycle)
            owner = RemoteOwner(self._attachment)
        self._services = Services(
            settings, self.lifecycle, worker=0 if seat is None else seat.worker, owner=owner
        )
        self._http = create_app(self._services)
        self.side_app = create_app(self._services, routes=METRICS_ROUTES) if owner is None else None
        if seat is not None and seat.is_owner:
            self._host = Host(seat, self.lifecycle, _Desk(self._services, self._http))
            self._services.counts_of_others = self._host.counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._http(scope, receive, send)

    def abort(self, reason: str) -> int:
        """End every running request with an error that says ``reason``; returns how many sequences there were."""
        engine = self._services.engine
        return 0 if engine is None else engine.abort(reason)

    async def wait_released(self) -> None:
        """Wait until no other process uses the engine of this one."""
        if self._host is not None:
            await self._host.wait_none()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with trio.open_nursery() as nursery:
            if self._attachment is not None and self._seat is not None:
                nursery.start_soon(self._attach, self._attachment, self._seat)
            else:
                nursery.start_soon(self._run_engine)
                if self.settings.enable_store:
                    nursery.start_soon(self._run_store)
            if self._host is not None:
                nursery.start_soon(self._host.run)
            await send({"type": "lifespan.startup.complete"})
            await receive()
            nursery.cancel_scope.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def _run_engine(self) -> None:
        in_thread = partial(trio.to_thread.run_sync, abandon_on_cancel=True)
        try:
            model = await in_thread(open_model, self.settings)
        except SettingsError as exc:
            give_up(None, self.lifecycle, str(exc), EXIT_SETTINGS)
            return
        works = Works(self.settings, model, self.lifecycle)
        try:
            works.launch()
            engine, examiner = await in_thread(self._load, model)
            await self._run_works(engine, examiner, works)
        except SettingsError as exc:
            give_up(None, self.lifecycle, str(exc), EXIT_SETTINGS)
        finally:
            await works.aclose()

    async def _run_works(self, engine: Engine, examiner: Examiner, works: Works) -> None:
        if self._host is not None:
            self._host.serve(engine)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_examiner, examiner)
                nursery.start_soon(works.run)
                await supervise(engine, works.start, self.lifecycle, max_restarts=self.settings.max_restarts)
                nursery.cancel_scope.cancel()
        except Exception:
            # A bug. Whoever waits must hear of it, and the process must end: no silent server without an engine.
            logger.exception("the engine stopped unexpectedly")
            give_up(engine, self.lifecycle, "the engine stopped unexpectedly", EXIT_ENGINE)

    async def _run_examiner(self, examiner: Examiner) -> None:
        try:
            await examiner.run()
        except SettingsError as exc:
            give_up(self._services.own_engine, self.lifecycle, str(exc), EXIT_SETTINGS)

    async def _run_store(self) -> None:
        try:
            await self._services.completions.run()
        except SettingsError as exc:
            give_up(self._services.own_engine, self.lifecycle, str(exc), EXIT_SETTINGS)

    async def _attach(self, attachment: Attachment, seat: Seat) -> None:
        """Serve with the engine of another process."""

        async def load(model: ModelFolder) -> None:
            examiner = Examiner(self.settings, model)
            try:
                text = await trio.to_thread.run_sync(self._load_text, model, abandon_on_cancel=True)
            except SettingsError as exc:
                give_up(None, self.lifecycle, str(exc), EXIT_SETTINGS)
            else:
                self._services.serve(
                    RemoteEngine(attachment, text.vocabulary),
                    text.renderer,
                    grammars=examiner,
                    dialects=text.dialects,
                )
                nursery.start_soon(self._run_examiner, examiner)
                _spare_collector()

        async with trio.open_nursery() as nursery:
            await attachment.run(seat, load, self._services.traffic)

    def _load(self, model: ModelFolder) -> tuple[Engine, Examiner]:
        """Everything of the model that the front holds. Blocks."""
        text = self._load_text(model)
        engine = Engine(self.settings, model, text.vocabulary, self.lifecycle)
        examiner = Examiner(self.settings, model)
        self._services.serve(engine, text.renderer, grammars=examiner, dialects=text.dialects)
        _spare_collector()
        return engine, examiner

    def _load_text(self, model: ModelFolder) -> "_Text":
        """What text becomes tokens with, and tokens text, and text calls and thinking. Blocks."""
        renderer = Renderer.load(model.tokenizer_path, chat_template=self.settings.chat_template)
        return _Text(
            renderer, load_vocabulary(renderer.tokenizer.backend), _dialects(self.settings, model, renderer)
        )


class _Text(NamedTuple):
    """The text side of a model."""

    renderer: Renderer
    vocabulary: Vocabulary
    dialects: Dialects


def _dialects(settings: Settings, model: ModelFolder, renderer: Renderer) -> Dialects:
    """The parsers of the model's answers, as the settings choose them.

    Raises:
        SettingsError: A name is not known, or an installed package's parser cannot be loaded.
    """
    dialects = Registry.load().dialects(
        settings.tool_call_parser,
        settings.reasoning_parser,
        tools_template=renderer.template_source(has_tools=True),
        template=renderer.template_source(has_tools=False),
        model_type=model.model_type,
    )
    logger.info(
        "parser of tool calls: %s (tool_call_parser = %s); of thinking: %s (reasoning_parser = %s)",
        "none" if dialects.tools is None else dialects.tools.name,
        settings.tool_call_parser,
        "none" if dialects.reasoning is None else dialects.reasoning.name,
        settings.reasoning_parser,
    )
    opens = dialects.reasoning is not None and _opens_thinking(renderer, dialects.reasoning.form)
    return replace(dialects, opens_thinking=opens)


def _opens_thinking(renderer: Renderer, form: ReasoningFormat) -> bool:
    """Whether the model's template begins the thinking itself where it is switched on."""
    switched_on = dict.fromkeys(THINKING_SWITCHES, True)
    try:
        prompt = renderer.render([{"role": "user", "content": "Hi"}], template_variables=switched_on)
    except RequestError:  # it has none, or wants another conversation
        return False
    return form.prompt_thinking(prompt) == "open"


def _spare_collector() -> None:
    """Have garbage collections leave out all that is loaded, and come once in many steps rather than twice in one: a
    step of hundreds of sequences makes more objects than Python lets live without one, and they are gone with it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AT)


class _Desk:
    """``attach.peer.Desk`` with the services of this process."""

    def __init__(self, services: Services, app: HttpApp) -> None:
        self.app = app
        self._services = services

    @property
    def permits(self) -> Permits:
        return self._services.permits

    def keep(self, record: StoredCompletion) -> None:
        self._services.completions.put_nowait(record)


def run_server(settings: Settings) -> int:
    """``trioserve serve``: one process, or a group of them; returns the exit code.

    Raises:
        SettingsError: As ``run`` and ``run_group``.
    """
    if settings.workers == 1:
        return run(Application(settings), settings)
    Application(settings)  # what cannot be used is told once, before there are processes
    seats = make_seats(settings.workers)
    return run_group(lambda worker: Application(settings, seats[worker]), settings)


app = install_hypercorn_hook(Application, load_settings)
