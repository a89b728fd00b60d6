"""GET /v1/models and /v1/models/{id}."""

import msgspec
from quart import Response

from trioserve.errors import ModelNotFound
from trioserve.http.services import ServedModel, Services
from trioserve.protocol.models import ModelCard, ModelList


async def list_models(services: Services) -> Response:
    """Every name of the model."""
    served = services.model
    cards = [_card(served, name) for name in served.engine.model.names]
    return Response(msgspec.json.encode(ModelList(data=cards)), content_type="application/json")


async def get_model(services: Services, model_id: str) -> Response:
    """One of the names, which may hold slashes."""
    served = services.model
    if model_id not in served.engine.model.names:
        known = ", ".join(served.engine.model.names)
        raise ModelNotFound(f"model {model_id[:200]!r} is not served here; {known} is", param="model")
    return Response(msgspec.json.encode(_card(served, model_id)), content_type="application/json")


def _card(served: ServedModel, name: str) -> ModelCard:
    model = served.engine.model
    return ModelCard(id=name, created=model.created, max_model_len=model.max_model_len, root=model.name)
