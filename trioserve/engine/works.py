"""What the ranks of this server are told at their start, and what is said of their loading."""

import logging
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, TextIO

import trio

from trioserve.core.join import model_digest
from trioserve.core.step import LoadProgress, Speculation, WorkerConfig, WorkerReady
from trioserve.engine.checkpoint import ModelFolder
from trioserve.engine.lifecycle import Lifecycle
from trioserve.executor.door import RankDoor
from trioserve.executor.executor import Executor, close_ranks, run_ranks
from trioserve.executor.joined import launch_spread_ranks
from trioserve.executor.rank import Rank, launch_ranks, refuse_crowd
from trioserve.grammars.registry import backend_named
from trioserve.settings import Settings, SpeculativeConfig, find_gpus, split_rank_address

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
        self._launched: Sequence[Rank] = []
        """That nobody runs yet."""
        self._door: RankDoor | None = None
        """Where ranks of other machines come in, if some are to."""

    def launch(self) -> None:
        """Let the first set of ranks load; where some of them are on other machines, open the door to these.

        Raises:
            SettingsError: There are more of them here than GPUs, or than CPUs where these compute; or the door's
                address cannot be used.
        """
        warn_of_idle_gpus(self._settings)
        if self._settings.rank_listen is None:
            self._launched = launch_ranks(worker_config(self._settings, self._model))
        else:
            refuse_crowd(self._settings.num_local_ranks, "local_ranks", self._settings.device)
            self._door = open_door(self._settings, self._model)

    async def run(self) -> None:
        """Let ranks of other machines in until cancelled; returns at once where none are to come."""
        if self._door is not None:
            await self._door.run()

    @asynccontextmanager
    async def start(self) -> AsyncIterator[Executor]:
        """Run a set of ranks for as long as the block is open; see ``supervisor.StartWorks``."""
        ranks = await self._next_set()
        report = ProgressReport(self._lifecycle, _terminal(self._settings))
        timeout_s = self._settings.start_timeout_s
        async with run_ranks(ranks, start_timeout_s=timeout_s, on_progress=report) as executor:
            _log_ready(executor.ready, self._model, self._settings)
            yield executor

    async def _next_set(self) -> Sequence[Rank]:
        """Ranks that load: those that were launched, or a new set, once all are here."""
        config = worker_config(self._settings, self._model)
        if self._door is not None:
            num_local = self._settings.num_local_ranks
            visitors = await self._door.take(config.tp_size - num_local)
            return await launch_spread_ranks(config, visitors, num_local=num_local, host=self._door.host)
        ranks, self._launched = self._launched or launch_ranks(config), []
        return ranks

    async def aclose(self) -> None:
        """End ranks that were launched and never run, and shut the door."""
        if self._door is not None:
            self._door.close()
        launched, self._launched = self._launched, []
        await close_ranks(launched)


def open_door(settings: Settings, model: ModelFolder) -> RankDoor:
    """A door for as many ranks as are on other machines.

    Raises:
        SettingsError: Its address or its key cannot be used.
    """
    host, port = split_rank_address(settings.rank_listen or "")
    return RankDoor(
        host,
        port,
        key=settings.read_rank_key(),
        model_digest=model_digest(model.path),
        num_wanted=settings.tensor_parallel_size - settings.num_local_ranks,
        silence_s=settings.rank_silence_timeout_s,
    )


def warn_of_idle_gpus(settings: Settings) -> None:
    """Say why a CPU computes where there are GPUs and nobody has asked for the CPU."""
    if settings.device == "cpu" and "device" not in settings.model_fields_set and find_gpus().are_there:
        logger.warning(
            "a CPU computes although there is a GPU: %s, or set device to cpu", find_gpus().missing
        )


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
        is_over = progress.loaded_bytes >= progress.total_bytes
        if progress.total_graphs:
            share = progress.num_graphs / progress.total_graphs
            text = f"capturing graphs [{'#' * int(30 * share):30}] {progress.num_graphs} of {progress.total_graphs}"
            is_over = progress.num_graphs == progress.total_graphs
        if self._terminal is not None:
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
        "serving %s on %s: %s, weights %.0f MB, KV cache %d blocks of %d tokens (%s, %.0f MB)%s, decoder %s, "
        "attention %s, loaded in %.1f s (%s)",
        model.name,
        ready.device,
        ready.dtype,
        ready.weights_bytes / 1e6,
        ready.num_blocks,
        settings.block_size,
        ready.kv_cache_dtype,
        ready.kv_cache_bytes / 1e6,
        f" and {ready.num_host_blocks} of the host" if ready.num_host_blocks else "",
        ready.decoder,
        ready.attention,
        sum(ready.phases_s.values()),
        ", ".join(f"{name} {seconds:.2f}" for name, seconds in ready.phases_s.items()),
    )
    if settings.speculative_config is not None:
        logger.info("guessing tokens in steps of at most %d sequences", ready.max_drafting_seqs)
