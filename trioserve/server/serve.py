"""The serve loop: start the app, accept, and end as the table of states says.

    serving        until the first notice, a failure of the engine, or hypercorn's --max-requests
    lame duck      everyone is served, with ``Connection: close``; /ready says 503
    last call      the listeners close; whom they had accepted without hearing from yet has a moment to speak
    closing        idle connections close, running requests go on; at the deadline the app aborts them
    end            what is open is cut, the app's lifespan shuts down

``metrics_port`` has listeners and connections of its own, served to the very end: no request on them holds up a drain.

A second notice goes straight to the abort, a third one ends the process (``signals``).
"""

import errno
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import trio

from trioserve.engine.lifecycle import Lifecycle, ServerState
from trioserve.errors import SettingsError
from trioserve.server.config import ServerConfig, check_hypercorn
from trioserve.server.connection import Commons, Connection
from trioserve.server.exchange import ASGIApp
from trioserve.server.lifespan import Lifespan
from trioserve.server.signals import Notices
from trioserve.server.sockets import Listener, bind, raise_file_limit
from trioserve.server.systemd import ServiceManager
from trioserve.settings import Settings

logger = logging.getLogger("trioserve.server")

EXIT_FAILED: Final = 70
EXIT_ABORTED: Final = 75
EXIT_SETTINGS: Final = 78

QUIET_S: Final = 0.3
"""Time without a request after which nothing more is expected on open connections."""
ABORT_S: Final = 5.0
"""Time aborted requests have to send their error events."""
_CUT_S: Final = 1.0
"""Time cancelled handlers have to unwind before the rest is cancelled from above."""
_ACCEPTS_PER_TURN: Final = 64
_OUT_OF_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ENDS_TURN: Final = _OUT_OF_FILES | {errno.EINVAL}


