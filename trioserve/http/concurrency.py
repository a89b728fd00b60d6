"""The bound on requests that are served at a time."""

from quart import Request

from trioserve.attach.peer import HANDED_OVER
from trioserve.http.held import hold
from trioserve.http.services import Services


async def take_permit(services: Services, request: Request) -> None:
    """Let ``request`` in if it is a POST and ``max_concurrency`` allows one more, in all processes together.

    It counts from its head to the last byte of its answer, or until its client is gone.

    Raises:
        QueueFull: As many are served already.
        NotReady: There is nobody to ask just now.
    """
    if services.settings.max_concurrency is None or request.method != "POST" or HANDED_OVER in request.scope:
        return
    if services.owner is not None:
        hold(request, await services.owner.permit())
    else:
        services.permits.take()
        hold(request, services.permits.give_back)
