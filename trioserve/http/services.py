"""What the handlers reach for."""

import hashlib
import random
from dataclasses import dataclass, replace
from functools import partial

import trioserve
from trioserve.engine.engine import Engine
from trioserve.engine.lifecycle import Lifecycle
from trioserve.errors import NotReady
from trioserve.prompt.renderer import Renderer
from trioserve.protocol.sampling import SamplingDefaults
from trioserve.settings import Settings


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is there once the model is loaded."""

    engine: Engine
    renderer: Renderer
    defaults: SamplingDefaults
    fingerprint: str
    """``system_fingerprint`` of answers: changes with the model and with the server's version."""

    def answer_name(self, asked: str | None) -> str:
        """The model name that an answer gives: the one asked for, if it is served."""
        model = self.engine.model
        return asked if asked is not None and asked in model.names else model.name


class Services:
    """Settings and state of the server; the model arrives when it is loaded, and requests before it get a 503."""

    def __init__(self, settings: Settings, lifecycle: Lifecycle) -> None:
        self.settings = settings
        self.lifecycle = lifecycle
        self._model: ServedModel | None = None

    def serve(self, engine: Engine, renderer: Renderer) -> None:
        """Answer requests with ``engine`` from now on."""
        model = engine.model
        vocab_size = min(renderer.vocab_size, model.vocab_size)
        defaults = SamplingDefaults.from_generation_config(
            model.generation_config, vocab_size=vocab_size, eos_token_ids=model.eos_token_ids
        )
        if self.settings.seed is not None:
            seeds = random.Random(self.settings.seed)  # noqa: S311 # to be repeatable is the point
            defaults = replace(defaults, draw_seed=partial(seeds.getrandbits, 63))
        identity = f"{trioserve.__version__} {model.name} {model.path.name}"
        self._model = ServedModel(
            engine=engine,
            renderer=renderer,
            defaults=defaults,
            fingerprint="fp_" + hashlib.sha256(identity.encode()).hexdigest()[:12],
        )

    @property
    def engine(self) -> Engine | None:
        """The engine, if it is there already."""
        return None if self._model is None else self._model.engine

    @property
    def model(self) -> ServedModel:
        """What requests are served with.

        Raises:
            NotReady: The model is not loaded yet.
            Draining: The server ends before it ever was.
        """
        if self._model is None:
            self.lifecycle.check()
            raise NotReady("the model is still loading", retry_after_s=2.0)
        return self._model