class ServedApp(Protocol):
    """An ASGI app that can be drained."""

    @property
    def lifecycle(self) -> Lifecycle: ...

    @property
    def side_app(self) -> ASGIApp | None:
        """What ``metrics_port`` serves, if anything."""

    def abort(self, reason: str) -> object:
        """End every running request soon: streams with an error event, others with an error."""

    async def wait_released(self) -> None:
        """Wait until nothing is done here for the clients of other processes."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


async def serve(
    app: ServedApp,
    settings: Settings,
    listeners: Sequence[Listener],
    *,
    config: ServerConfig | None = None,
    notices: Notices | None = None,
    manager: ServiceManager | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> int:
    """Serve ``app`` on bound sockets until it has drained or failed; reports the URLs once it listens.

    Returns:
        The exit code, which ``app.lifecycle.exit_code`` holds too.

    Raises:
        SettingsError: The installed hypercorn, the configuration or its TLS files cannot be used.
    """
    check_hypercorn()
    side = _bind_side(app, settings, listeners)
    server = _Server(
        app,
        settings,
        listeners,
        side,
        config or ServerConfig.build(settings),
        notices or Notices(),
        manager or ServiceManager(),
    )
    await server.run(task_status)
    return app.lifecycle.exit_code


class _Server:
    def __init__(
        self,
        app: ServedApp,
        settings: Settings,
        listeners: Sequence[Listener],
        side: Sequence[Listener],
        config: ServerConfig,
        notices: Notices,
        manager: ServiceManager,
    ) -> None:
        self._app = app
        self._settings = settings
        self._lifecycle = app.lifecycle
        self._listeners = list(listeners)
        self._config = config
        self._tls = config.create_ssl_context()
        self._notices = notices
        self._manager = manager
        self._is_listening = trio.Event()
        self._commons = Commons(app, config, lambda: self._lifecycle.is_draining)
        self._side = list(side)
        self._side_commons = Commons(app.side_app or app, config, lambda: False)
        self._lifespan = Lifespan(app, self._commons.state)
        self._max_connections = raise_file_limit()

    async def run(self, task_status: trio.TaskStatus[list[str]]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._notices.watch)
                nursery.start_soon(self._keep_manager_told)
                nursery.start_soon(self._run_lifespan)
                if await _finishes(self._lifespan.wait_started, before=self._wait_end):
                    await self._serve(task_status)
                    await self._lifespan.shut_down()
                nursery.cancel_scope.cancel()
        finally:
            self._stop_accepting()
            self._end_side()
        self._lifecycle.stop()
        logger.info("stopped, exit code %d", self._lifecycle.exit_code)

    async def _keep_manager_told(self) -> None:
        await self._is_listening.wait()  # whoever hears that we are ready may connect
        await self._manager.keep_told(self._lifecycle)

    async def _run_lifespan(self) -> None:
        """Where the engine lives: when this ends, the server does."""
        try:
            await self._lifespan.run()
        except BaseExceptionGroup as exc:
            _, faults = exc.split(trio.Cancelled)
            if not isinstance(faults, ExceptionGroup):
                raise
            self._fail(faults)
        except Exception as exc:  # noqa: BLE001
            self._fail(exc)

    def _fail(self, exc: Exception) -> None:
        fault = _settings_error(exc)
        if fault is not None:
            logger.error("%s", fault)
            self._lifecycle.fail(str(fault), exit_code=EXIT_SETTINGS)
        else:
            logger.error("the app failed", exc_info=exc)
            self._lifecycle.fail("the app failed", exit_code=EXIT_FAILED)

    async def _wait_end(self) -> None:
        """Until there is a reason to stop serving as usual."""
        await _first(
            partial(self._notices.wait, 1), self._lifecycle.wait_failed, self._commons.context.terminate.wait
        )

    async def _serve(self, task_status: trio.TaskStatus[list[str]]) -> None:
        async with trio.open_nursery() as connections:
            for listener in self._listeners:
                self._listen(listener, connections, self._commons)
                logger.info("listening on %s", listener.url)
            for listener in self._side:
                self._listen(listener, connections, self._side_commons)
                logger.info("metrics on %s", listener.url)
            self._is_listening.set()
            task_status.started([listener.url for listener in self._listeners])
            await self._wait_end()
            if self._lifecycle.state is not ServerState.FAILED:
                interruption = partial(_first, partial(self._notices.wait, 2), self._lifecycle.wait_failed)
                await _finishes(partial(self._drain, connections), before=interruption)
            await self._end_requests()
            for connection in list(self._commons.connections):
                connection.cut()
            self._end_side()
            connections.cancel_scope.deadline = trio.current_time() + _CUT_S

    async def _drain(self, connections: trio.Nursery) -> None:
        """The gentle end, which a second notice or a failure interrupts."""
        delay_s = 0.0 if self._lifecycle.state is ServerState.STARTING else self._settings.drain_delay_s
        self._lifecycle.begin_drain()
        num_running = self._commons.census.num_running
        logger.info("draining: lame duck for %g s, %d requests run", delay_s, num_running)
        await trio.sleep(delay_s)
        self._stop_accepting(connections)
        await self._last_call()
        self._begin_closing()
        with trio.move_on_after(self._config.graceful_timeout):
            if self._commons.connections:
                await self._commons.census.wait_quiet(QUIET_S)
            await self._app.wait_released()

    async def _last_call(self) -> None:
        """Accepted last: their first request is on its way, and to refuse it would lose it."""
        with trio.move_on_after(QUIET_S):
            while any(conn.is_fresh for conn in self._commons.connections):  # noqa: ASYNC110 - once in a process' life
                await trio.sleep(QUIET_S / 10)

    def _begin_closing(self) -> None:
        if self._commons.is_closing:
            return
        self._lifecycle.begin_drain()
        self._lifecycle.begin_closing()
        self._commons.is_closing = True
        for connection in list(self._commons.connections):
            connection.close_if_idle()
        logger.info("closing: %d requests run", self._commons.census.num_running)

    async def _end_requests(self) -> None:
        """Whatever runs still gets an error instead of silence, within ``ABORT_S``."""
        failed = self._lifecycle.state is ServerState.FAILED
        self._stop_accepting()
        self._begin_closing()
        num_running = self._commons.census.num_running
        if num_running:
            logger.warning("%d requests did not finish in time: aborted", num_running)
            self._app.abort("the server has failed" if failed else "the server is shutting down")
            if not failed:
                self._lifecycle.exit_code = EXIT_ABORTED
        with trio.move_on_after(ABORT_S):
            await self._commons.census.wait_none()
            await self._app.wait_released()

    def _listen(self, listener: Listener, connections: trio.Nursery, commons: Commons) -> None:
        listener.listen(self._config.backlog, send_timeout_s=self._config.send_timeout_s)
        connections.start_soon(self._accept, listener, connections, commons)

    async def _accept(self, listener: Listener, connections: trio.Nursery, commons: Commons) -> None:
        # Processes that share a queue take turns, or the first to wake would have all of a burst.
        limit = 1 if listener.is_group else _ACCEPTS_PER_TURN
        while listener.is_open:
            try:
                await trio.lowlevel.wait_readable(listener.sock)
            except trio.ClosedResourceError:
                return
            fault = self._accept_waiting(listener, connections, commons, limit)
            if fault == errno.EINVAL:  # another process of the group has shut it
                return
            if fault in _OUT_OF_FILES:
                logger.error("a connection waits: %s", errno.errorcode[fault])
                await trio.sleep(QUIET_S)

    def _accept_waiting(
        self, listener: Listener, connections: trio.Nursery, commons: Commons, limit: int
    ) -> int:
        """Take at most ``limit`` connections from the kernel's queue; returns the errno that ended it, or 0."""
        tls = self._tls if listener.secure else None
        for _ in range(limit):
            if len(self._commons.connections) + len(self._side_commons.connections) >= self._max_connections:
                return errno.EMFILE
            try:
                sock, _ = listener.sock.accept()
            except OSError as exc:
                if exc.errno in _ENDS_TURN or isinstance(exc, BlockingIOError):
                    return exc.errno or 0
                continue  # that client is gone already
            sock.setblocking(False)
            connections.start_soon(Connection(commons, sock, tls=tls).run)
        return 0

    def _stop_accepting(self, connections: trio.Nursery | None = None) -> None:
        """Refuse new connections. Those in the kernel's queue are taken first, lest they be reset.

        One process of a group that ends by a fault of its own leaves both to the others, and so does one that has just
        started: when all drain, the others are lame ducks still. A failed one is the end of all.
        """
        lifecycle = self._lifecycle
        is_last_drain = lifecycle.is_draining and lifecycle.works is not ServerState.STARTING
        is_end_of_all = is_last_drain or lifecycle.state is ServerState.FAILED
        for listener in self._listeners:
            shut = not listener.is_shared and (is_end_of_all or not listener.is_group)
            if shut and connections is not None:
                self._accept_waiting(listener, connections, self._commons, self._config.backlog)
            listener.close(shut=shut)
        self._listeners.clear()

    def _end_side(self) -> None:
        for listener in self._side:
            listener.close()
        for connection in list(self._side_commons.connections):
            connection.cut()


