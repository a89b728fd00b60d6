"""From a WorkerConfig to a runner that has run once."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from trioserve._speedups.exchange import Exchange
from trioserve.core.step import LoadProgress, WorkerConfig, WorkerReady
from trioserve.errors import ModelError
from trioserve.kernels.attention import implementation
from trioserve.model.config import DecoderConfig, read_config
from trioserve.model.decoder import Decoder
from trioserve.model.loader import dummy_weights, load_weights, resolve_dtype
from trioserve.model.native import Crew, obstacle, refuse_quantization
from trioserve.model.native_matrices import QUANTIZATIONS, Quantization
from trioserve.model.parts import Part
from trioserve.model.ranks import ALONE, GroupRanks, Ranks, join_gloo
from trioserve.worker.device_load import CUDA, Machine, load_device_runner
from trioserve.worker.device_step_runner import DeviceStepRunner
from trioserve.worker.following import FollowingRunner
from trioserve.worker.grammars import Grammars
from trioserve.worker.kv_cache import KVCache, allocate_kv_cache, cache_layout
from trioserve.worker.machine import Cores, usable_cores
from trioserve.worker.phases import Phases, Throttle
from trioserve.worker.prices import measure_prices
from trioserve.worker.runner import ModelRunner, StepRunner
from trioserve.worker.warm_up import run_once

_NATIVE_ONLY: Final = ("int8", "int4", "fp8")
"""Values of settings that torch's layers on a CPU cannot obey."""
_WARM_UP_TOKENS: Final = 16
_WARM_UP_SEQS: Final = 64
"""Decodes of every batch size up to it are part of a full warm-up of torch's layers: the first product of each number
of rows makes a kernel for it, which takes about as long as the product. oneDNN keeps 1024 kernels and forgets the
oldest: twice as many sizes did not fit. The native decoder has its kernels."""


def load_runner(
    config: WorkerConfig,
    report: Callable[[LoadProgress], None],
    started: float,
    grammars: Grammars | None = None,
    *,
    meanwhile: Callable[[], None] = lambda: None,
    machine: Machine = CUDA,
) -> tuple[StepRunner | DeviceStepRunner, WorkerReady]:
    """Load the model, allocate its KV cache and run a first prefill and decode, or a full warm-up if told to.

    Args:
        report: Called every 100 ms or so with the bytes loaded, and at the end.
        started: ``time.monotonic()`` when the process began.
        grammars: Where the runner finds them; None: they are loaded and compiled when they are needed.
        meanwhile: As ``Decoder.pack`` says.
        machine: Where the model is loaded with device "cuda".
    Raises:
        ModelError: The folder, the settings or the machine are not up to it; one sentence.
    """
    if config.device == "cuda":
        phases = Phases(started)
        phases.end("imports")
        own = grammars or Grammars(config)
        return load_device_runner(config, report, phases, own, meanwhile=meanwhile, machine=machine)
    return load_cpu_runner(config, report, started, grammars, meanwhile=meanwhile)


