"""``trioserve serve``: bind, serve, and the exit code."""

from functools import partial

import trio

from trioserve.server.config import ServerConfig
from trioserve.server.serve import ServedApp, serve
from trioserve.server.signals import Notices
from trioserve.server.sockets import Listener, bind, bind_unix, handed_over
from trioserve.server.systemd import ServiceManager, take_sockets
from trioserve.settings import Settings


def run(app: ServedApp, settings: Settings) -> int:
    """Serve ``app`` where ``bind_address`` says until it has drained or failed; main thread only.

    Returns:
        0 after a clean drain, 75 if requests were aborted, 70 if the engine failed, 78 if a setting was found to be
        wrong once the app had started. A third SIGTERM or SIGINT does not return: it ends the process with 128 + n.

    Raises:
        SettingsError: The address cannot be bound, or the installed hypercorn does not fit.
    """
    notices = Notices()
    notices.install()
    config = ServerConfig.build(settings)
    listeners = bind_address(settings, config)
    manager = ServiceManager.from_environment()
    return trio.run(partial(serve, app, settings, listeners, config=config, notices=notices, manager=manager))


def bind_address(settings: Settings, config: ServerConfig) -> list[Listener]:
    """Bind ``settings.uds``, or take ``settings.fd`` or what a service manager hands over, or bind host and port.

    Raises:
        SettingsError: It cannot be bound, or what is handed over takes no connections.
    """
    if settings.fd is not None:
        return [handed_over(settings.fd, secure=config.ssl_enabled)]
    if inherited := take_sockets(secure=config.ssl_enabled):
        return inherited
    if settings.uds:
        return bind_unix(settings.uds, secure=config.ssl_enabled)
    return bind(settings.host, settings.port, secure=config.ssl_enabled)
