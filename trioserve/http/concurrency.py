"""The bounds on requests: how many are served at a time, how many a key may send in a minute."""

from collections.abc import Mapping

from quart import Request, g

from trioserve.attach.peer import HANDED_OVER
from trioserve.engine.permits import Rate
from trioserve.http.held import hold
from trioserve.http.owner import owner_of_request
from trioserve.http.services import Services


async def take_permit(services: Services, request: Request) -> None:
    """Let ``request`` in if it is a POST and the bounds allow one more, in all processes together.

    It counts from its head to the last byte of its answer, or until its client is gone.

    Raises:
        QueueFull: As many are served already.
        RateLimited: Its key has sent as many within a minute as it may.
        NotReady: There is nobody to ask just now.
    """
    if not services.is_bounded or request.method != "POST" or HANDED_OVER in request.scope:
        return
    key = owner_of_request()
    if services.owner is not None:
        give_back, g.rate = await services.owner.permit(key)
        hold(request, give_back)
    else:
        g.rate = services.permits.take(key)
        hold(request, lambda: services.permits.give_back(key))


def rate_headers() -> Mapping[str, str]:
    """What is left of the minute of whose request this is, in OpenAI's headers; nothing where that is not bounded."""
    rate: Rate | None = g.get("rate")
    if rate is None:
        return {}
    return {
        "x-ratelimit-limit-requests": str(rate.limit),
        "x-ratelimit-remaining-requests": str(rate.remaining),
        "x-ratelimit-reset-requests": f"{rate.reset_s:.3f}s",
    }