def load_cpu_runner(
    config: WorkerConfig,
    report: Callable[[LoadProgress], None],
    started: float,
    grammars: Grammars | None = None,
    *,
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[StepRunner, WorkerReady]:
    """``load_runner`` with device "cpu", by native code or torch's layers."""
    phases = Phases(started)
    phases.end("imports")
    _refuse_spread(config)
    crew = _crew(config, usable_cores().share(config.local_rank, config.num_local_ranks))
    torch.set_num_threads(crew.num_threads)
    folder = Path(config.model_path)
    shape = read_config(folder)
    Part(config.tp_rank, config.tp_size).refuse_uneven(shape)
    dtype = _dtype(folder, shape, config)
    quantization = _quantization(config)
    refuse_quantization(shape, dtype, quantization, tp_size=config.tp_size)
    why = obstacle(shape, dtype, tp_size=config.tp_size)
    if why is None and config.spread is not None:
        why = "its ranks are on several machines"
    if config.batch_invariant and why is not None:
        raise ModelError(
            f"batch_invariant cannot be obeyed: {why}; leave it out, or choose another model or dtype"
        )
    layout = cache_layout(config.kv_cache_dtype, shape, dtype, tp_size=config.tp_size)
    ranks = _meet(config, is_native=why is None)
    sums = ranks if isinstance(ranks, GroupRanks) else None
    part = Part(ranks.tp_rank, ranks.tp_size, sums)
    model = Decoder(shape, dtype, config.max_model_len, part)
    progress = Throttle(report)
    if config.load_format == "dummy":
        dummy_weights(model, config.seed, progress)
    else:
        load_weights(model, folder, progress, may_borrow=why is None)
    phases.end("weights mapped")
    weights_bytes = sum(parameter.nbytes for parameter in model.parameters())
    exchange = ranks if isinstance(ranks, Exchange) else None
    decoder = model.pack(crew, quantization, progress, layout=layout, exchange=exchange, meanwhile=meanwhile)
    phases.end("packed")
    kv_cache = allocate_kv_cache(part.shape(shape), config, layout, ranks)
    runner = _runner(model, kv_cache, grammars or Grammars(config), ranks, config)
    _warm_up(runner, config, kv_cache.num_blocks, makes_kernels=why is not None)
    prices = (
        []
        if config.speculation is None
        else measure_prices(runner, ranks, config, config.speculation, shape.vocab_size)
    )
    if runner.drafter is not None:
        runner.drafter.prices = prices
    phases.end("warm-up")
    ready = WorkerReady(
        tp_rank=config.tp_rank,
        num_blocks=kv_cache.num_blocks,
        load_s=phases.total_s("packed"),
        kv_cache_bytes=kv_cache.num_bytes,
        weights_bytes=model.packed_bytes or weights_bytes,
        dtype=str(dtype).removeprefix("torch."),
        attention=implementation(dtype, shape.head_dim, config.block_size),
        decoder=decoder,
        phases_s=phases.seconds,
        max_drafting_seqs=len(prices),
        kv_cache_dtype=layout.name,
    )
    return runner, ready


def _runner(
    model: Decoder, kv_cache: KVCache, grammars: Grammars, ranks: Ranks, config: WorkerConfig
) -> StepRunner:
    max_num_seqs, max_model_len, block_size = config.max_num_seqs, config.max_model_len, config.block_size
    if ranks.tp_rank:
        return FollowingRunner(
            model,
            kv_cache,
            ranks,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            block_size=block_size,
        )
    return ModelRunner(
        model,
        kv_cache,
        grammars,
        ranks,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        block_size=block_size,
        speculation=config.speculation,
    )


def _crew(config: WorkerConfig, cores: Cores) -> Crew:
    """As many threads as told and as can run at once. Where they are as many as there are cores, each keeps to one;
    fewer are left to the system, since others may compute on the same cores, with threads and a quota of their own.
    """
    num_threads = min(config.num_threads or cores.count, cores.count)
    is_pinned = num_threads == len(cores.cpus) if config.pin_threads is None else config.pin_threads
    return Crew(num_threads, cores.cpus[:num_threads] if is_pinned else ())


def _dtype(folder: Path, shape: DecoderConfig, config: WorkerConfig) -> torch.dtype:
    """What is computed in. With auto a quantized checkpoint is in bfloat16: the float16 that most of them name is that
    of the kernels they were made for, and here would be layers that need every matrix in 16 bits."""
    if config.dtype == "auto" and shape.quantization is not None:
        return torch.bfloat16
    return resolve_dtype(folder, shape, config.dtype)


def _quantization(config: WorkerConfig) -> Quantization:
    known: tuple[Quantization, ...] = ("auto", *QUANTIZATIONS)
    for quantization in known:
        if quantization == config.quantization:
            return quantization
    raise ModelError(f"quantization {config.quantization} is not supported, only {', '.join(known)} are")


def _refuse_spread(config: WorkerConfig) -> None:
    """See to it that ranks of several machines are not asked for what torch's layers cannot do."""
    if config.spread is None:
        return
    for name, value in (("quantization", config.quantization), ("kv_cache_dtype", config.kv_cache_dtype)):
        if value in _NATIVE_ONLY:
            raise ModelError(
                f"{name} {value} needs the native decoder, whose ranks share one machine's memory, and these are on "
                "several: leave it out"
            )


def _meet(config: WorkerConfig, *, is_native: bool) -> Ranks:
    """The other ranks, where there are some; returns when all are there, or when they can come."""
    if config.tp_size == 1:
        return ALONE
    if is_native:
        return Exchange(config.meeting_fd, config.tp_rank, config.tp_size)
    return join_gloo(config.meeting_fd, config.tp_rank, config.tp_size, config.meeting_address)


def _warm_up(runner: StepRunner, config: WorkerConfig, num_blocks: int, *, makes_kernels: bool) -> None:
    """Run prefills and decodes, so that the first requests do not pay for what is made on first use: memory for the
    largest step, and kernels where they are made for a number of rows."""
    run_once(runner.run, config, num_blocks, num_seqs=1, num_tokens=_WARM_UP_TOKENS)
    if config.use_warmup:
        for num_seqs in (config.max_num_seqs, 1):
            run_once(
                runner.run, config, num_blocks, num_seqs=num_seqs, num_tokens=config.max_num_batched_tokens
            )
    if config.use_warmup and makes_kernels:
        for num_seqs in range(min(_WARM_UP_SEQS, config.max_num_seqs), 0, -1):
            run_once(runner.run, config, num_blocks, num_seqs=num_seqs, num_tokens=num_seqs)
