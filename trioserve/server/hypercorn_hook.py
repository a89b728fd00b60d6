"""Makes ``hypercorn trioserve.app:app`` run our serve loop under Trio.

hypercorn's worker imports the app's module before it starts an event loop, and looks its runner up only then. So the
import replaces that runner: for the asyncio and uvloop workers ``hypercorn.asyncio.run._run``, for the Trio worker
``hypercorn.trio.run.worker_serve``. Both stay as they were for any other app.

Exit codes. With ``-w 0`` hypercorn serves in its own process, and our exit code is the shell's. With one worker, its
default, the worker exits with our code, but the master forgets it and exits with 0: ``hypercorn.run.run`` overwrites
it by that of the workers still left, of which there are none. The master never imports the app, so nothing here can
change that; the worker's last line in the log names the code.

Signals. SIGTERM or SIGINT to the master sets an event that the worker takes as a notice to drain; the master waits for
it however long it takes. To the process group they count once (``signals``).
"""

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version
from types import ModuleType
from typing import Any, Final, NoReturn

import trio
from hypercorn.config import Config, Sockets

from trioserve.errors import SettingsError
from trioserve.server.config import ServerConfig
from trioserve.server.serve import EXIT_SETTINGS, ServedApp, serve
from trioserve.server.signals import Notices
from trioserve.server.sockets import from_hypercorn
from trioserve.server.systemd import ServiceManager
from trioserve.settings import Settings

_ASYNCIO: Final = ("hypercorn.asyncio.run", "_run", ("main", "debug", "shutdown_trigger", "loop_factory"))
_TRIO: Final = (
    "hypercorn.trio.run",
    "worker_serve",
    ("app", "config", "sockets", "shutdown_trigger", "task_status"),
)
"""Module, name and parameters of what is replaced."""


class HypercornApp:
    """The object that hypercorn is told to serve; builds the real app when serving begins.

    Importing its module therefore reads no settings and fails for none.
    """

    def __init__(
        self, make_app: Callable[[Settings], ServedApp], load_settings: Callable[[], Settings]
    ) -> None:
        self._make_app = make_app
        self._load_settings = load_settings
        self._app: ServedApp | None = None
        self._notices = Notices()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """For other servers that speak ASGI under Trio: they serve, but do not drain.

        Raises:
            SettingsError: Called outside Trio, or the settings are wrong.
        """
        if not trio.lowlevel.in_trio_run():
            raise SettingsError(
                "This app runs under Trio only: start it by `trioserve serve` or by hypercorn."
            )
        if self._app is None:
            self._app = self._make_app(self._load_settings())
        await self._app(scope, receive, send)

    def watch_signals(self) -> None:
        """Take signals from now on, so that one that comes before the loop runs is not lost."""
        self._notices.install()

    def give_way(self) -> None:
        """Another app is served, one that may have imported ours: its signals are not our affair."""
        self._notices.uninstall()

    async def serve(self, given: Config, sockets: Sockets, shutdown_trigger: Any) -> int:
        """Serve as hypercorn's worker; ``shutdown_trigger`` is a partial that polls the master's event, or None."""
        try:
            settings = self._load_settings()
            if settings.workers > 1:
                raise SettingsError(
                    f"workers = {settings.workers} needs `trioserve serve`: hypercorn's master would end all its "
                    "workers when one of them dies."
                )
            config = ServerConfig.build(settings, given)
            app = self._make_app(settings)
            if shutdown_trigger is not None:
                self._notices.listen_to(shutdown_trigger.args[0])
            listeners = from_hypercorn(sockets, config)
            manager = ServiceManager.from_environment()
            return await serve(
                app, settings, listeners, config=config, notices=self._notices, manager=manager
            )
        except SettingsError as exc:
            _refuse(str(exc))


def install_hypercorn_hook(
    make_app: Callable[[Settings], ServedApp], load_settings: Callable[[], Settings]
) -> HypercornApp:
    """The ``app`` of the module that hypercorn is told to import; where hypercorn imports it, our loop will serve it.

    ``load_settings`` and ``make_app`` are called when serving begins; a SettingsError ends the process with its
    sentence and exit code 78, as does a hypercorn that has changed where we hook in.
    """
    app = HypercornApp(make_app, load_settings)
    if not _imported_by_hypercorn():
        return app
    app.watch_signals()
    for (module_name, name, parameters), replace in ((_ASYNCIO, _replace_asyncio), (_TRIO, _replace_trio)):
        module = sys.modules.get(module_name)
        if module is None:
            continue
        original = getattr(module, name, None)
        if original is None or tuple(inspect.signature(original).parameters) != parameters:
            _refuse(
                f"hypercorn {version('hypercorn')} cannot run this app: use `trioserve serve` instead, "
                "or pip install 'hypercorn==0.18.*'."
            )
        replace(module, name, original, app)
    return app


def _replace_asyncio(module: ModuleType, name: str, original: Callable[..., None], app: HypercornApp) -> None:
    """``main`` is a partial of hypercorn's worker_serve with the app, the configuration and the sockets."""

    @wraps(original)
    def _run(main: Any, *, shutdown_trigger: Any = None, **options: Any) -> None:
        wrapped, config = main.args
        if getattr(wrapped, "app", None) is not app:
            app.give_way()
            original(main, shutdown_trigger=shutdown_trigger, **options)
        else:
            raise SystemExit(trio.run(app.serve, config, main.keywords["sockets"], shutdown_trigger))

    setattr(module, name, _run)


def _replace_trio(module: ModuleType, name: str, original: Callable[..., Any], app: HypercornApp) -> None:
    @wraps(original)
    async def worker_serve(
        wrapped: Any, config: Config, *, sockets: Any = None, shutdown_trigger: Any = None, **options: Any
    ) -> None:
        if getattr(wrapped, "app", None) is not app:
            app.give_way()
            await original(wrapped, config, sockets=sockets, shutdown_trigger=shutdown_trigger, **options)
        else:
            raise SystemExit(await app.serve(config, sockets, shutdown_trigger))

    setattr(module, name, worker_serve)


def _refuse(sentence: str) -> NoReturn:
    sys.stderr.write(f"trioserve: {sentence}\n")
    raise SystemExit(EXIT_SETTINGS)


def _imported_by_hypercorn() -> bool:
    """Whether a hypercorn worker's ``load_application`` is among our callers."""
    frame = inspect.currentframe()
    while frame is not None:
        if (
            frame.f_code.co_name == "load_application"
            and frame.f_globals.get("__name__") == "hypercorn.utils"
        ):
            return True
        frame = frame.f_back
    return False
