"""Kernels are launched as the driver wants it; the driver here is a stub that notes what it is told."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.stub import Stub, build_stub
from trioserve._speedups.launcher import Driver, Launcher
from trioserve.errors import KernelError
from trioserve.kernels.build import Builder, Built
from trioserve.kernels.driver import CudaGpu, architecture_of, letters
from trioserve.kernels.loader import Loaded
from trioserve.kernels.nvrtc import Usage
from trioserve.kernels.rms_norm import norm_kernel, rms_norm_gpu
from trioserve.kernels.source import Kernel, signature
from trioserve.kernels.store_kv import store_kv_gpu


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stub(tmp_path_factory.mktemp("driver"), "libstub.so")


@pytest.fixture
def stub(library: Path) -> Iterator[Stub]:
    stub = Stub(library)
    yield stub
    stub.number("fails").value = stub.number("num_values").value = 0


def launcher(stub: Stub, kinds: str, **options: Any) -> Launcher:
    stub.number("num_values").value = len(kinds)
    return Launcher(Driver(stub.path), 1234, "some<bf16>", kinds, (64, 2, 1), **options)


def test_every_kind_of_argument_arrives_as_it_is(stub: Stub) -> None:
    launch = launcher(stub, "pilufp", shared_bytes=70000)
    given = (2**63 + 8, -(2**31), -(2**63), 2**32 - 1, 0.1, 0)
    launch(77, 3, 4, 5, *given)
    found = stub.values("pilufp")
    assert found[:4] == list(given[:4])
    assert found[4] == pytest.approx(0.1, rel=1e-7)
    last = stub.last
    assert (last.function, list(last.grid), list(last.block)) == (1234, [3, 4, 5], [64, 2, 1])
    assert (last.shared_bytes, last.stream) == (70000, 77)
    launch(0, 1, 1, 1, 1, 2, 3, 4, 5, 6)
    assert stub.values("pilufp") == [1, 2, 3, 4, 5.0, 6]


@pytest.mark.parametrize(
    ("kind", "value"), [("i", 2**31), ("i", -(2**31) - 1), ("u", -1), ("u", 2**32), ("p", -1), ("l", 2**63)]
)
def test_what_does_not_fit_is_refused_and_nothing_starts(stub: Stub, kind: str, value: int) -> None:
    launch, before = launcher(stub, kind), stub.number("num_launches").value
    with pytest.raises(OverflowError):
        launch(0, 1, 1, 1, value)
    for wrong in ((), (1, 2), (0.5,), ("1",)):
        with pytest.raises(TypeError):
            launch(0, 1, 1, 1, *wrong)
    assert stub.number("num_launches").value == before


def test_a_refused_launch_says_where_and_why(stub: Stub) -> None:
    launch = launcher(stub, "")
    stub.number("fails").value = 200
    sentence = "launching some<bf16> in a grid of 1 x 2 x 3: CUDA error 200, device kernel image is invalid"
    with pytest.raises(KernelError, match=sentence):
        launch(0, 1, 2, 3)
    stub.number("fails").value = 999
    with pytest.raises(KernelError, match=r"CUDA error 999$"):
        launch(0, 1, 2, 3)


def test_bad_bindings_are_refused(stub: Stub) -> None:
    with pytest.raises(ValueError, match="'x' is no kind of argument"):
        launcher(stub, "px")
    for block in ((0, 1, 1), (1025, 1, 1), (64, 64, 1)):
        with pytest.raises(ValueError, match="a block of"):
            Launcher(Driver(stub.path), 1, "k", "", block)


def test_a_driver_that_is_not_there_or_too_old_is_named(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"the NVIDIA driver cannot be loaded .*: install it, or use a CPU"):
        Driver(str(tmp_path / "libcuda.so.1"))
    source, path = tmp_path / "old.cpp", tmp_path / "libold.so"
    source.write_text('extern "C" int cuDriverGetVersion(int*) { return 0; }')
    subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    with pytest.raises(KernelError, match="has no cuGetErrorString: install a newer NVIDIA driver"):
        Driver(str(path))


def test_the_version_is_the_drivers(stub: Stub) -> None:
    stub.number("version").value = 12080
    assert Driver(stub.path).version == 12080


class Shelf(Builder):
    """Has every kernel already."""

    def get(self, kernel: Kernel) -> Built:
        return Built(self.path(kernel), kernel.base, Usage(kernel.base, 1, 0, 0, 0), "13.0")


def gpu_of_stub(stub: Stub, loaded: list[tuple[str, int]] | None = None) -> CudaGpu:
    """Whose functions are numbers from 1 on; notes what is ``loaded``, with its shared bytes."""
    noted = [] if loaded is None else loaded

    def load(built: Built, shared_bytes: int) -> Loaded:
        noted.append((built.mangled, shared_bytes))
        return Loaded(len(noted), built)

    return CudaGpu(
        Driver(stub.path),
        Shelf("sm_90a"),
        load,
        device=torch.device("cpu"),
        num_multiprocessors=132,
        stream=lambda: 5,
    )


def test_a_launch_function_hands_over_addresses_and_sizes(stub: Stub) -> None:
    x, weight = torch.zeros(7, 4096, dtype=torch.bfloat16), torch.zeros(4096, dtype=torch.bfloat16)
    stub.number("num_values").value = 9
    out = rms_norm_gpu(gpu_of_stub(stub), x, weight, eps=1e-5, offset=1.0)
    found = stub.values(letters(signature(norm_kernel("bf16", 8, 256, 1))))
    assert found[:7] == [out.data_ptr(), x.data_ptr(), weight.data_ptr(), 7, 1, 4096, 4096]
    assert found[7] == 1.0
    assert found[8] == pytest.approx(1e-5)
    assert (list(stub.last.grid), list(stub.last.block), stub.last.stream) == ([7, 1, 1], [256, 1, 1], 5)


def test_an_empty_batch_starts_nothing(stub: Stub) -> None:
    before = stub.number("num_launches").value
    rms_norm_gpu(gpu_of_stub(stub), torch.zeros(0, 64), torch.zeros(64), eps=1e-5)
    assert stub.number("num_launches").value == before


def test_tensors_are_of_the_kernels_types_and_device(stub: Stub) -> None:
    gpu = gpu_of_stub(stub)
    k, cache = torch.zeros(1, 2, 64), torch.zeros(3, 2, 16, 64)
    with pytest.raises(
        TypeError, match=r"slot_mapping of store_kv<float, 4, 256> is in i64, not a tensor of .*int32"
    ):
        store_kv_gpu(gpu, k, k, cache, cache, torch.zeros(1, dtype=torch.int32))
    with pytest.raises(TypeError, match=r"slot_mapping .* is on meta, not on cpu"):
        store_kv_gpu(gpu, k, k, cache, cache, torch.zeros(1, dtype=torch.int64, device="meta"))
    kernel = Kernel("store_kv.cu", "store_kv<float, 4, 256>")
    with pytest.raises(TypeError, match="takes 10 arguments, not 1"):
        gpu.launch(kernel, k, grid=(1,), block=(256,))
    with pytest.raises(TypeError, match=r"k of store_kv<.*> is a tensor, not 1"):
        gpu.launch(kernel, *(1,) * 10, grid=(1,), block=(256,))
    with pytest.raises(TypeError, match=r"num_kv_heads .* is i32, not a tensor"):
        gpu.launch(
            kernel,
            *(k, k, cache, cache, torch.zeros(1, dtype=torch.int64), *(k,) * 5),
            grid=(1,),
            block=(256,),
        )


def test_a_kernel_is_bound_once_for_a_block_and_its_shared_bytes(stub: Stub) -> None:
    loaded: list[tuple[str, int]] = []
    gpu, kernel = gpu_of_stub(stub, loaded), norm_kernel("bf16", 8, 256, 1)
    assert gpu.bind(kernel, block=(256,)) is gpu.bind(kernel, block=(256,))
    assert gpu.bind(kernel, block=(256,)) is not gpu.bind(kernel, block=(128,))
    gpu.bind(kernel, block=(128,), shared_bytes=70000)(0, 1, 1, 1, *(1,) * 9)
    assert loaded == [("rms_norm", 0), ("rms_norm", 0), ("rms_norm", 70000)]
    assert (stub.last.function, stub.last.shared_bytes) == (3, 70000)


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [((8, 0), "sm_80"), ((8, 9), "sm_89"), ((9, 0), "sm_90a"), ((10, 0), "sm_100a"), ((12, 0), "sm_120")],
)
def test_architectures_have_the_names_of_compilers(capability: tuple[int, int], architecture: str) -> None:
    assert architecture_of(capability) == architecture


def test_an_old_gpu_is_refused() -> None:
    with pytest.raises(KernelError, match="this GPU is sm_75 and the kernels need sm_80"):
        architecture_of((7, 5))
