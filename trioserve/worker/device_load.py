"""From a WorkerConfig to a runner on a GPU that has run once."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from trioserve.core.step import LoadProgress, WorkerConfig, WorkerReady
from trioserve.errors import KernelError, ModelError
from trioserve.kernels.cuda_device import CudaDevice, missing_for_cuda
from trioserve.kernels.device import Device
from trioserve.model.config import read_config
from trioserve.model.device import FP8, device_obstacle
from trioserve.model.loader import resolve_dtype
from trioserve.model.parts import Part
from trioserve.worker.device_runner import DeviceRunner
from trioserve.worker.grammars import Grammars
from trioserve.worker.phases import Phases, Throttle

OpenDevice = Callable[[WorkerConfig], Device]
_SCALE_BYTES: Final = 4
_WARM_UP_TOKENS: Final = 16


def open_cuda(config: WorkerConfig) -> Device:
    """This rank's GPU.

    Raises:
        ModelError: There is none, or it is of no use; says why.
    """
    if missing := missing_for_cuda():
        raise ModelError(f"device cuda cannot be used: {missing}")
    try:
        return CudaDevice(config.tp_rank)
    except KernelError as exc:
        raise ModelError(f"device cuda cannot be used: {exc}") from exc


def load_device_runner(
    config: WorkerConfig,
    report: Callable[[LoadProgress], None],
    phases: Phases,
    grammars: Grammars | None,
    *,
    meanwhile: Callable[[], None],
    open_device: OpenDevice = open_cuda,
) -> tuple[DeviceRunner, WorkerReady]:
    """Load the model onto this rank's GPU, allocate its KV cache, run it once and capture its graphs.

    Args:
        report, meanwhile: As ``load_runner`` says.
    Raises:
        ModelError: The folder, the settings or the machine are not up to it; one sentence.
    """
    if config.speculation is not None:
        raise ModelError("speculative_config cannot be obeyed on a GPU: leave it out")
    folder = Path(config.model_path)
    shape = read_config(folder)
    Part(config.tp_rank, config.tp_size).refuse_uneven(shape)
    dtype = resolve_dtype(folder, shape, config.dtype)
    if why := device_obstacle(shape, dtype):
        raise ModelError(f"device cuda cannot run this model: {why}; choose another dtype, or device cpu")
    kv_dtype = _kv_dtype(config.kv_cache_dtype, dtype)
    device = open_device(config)
    phases.end("device")
    meanwhile()
    loaded = _load(config, folder, shape, dtype, device, Throttle(report))
    phases.end("weights")
    load_s = phases.total_s("weights")
    ready = WorkerReady(
        tp_rank=config.tp_rank,
        num_blocks=0,
        load_s=load_s,
        kv_cache_bytes=0,
        weights_bytes=loaded.decoder.num_bytes,
        dtype=_name_of(dtype),
        attention="cuda",
        decoder=f"cuda on {device.name}",
        kv_cache_dtype="fp8" if kv_dtype == FP8 else _name_of(dtype),
        device=device.name,
    )
    return _run_first(config, loaded, kv_dtype, device, grammars or Grammars(config), phases, ready)
