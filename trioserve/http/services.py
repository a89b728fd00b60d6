"""What the handlers reach for."""

import hashlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import trio

import trioserve
from trioserve.attach.remote import RemoteOwner
from trioserve.attach.wire import HttpCounts
from trioserve.engine.engine import Engine
from trioserve.engine.face import EngineFace
from trioserve.engine.lifecycle import Lifecycle
from trioserve.engine.permits import Bounds, Permits
from trioserve.errors import ModelNotFound, NotReady
from trioserve.examiner.client import Examiner
from trioserve.http.metrics import Metrics
from trioserve.http.pages import Pages
from trioserve.http.traffic import Traffic
from trioserve.parsers.dialects import Dialects
from trioserve.prompt.renderer import Renderer
from trioserve.protocol.sampling import SamplingDefaults
from trioserve.settings import Settings
from trioserve.store.completions import CompletionStore
from trioserve.store.database import StoredCompletion
from trioserve.store.sessions import SessionTable

_NO_DIALECTS: Final = Dialects()


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is there once the model is loaded."""

    engine: EngineFace
    renderer: Renderer
    grammars: Examiner
    """What makes grammars of the forms that requests ask for."""
    defaults: SamplingDefaults
    fingerprint: str
    """``system_fingerprint`` of answers: changes with the model and with the server's version."""
    dialects: Dialects = _NO_DIALECTS
    """How it calls tools and thinks."""
    strict_names: bool = False
    """Whether requests must name the model as it is served."""

    def check_name(self, asked: str | None) -> None:
        """Let a request pass that wants this model: any name or none does, unless names are strict.

        Raises:
            ModelNotFound: Names are strict and this is none of them.
        """
        if self.strict_names:
            self.check_served(asked)

    def check_served(self, asked: str | None) -> None:
        """Refuse every other name than those of the model.

        Raises:
            ModelNotFound: Names those.
        """
        names = self.engine.model.names
        if asked not in names:
            given = "no model is named" if asked is None else f"model {asked[:200]!r} is not served here"
            raise ModelNotFound(f"{given}; {', '.join(names)} is", param="model")

    def answer_name(self, asked: str | None) -> str:
        """The model name that an answer gives: the one asked for, if it is served."""
        model = self.engine.model
        return asked if asked is not None and asked in model.names else model.name


class Services:
    """Settings and state of the server; the model arrives when it is loaded, and requests before it get a 503.

    In a process that is attached to the owner of the engine, what is kept here for all clients stays empty: the owner
    is asked instead.
    """

    def __init__(
        self, settings: Settings, lifecycle: Lifecycle, *, worker: int = 0, owner: RemoteOwner | None = None
    ) -> None:
        self.settings = settings
        self.lifecycle = lifecycle
        self.worker = worker
        """The number of this process among ``settings.workers``; 0 runs the engine."""
        self.owner = owner
        """The process that runs the engine, where that is another one."""
        self.traffic = Traffic()
        self.counts_of_others: Callable[[], Awaitable[list[HttpCounts]]] = _of_none
        """The HTTP requests of the processes that are attached to this one."""
        self.own_engine: Engine | None = None
        """The engine, if it is there already and runs in this process."""
        self.metrics = Metrics(settings, lifecycle, self.traffic, lambda: self.own_engine)
        bounds = Bounds(
            at_a_time=settings.max_concurrency,
            at_a_time_per_key=settings.max_concurrency_per_key,
            per_minute=settings.max_requests_per_minute,
        )
        self.permits = Permits(bounds, trio.current_time)
        self.is_bounded = bounds != Bounds()
        """Whether requests need a permit."""
        self.errands = trio.CapacityLimiter(1)
        """Threads for long work that no model waits for, so that prompts never queue behind it."""
        self.pages = Pages()
        self._model: ServedModel | None = None
        self.completions = CompletionStore(
            settings.store_path,
            max_count=settings.max_stored_completions,
            max_bytes=settings.max_stored_bytes,
        )
        self.sessions = SessionTable(
            max_count=settings.max_sessions,
            max_bytes=settings.max_session_bytes,
            ttl_s=settings.session_ttl_s,
            clock=trio.current_time,
        )

    def serve(
        self,
        engine: EngineFace,
        renderer: Renderer,
        *,
        grammars: Examiner,
        dialects: Dialects = _NO_DIALECTS,
    ) -> None:
        """Answer requests with ``engine`` from now on."""
        self.own_engine = engine if isinstance(engine, Engine) else None
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
            grammars=grammars,
            defaults=defaults.overridden(self.settings.override_generation_config, self.settings.early_stop),
            fingerprint="fp_" + hashlib.sha256(identity.encode()).hexdigest()[:12],
            dialects=dialects,
            strict_names=self.settings.strict_model or len(model.names) > 1,
        )

    @property
    def engine(self) -> EngineFace | None:
        """The engine, if it is there already."""
        return None if self._model is None else self._model.engine

    async def keep(self, record: StoredCompletion) -> None:
        """Have an answer stored, unless it cannot be written; whoever asks from now on finds it."""
        if self.owner is not None:
            await self.owner.keep(record)
        else:
            self.completions.put_nowait(record)

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


async def _of_none() -> list[HttpCounts]:
    return []
