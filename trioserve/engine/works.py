"""What the ranks of this server are told at their start, and what is said of their loading."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from trioserve.core.step import LoadProgress, WorkerConfig, WorkerReady
from trioserve.engine.checkpoint import ModelFolder
from trioserve.executor.executor import Executor, start_ranks
from trioserve.grammars.registry import backend_named
from trioserve.settings import Settings

logger = logging.getLogger(__name__)

_PROGRESS_INTERVAL_S = 2.0


def works_for(settings: Settings, model: ModelFolder) -> Callable[[], AbstractAsyncContextManager[Executor]]:
    """How to start the ranks that serve ``model``; see ``supervisor.StartWorks``."""

    @asynccontextmanager
    async def start() -> AsyncIterator[Executor]:
        progress = _ProgressLog()
        config = worker_config(settings, model)
        async with start_ranks(
            config, start_timeout_s=settings.start_timeout_s, on_progress=progress.report
        ) as ranks:
            _log_ready(ranks.ready, model, settings)
            yield ranks

    return start


def worker_config(settings: Settings, model: ModelFolder) -> WorkerConfig:
    """The first frame for rank 0."""
    return WorkerConfig(
        model_path=str(model.path),
        device=settings.device,
        dtype=settings.dtype,
        tp_rank=0,
        tp_size=settings.tensor_parallel_size,
        block_size=settings.block_size,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_model_len=model.max_model_len,
        num_blocks=settings.num_kv_blocks,
        kv_cache_bytes=settings.kv_cache_bytes,
        num_threads=settings.num_threads,
        load_format="auto" if settings.load_format == "safetensors" else settings.load_format,
        seed=settings.seed or 0,
        kv_cache_share=settings.cache_max_entry_count,
        tokenizer_path=str(model.tokenizer_path),
        eos_token_ids=list(model.eos_token_ids),
        grammar_backend=backend_named(settings.guided_decoding_backend),
        max_cached_grammars=settings.max_cached_grammars,
        use_warmup=settings.use_warmup,
        kv_cache_dtype=settings.kv_cache_dtype,
        pin_threads=settings.pin_threads,
    )


class _ProgressLog:
    """A line now and then while a large checkpoint loads; a small one loads without a word."""

    def __init__(self) -> None:
        self._next_at: float | None = None

    def report(self, progress: LoadProgress) -> None:
        now = trio.current_time()
        if self._next_at is None:
            self._next_at = now + _PROGRESS_INTERVAL_S
        if now < self._next_at:
            return
        self._next_at = now + _PROGRESS_INTERVAL_S
        share = progress.loaded_bytes / max(1, progress.total_bytes)
        bar = "#" * int(30 * share)
        logger.info(
            "loading weights [%-30s] %3.0f %% of %.2f GB", bar, 100 * share, progress.total_bytes / 1e9
        )


def _log_ready(ready: WorkerReady, model: ModelFolder, settings: Settings) -> None:
    logger.info(
        "serving %s: %s, weights %.0f MB, KV cache %d blocks of %d tokens (%s, %.0f MB), decoder %s, attention %s, "
        "loaded in %.1f s",
        model.name,
        ready.dtype,
        ready.weights_bytes / 1e6,
        ready.num_blocks,
        settings.block_size,
        ready.kv_cache_dtype,
        ready.kv_cache_bytes / 1e6,
        ready.decoder,
        ready.attention,
        ready.load_s,
    )
