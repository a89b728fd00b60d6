"""What the ranks of this server are told at their start, and what is said of their loading."""

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TextIO

import trio

from trioserve.core.step import LoadProgress, Speculation, WorkerConfig, WorkerReady
from trioserve.engine.checkpoint import ModelFolder
from trioserve.engine.lifecycle import Lifecycle
from trioserve.executor.executor import Executor, close_ranks, run_ranks
from trioserve.executor.rank import Rank, launch_ranks
from trioserve.grammars.registry import backend_named
from trioserve.settings import Settings, SpeculativeConfig

logger = logging.getLogger(__name__)

_LINE_INTERVAL_S: Final = 2.0
_ERASE_LINE: Final = "\r\x1b[K"


class Works:
    """The ranks that serve ``model``: started, and started anew, one set after the other.

    The first set may be launched before there is an engine, and loads while the front reads its tokenizer.
    """

    def __init__(self, settings: Settings, model: ModelFolder, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._model = model
        self._lifecycle = lifecycle
        self._launched: list[Rank] = []
        """That nobody runs yet."""

    def launch(self) -> None:
        """Let the next set of ranks load.

        Raises:
            SettingsError: There are more of them than GPUs, or than CPUs where these compute.
        """
        self._launched = launch_ranks(worker_config(self._settings, self._model))

    @asynccontextmanager
    async def start(self) -> AsyncIterator[Executor]:
        """Run a set of ranks for as long as the block is open; see ``supervisor.StartWorks``."""
        if not self._launched:
            self.launch()
        ranks, self._launched = self._launched, []
        report = ProgressReport(self._lifecycle, _terminal(self._settings))
        timeout_s = self._settings.start_timeout_s
        async with run_ranks(ranks, start_timeout_s=timeout_s, on_progress=report) as executor:
            _log_ready(executor.ready, self._model, self._settings)
            yield executor

    async def aclose(self) -> None:
        """End ranks that were launched and never run."""
        launched, self._launched = self._launched, []
        await close_ranks(launched)


def worker_config(settings: Settings, model: ModelFolder) -> WorkerConfig:
    """The first frame for every rank, but for what tells them apart."""
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
        quantization=settings.quantization,
        use_warmup=settings.use_warmup,
        speculation=_speculation(settings.speculative_config),
        kv_cache_dtype=settings.kv_cache_dtype,
        pin_threads=settings.pin_threads,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        swap_bytes=int(settings.swap_space * (1 << 30)),
        enforce_eager=settings.enforce_eager,
        batch_invariant=settings.batch_invariant,
    )


def _speculation(config: SpeculativeConfig | None) -> Speculation | None:
    return None if config is None else Speculation(config.num_speculative_tokens, *config.lookup)


class ProgressReport:
    """Tells how far a checkpoint has loaded: /health at any time; a terminal by a bar, a log by a line now and then. A
    small one loads without a line."""

    def __init__(self, lifecycle: Lifecycle, terminal: TextIO | None) -> None:
        """``terminal``: where the bar is drawn; None: there is none."""
        self._lifecycle = lifecycle
        self._terminal = terminal
        self._next_line_at = trio.current_time() + _LINE_INTERVAL_S

    def __call__(self, progress: LoadProgress) -> None:
        share = progress.loaded_bytes / max(1, progress.total_bytes)
        self._lifecycle.loaded_share = share
        text = f"loading weights [{'#' * int(30 * share):30}] {share:4.0%} of {progress.total_bytes / 1e9:.2f} GB"
        if self._terminal is not None:
            is_over = progress.loaded_bytes >= progress.total_bytes
            self._terminal.write(_ERASE_LINE + ("" if is_over else text))
            self._terminal.flush()
        elif trio.current_time() >= self._next_line_at:
            self._next_line_at = trio.current_time() + _LINE_INTERVAL_S
            logger.info("%s", text)


def _terminal(settings: Settings) -> TextIO | None:
    """Where people watch the server start, if they do."""
    shows_text = settings.log_format != "json" and logger.isEnabledFor(logging.INFO)
    return sys.stderr if shows_text and sys.stderr.isatty() else None


def _log_ready(ready: WorkerReady, model: ModelFolder, settings: Settings) -> None:
    logger.info(
        "serving %s: %s, weights %.0f MB, KV cache %d blocks of %d tokens (%s, %.0f MB), decoder %s, attention %s, "
        "loaded in %.1f s (%s)",
        model.name,
        ready.dtype,
        ready.weights_bytes / 1e6,
        ready.num_blocks,
        settings.block_size,
        ready.kv_cache_dtype,
        ready.kv_cache_bytes / 1e6,
        ready.decoder,
        ready.attention,
        sum(ready.phases_s.values()),
        ", ".join(f"{name} {seconds:.2f}" for name, seconds in ready.phases_s.items()),
    )
    if settings.speculative_config is not None:
        logger.info("guessing tokens in steps of at most %d sequences", ready.max_drafting_seqs)
