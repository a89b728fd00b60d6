"""From a WorkerConfig to a runner on a GPU that has run once."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import torch

from trioserve.core.step import LoadProgress, WorkerConfig, WorkerReady
from trioserve.errors import KernelError, ModelError
from trioserve.kernels.cuda_device import CudaDevice, missing_for_cuda
from trioserve.kernels.device import Device
from trioserve.model.batch import DeviceCache
from trioserve.model.config import DecoderConfig, read_config
from trioserve.model.decoder import Decoder
from trioserve.model.device import FP8, DeviceDecoder, device_obstacle
from trioserve.model.device_quantization import DEVICE_QUANTIZATIONS, DeviceQuantization
from trioserve.model.loader import dummy_weights, load_weights, resolve_dtype
from trioserve.model.nccl import DeviceSums, join_nccl
from trioserve.model.parts import Part
from trioserve.model.progress import Progress
from trioserve.model.ranks import ALONE, Ranks
from trioserve.worker.device_guessing import GuessingDeviceRunner
from trioserve.worker.device_memory import plan_device_blocks
from trioserve.worker.device_runner import DeviceRunner, FollowingDeviceRunner
from trioserve.worker.device_step_runner import DeviceShape, DeviceStepRunner
from trioserve.worker.grammars import Grammars
from trioserve.worker.machine import usable_cores
from trioserve.worker.phases import Phases, Throttle
from trioserve.worker.prices import measure_prices
from trioserve.worker.swap_space import SwapSpace, plan_host_blocks
from trioserve.worker.warm_up import run_once

_SCALE_BYTES: Final = 4
_WARM_UP_TOKENS: Final = 16


class Machine(NamedTuple):
    """What a rank computes on, and how it gets there."""

    open_device: Callable[[WorkerConfig], Device]
    """Raises ModelError where there is none."""
    meet: Callable[[WorkerConfig, Device, torch.dtype], tuple[Ranks, DeviceSums]]
    """The other ranks, where there are some."""


def load_device_runner(
    config: WorkerConfig,
    report: Callable[[LoadProgress], None],
    phases: Phases,
    grammars: Grammars,
    *,
    meanwhile: Callable[[], None],
    machine: Machine,
) -> tuple[DeviceStepRunner, WorkerReady]:
    """Load the model onto this rank's GPU, allocate its KV cache, run it and capture its graphs.

    Args:
        report, meanwhile: As ``load_runner`` says.
    Raises:
        ModelError: The folder, the settings or the machine are not up to it; one sentence.
    """
    if config.speculation is not None and config.tp_size > 1:
        raise ModelError(
            f"speculative_config cannot be obeyed on {config.tp_size} GPUs, only on one: leave it out, or set "
            "tensor_parallel_size to 1"
        )
    device = machine.open_device(config)
    torch.set_num_threads(_num_threads(config))
    folder = Path(config.model_path)
    shape = read_config(folder)
    Part(config.tp_rank, config.tp_size).refuse_uneven(shape)
    dtype = resolve_dtype(folder, shape, config.dtype)
    if why := _obstacle(config, shape, dtype):
        raise ModelError(f"a GPU cannot run this model: {why}; choose another dtype, or set device to cpu")
    ranks, sums = (ALONE, None) if config.tp_size == 1 else machine.meet(config, device, dtype)
    phases.end("device")
    meanwhile()
    try:
        decoder = _load(config, folder, shape, dtype, device, sums, Throttle(report))
        phases.end("weights")
        loaded = _Loaded(config, shape, dtype, device, decoder, ranks, sums, grammars)
        return loaded.run_first(report, phases)
    except KernelError as exc:
        raise ModelError(str(exc)) from exc
    except torch.OutOfMemoryError as exc:
        raise ModelError(
            f"{device.name} has not enough memory for this model: lower max_num_seqs, max_num_batched_tokens or "
            "gpu_memory_utilization, set enforce_eager, or share the model among more GPUs by tensor_parallel_size"
        ) from exc


def _num_threads(config: WorkerConfig) -> int:
    """For what is left to the host: as many as told, at most this rank's share of the cores."""
    share = max(1, usable_cores().count // config.num_local_ranks)
    return min(config.num_threads or share, share)


def open_cuda(config: WorkerConfig) -> Device:
    """This rank's GPU.

    Raises:
        ModelError: There is none, or it is of no use; says why.
    """
    if missing := missing_for_cuda():
        raise ModelError(f"device cuda cannot be used: {missing}")
    try:
        return CudaDevice(config.local_rank)
    except KernelError as exc:
        raise ModelError(f"device cuda cannot be used: {exc}") from exc


def meet_over_nccl(config: WorkerConfig, device: Device, dtype: torch.dtype) -> tuple[Ranks, DeviceSums]:
    """The ranks of this model, each on a GPU."""
    return join_nccl(
        config.meeting_fd,
        config.tp_rank,
        config.tp_size,
        device.torch_device,
        dtype,
        address=config.meeting_address,
        batch_invariant=config.batch_invariant,
    )


CUDA: Final = Machine(open_cuda, meet_over_nccl)


def _load(
    config: WorkerConfig,
    folder: Path,
    shape: DecoderConfig,
    dtype: torch.dtype,
    device: Device,
    sums: DeviceSums | None,
    progress: Progress,
) -> DeviceDecoder:
    model = Decoder(shape, dtype, config.max_model_len, Part(config.tp_rank, config.tp_size, sums))
    if config.load_format == "dummy":
        dummy_weights(model, config.seed)
    else:
        load_weights(model, folder, may_borrow=True)
    return DeviceDecoder(
        model,
        device,
        batch_invariant=config.batch_invariant,
        quantization=_quantization(config),
        progress=progress,
    )


def _obstacle(config: WorkerConfig, shape: DecoderConfig, dtype: torch.dtype) -> str | None:
    return device_obstacle(
        Part(config.tp_rank, config.tp_size).shape(shape),
        dtype,
        quantization=_quantization(config),
        batch_invariant=config.batch_invariant,
    )


def _quantization(config: WorkerConfig) -> DeviceQuantization:
    for quantization in DEVICE_QUANTIZATIONS:
        if quantization == config.quantization:
            return quantization
    raise ModelError(
        f"quantization {config.quantization} is not supported, only {', '.join(DEVICE_QUANTIZATIONS)} are"
    )


class _Loaded(NamedTuple):
    """A decoder on its device, and what its runner needs beside it."""

    config: WorkerConfig
    shape: DecoderConfig
    dtype: torch.dtype
    device: Device
    decoder: DeviceDecoder
    ranks: Ranks
    sums: DeviceSums | None
    grammars: Grammars

    def run_first(
        self, report: Callable[[LoadProgress], None], phases: Phases
    ) -> tuple[DeviceStepRunner, WorkerReady]:
        """Find out what a step takes, give the rest to the KV cache, and capture graphs over it."""
        config, load_s = self.config, phases.total_s("weights")
        runner = self._runner(self._caches(self._probe_blocks))
        run_once(runner.run, config, self._probe_blocks, num_seqs=1, num_tokens=_WARM_UP_TOKENS)
        phases.end("kernels")
        num_blocks = self.ranks.least(
            plan_device_blocks(
                self.device,
                config,
                self.bytes_per_block,
                partial(self._run_largest, runner),
                lent_blocks=self._probe_blocks,
            )
        )
        num_host_blocks = self.ranks.least(plan_host_blocks(config, self.bytes_per_block))
        runner.use([])
        caches = self._caches(num_blocks)
        runner.use(caches, SwapSpace(caches, num_host_blocks, self.device) if num_host_blocks else None)
        phases.end("KV cache")
        graphs_bytes = self._capture(runner, report)
        phases.end("graphs")
        num_drafting = self._measure_prices(runner)
        phases.end("warm-up")
        ready = WorkerReady(
            tp_rank=config.tp_rank,
            num_blocks=num_blocks,
            load_s=load_s,
            kv_cache_bytes=num_blocks * self.bytes_per_block,
            weights_bytes=self.decoder.num_bytes,
            dtype=str(self.dtype).removeprefix("torch."),
            attention="cuda",
            decoder=self._description(runner.num_graphs, graphs_bytes),
            phases_s=phases.seconds,
            kv_cache_dtype=self._kv_dtype_name,
            device=self.device.name,
            num_host_blocks=num_host_blocks,
            num_graphs=runner.num_graphs,
            max_drafting_seqs=num_drafting,
        )
        return runner, ready

    @property
    def bytes_per_block(self) -> int:
        """Of a block in all layers together, on this rank."""
        here = Part(self.config.tp_rank, self.config.tp_size).shape(self.shape)
        per_token = here.head_dim * self._kv_dtype.itemsize + (_SCALE_BYTES if self._kv_dtype == FP8 else 0)
        return 2 * here.num_hidden_layers * here.num_kv_heads * self.config.block_size * per_token

    @property
    def _kv_dtype(self) -> torch.dtype:
        return FP8 if self.config.kv_cache_dtype == "fp8" else self.dtype

    @property
    def _kv_dtype_name(self) -> str:
        return "fp8" if self._kv_dtype == FP8 else str(self.dtype).removeprefix("torch.")

    @property
    def _probe_blocks(self) -> int:
        """Blocks for the largest step, whoever has them."""
        config = self.config
        return config.max_num_batched_tokens // config.block_size + 2 * config.max_num_seqs

    def _caches(self, num_blocks: int) -> list[DeviceCache]:
        return self.decoder.new_caches(num_blocks, self.config.block_size, self._kv_dtype)

    def _runner(self, caches: list[DeviceCache]) -> DeviceStepRunner:
        config = self.config
        shape = DeviceShape(
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_model_len=config.max_model_len,
            vocab_size=self.shape.vocab_size,
            num_kv_heads=Part(config.tp_rank, config.tp_size).shape(self.shape).num_kv_heads,
            batch_invariant=config.batch_invariant,
        )
        if config.speculation is not None:
            return GuessingDeviceRunner(
                self.decoder, caches, self.device, shape, self.grammars, config.speculation
            )
        share = None if self.sums is None else self.sums.share_tokens
        if config.tp_rank == 0:
            return DeviceRunner(
                self.decoder,
                caches,
                self.device,
                shape,
                self.grammars,
                ranks=self.ranks,
                share_tokens=share,
            )
        assert share is not None, "a rank that follows has others"
        return FollowingDeviceRunner(
            self.decoder, caches, self.device, shape, ranks=self.ranks, share_tokens=share
        )

    def _run_largest(self, runner: DeviceStepRunner) -> None:
        """The step that takes the most memory, beside what graphs will take, which keep theirs to themselves."""
        config, blocks = self.config, self._probe_blocks
        graphs_bytes = 0 if config.enforce_eager else self.device.peak_bytes(runner.decode_nobody)
        held = torch.empty(graphs_bytes, dtype=torch.uint8, device=self.device.torch_device)
        num_seqs = min(config.max_num_seqs, config.max_num_batched_tokens)
        run_once(runner.run, config, blocks, num_seqs=num_seqs, num_tokens=config.max_num_batched_tokens)
        run_once(runner.run, config, blocks, num_seqs=1, num_tokens=config.max_num_batched_tokens)
        del held

    def _measure_prices(self, runner: DeviceStepRunner) -> int:
        """Find out what guesses cost, where there are to be any; in steps of how many sequences they may pay."""
        if not isinstance(runner, GuessingDeviceRunner) or runner.drafter is None:
            return 0
        assert self.config.speculation is not None, "somebody guesses unasked"
        prices = measure_prices(
            runner, self.ranks, self.config, self.config.speculation, self.shape.vocab_size
        )
        runner.drafter.prices = prices
        return len(prices)

    def _capture(self, runner: DeviceStepRunner, report: Callable[[LoadProgress], None]) -> int:
        """Capture all graphs, unless none are wanted; the bytes that they took."""
        if self.config.enforce_eager:
            return 0
        progress = partial(Throttle(report).graphs, self.decoder.num_bytes)
        return self.device.kept_bytes(lambda: runner.capture(progress))

    def _description(self, num_graphs: int, graphs_bytes: int) -> str:
        graphs = f"{num_graphs} graphs of {graphs_bytes / 1e6:.0f} MB" if num_graphs else "no graphs"
        sums = "" if self.sums is None else f", {self.sums.description}"
        return f"cuda on {self.device.name}, {graphs}{sums}"
