"""/live, /ready, /health and /version: what orchestrators, balancers and people ask."""

import msgspec
from quart import Response

import trioserve
from trioserve.http.services import Services


class Health(msgspec.Struct, frozen=True):
    """What /health says."""

    status: str
    """"ok", or "failed" when only a restart helps."""
    state: str
    """Where the server stands between start and end."""
    worker: int
    """Which of the server's processes answers; 0 runs the engine. The counts are the engine's, whichever it is."""
    loaded_share: float | None = None
    """Of the weights, in [0, 1]; None where nothing is known of them, as in processes other than worker 0."""
    last_step_age_s: float | None = None
    """Seconds since the model's last step; None before the first."""
    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    """KV blocks that there are."""
    num_free_blocks: int = 0
    num_cached_tokens: int = 0
    """Of prompts, found in the prefix cache, since the works started."""
    num_preemptions: int = 0
    """Sequences that gave their blocks back, since the start."""
    num_restarts: int = 0
    """Of the works."""


class State(msgspec.Struct, frozen=True):
    """What /live and /ready say."""

    state: str


class Version(msgspec.Struct, frozen=True):
    """What /version says."""

    version: str


async def live(services: Services) -> Response:
    """Whether a restart would be wrong."""
    return _probe(services.lifecycle.is_live, State(services.lifecycle.state.value))


async def ready(services: Services) -> Response:
    """Whether balancers should send requests."""
    return _probe(services.lifecycle.is_ready, State(services.lifecycle.state.value))


async def health(services: Services) -> Response:
    """As /live, with numbers."""
    lifecycle, engine = services.lifecycle, services.engine
    status = "ok" if lifecycle.is_live else "failed"
    if engine is None:
        health = Health(status, lifecycle.state.value, services.worker, loaded_share=lifecycle.loaded_share)
        return _probe(lifecycle.is_live, health)
    counts = engine.statistics()
    return _probe(
        lifecycle.is_live,
        Health(
            status,
            lifecycle.state.value,
            services.worker,
            loaded_share=lifecycle.loaded_share,
            last_step_age_s=counts.last_step_age_s,
            num_running=counts.num_running,
            num_waiting=counts.num_waiting,
            num_blocks=counts.num_blocks,
            num_free_blocks=counts.num_free_blocks,
            num_cached_tokens=counts.num_cached_tokens,
            num_preemptions=counts.num_preemptions,
            num_restarts=counts.num_restarts,
        ),
    )


async def version(services: Services) -> Response:  # handlers are called alike
    """Which trioserve this is."""
    return _probe(True, Version(trioserve.__version__))


def _probe(is_fine: bool, body: msgspec.Struct) -> Response:
    response = Response(
        msgspec.json.encode(body), status=200 if is_fine else 503, content_type="application/json"
    )
    response.headers["cache-control"] = "no-store"
    return response