async def _first(*waits: Callable[[], Awaitable[None]]) -> None:
    """Wait for the first of several conditions."""
    async with trio.open_nursery() as nursery:

        async def wait(condition: Callable[[], Awaitable[None]]) -> None:
            await condition()
            nursery.cancel_scope.cancel()

        for condition in waits:
            nursery.start_soon(wait, condition)


async def _finishes(work: Callable[[], Awaitable[None]], *, before: Callable[[], Awaitable[None]]) -> bool:
    """Do ``work``, cancelled when ``before`` comes first; returns whether it finished."""
    finished = False

    async def do() -> None:
        nonlocal finished
        await work()
        finished = True

    await _first(do, before)
    return finished


def _bind_side(app: ServedApp, settings: Settings, listeners: Sequence[Listener]) -> list[Listener]:
    """The sockets for ``metrics_port``, at the main ones' host; none where that port is the main one."""
    port = settings.metrics_port
    if port is None or app.side_app is None:
        return []
    host = next((listener.host for listener in listeners if listener.host is not None), settings.host)
    if port and port in {listener.port for listener in listeners}:
        return []
    try:
        return bind(host, port, flag="--metrics-port")
    except SettingsError:
        for listener in listeners:
            listener.close()
        raise


def _settings_error(exc: BaseException) -> SettingsError | None:
    if isinstance(exc, SettingsError):
        return exc
    if isinstance(exc, BaseExceptionGroup):
        return next(filter(None, map(_settings_error, exc.exceptions)), None)
    return None
