"""What is computed on, which settings go with it, and what stops the start where it is not there."""

import subprocess
import sys
from pathlib import Path

import pytest

from trioserve.errors import SettingsError
from trioserve.settings import gpus, load_settings

DRIVER = """
extern "C" {
int cuInit(unsigned) { return STATUS; }
int cuDeviceGetCount(int* count) { *count = COUNT; return 0; }
int cuDeviceGet(int* device, int number) { *device = 40 + number; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (device == 40) *value = attribute == 75 ? 9 : attribute == 76 ? 0 : -1;
    else *value = attribute == 75 ? 7 : 5;
    return 0;
}
}
"""
"""A driver: the first GPU is sm_90, all others are sm_75."""
PLENTY = gpus.Gpus(2)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trioserve.settings.engine.find_gpus", lambda: PLENTY)


def has_driver(folder: Path, monkeypatch: pytest.MonkeyPatch, *, status: int = 0, count: int = 1) -> None:
    """Compile a driver that answers so, and let it be this machine's."""
    source, library = folder / "driver.cpp", folder / "libdriver.so"
    source.write_text(DRIVER, encoding="utf-8")
    command = [
        "g++",
        "-shared",
        "-fPIC",
        f"-DSTATUS={status}",
        f"-DCOUNT={count}",
        "-o",
        str(library),
        str(source),
    ]
    subprocess.run(command, check=True)
    monkeypatch.setattr(gpus, "_DRIVER", str(library))


@pytest.mark.parametrize(
    ("status", "count", "sentence"),
    [
        (100, 0, "no NVIDIA GPU is visible; see what nvidia-smi and CUDA_VISIBLE_DEVICES say"),
        (0, 0, "no NVIDIA GPU is visible"),
        (803, 1, "the NVIDIA driver does not start .error 803.; see what nvidia-smi says"),
        (
            0,
            2,
            "the GPU with number 1 is sm_75 and the kernels need sm_80; leave it out of CUDA_VISIBLE_DEVICES",
        ),
    ],
)
def test_a_driver_without_a_gpu_to_use_stops_the_start_and_auto_takes_the_cpu(
    status: int, count: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_driver(tmp_path, monkeypatch, status=status, count=count)
    with pytest.raises(SettingsError, match=rf"device = 'cuda': {sentence}.*, or leave device out"):
        load_settings(device="cuda")
    assert load_settings().device == load_settings(device="auto").device == "cpu"
    assert gpus.find_gpus().are_there is (count == 2)


def test_a_machine_without_a_driver_stops_the_start_and_auto_takes_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpus, "_DRIVER", "libnowhere.so.1")
    with pytest.raises(SettingsError) as told:
        load_settings(device="cuda")
    assert str(told.value) == (
        "Bad settings: device = 'cuda': this machine has no NVIDIA driver (libnowhere.so.1); install it, or leave "
        "device out to compute on a CPU."
    )
    assert load_settings().device == "cpu"


@pytest.mark.parametrize(
    ("has_cuda", "has_cupy", "missing"),
    [
        (False, True, "the torch that is installed is made for CPUs alone; install one for CUDA"),
        (True, False, "the kernels are loaded by CuPy, which is not installed; install trioserve[cuda]"),
        (True, True, ""),
    ],
)
def test_a_gpu_needs_a_torch_for_it_and_cupy(
    has_cuda: bool, has_cupy: bool, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").touch()
    if has_cuda:
        (tmp_path / "torch" / "lib" / "libtorch_cuda.so").touch()
    if has_cupy:
        (tmp_path / "cupy.py").touch()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert gpus._missing_package() == missing


@pytest.mark.usefixtures("_two_gpus")
def test_auto_takes_a_gpu_and_with_it_larger_steps_unless_told_otherwise() -> None:
    settings = load_settings()
    assert (settings.device, settings.max_num_seqs, settings.max_num_batched_tokens) == ("cuda", 256, 2048)
    settings = load_settings(max_num_seqs="7", max_num_batched_tokens="99")
    assert (settings.max_num_seqs, settings.max_num_batched_tokens) == (7, 99)
    settings = load_settings(device="cpu")
    assert (settings.device, settings.max_num_seqs, settings.max_num_batched_tokens) == ("cpu", 128, 512)


@pytest.mark.usefixtures("_two_gpus")
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"kv_cache_dtype": "int8"}, "kv_cache_dtype = int8: a GPU keeps codes of keys and values as fp8"),
        ({"pin_threads": "true"}, "pin_threads = true: a GPU computes the steps, not threads; leave it out"),
        (
            {"swap_space": "4", "enable_prefix_caching": "false"},
            r"swap_space = 4\.0 and enable_prefix_caching = false: .* leave one of them out",
        ),
        (
            {"gpu_memory_utilization": "0.5", "num_kv_blocks": "9"},
            r"num_kv_blocks = 9 and gpu_memory_utilization = 0\.5 all size the KV cache: leave only one",
        ),
        (
            {"max_num_batched_tokens": "255"},
            "max_num_batched_tokens = 255 must be at least max_num_seqs = 256",
        ),
    ],
)
def test_what_means_nothing_on_a_gpu_is_refused_by_name(flags: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load_settings(**flags)


@pytest.mark.usefixtures("_two_gpus")
@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ({"gpu_memory_utilization": "0.5"}, "gpu_memory_utilization", 0.5),
        ({"swap_space": "4"}, "swap_space", 4.0),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype", "fp8"),
        ({"quantization": "fp8"}, "quantization", "fp8"),
        ({"num_gpu_blocks_override": "9"}, "num_kv_blocks", 9),
        ({"eager_mode": "true"}, "enforce_eager", True),
        ({"batch_invariant": "true"}, "batch_invariant", True),
    ],
)
def test_what_a_gpu_can_obey_is_accepted(flags: dict[str, str], name: str, value: object) -> None:
    assert getattr(load_settings(**flags), name) == value


def test_a_wrong_device_is_one_fault_and_hides_no_other() -> None:
    with pytest.raises(SettingsError) as told:
        load_settings(device="tpu", port="x")
    assert str(told.value).count(";") == 1
