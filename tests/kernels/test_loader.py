"""CuPy loads what NVRTC has built, and launchers start it; only the driver is not real."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.stub import build_stub
from trioserve.errors import KernelError
from trioserve.kernels import nvrtc
from trioserve.kernels.loader import Loader

needs_cupy = pytest.mark.skipif(
    importlib.util.find_spec("cupy") is None or next(nvrtc._candidates(), None) is None,
    reason="CuPy or NVRTC is not installed",
)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver was told in a process of its own."""
    folder = tmp_path_factory.mktemp("loader")
    stub = str(build_stub(folder))
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.kernels.cupy_on_stub", stub, str(folder)],
        env={**os.environ, "LD_PRELOAD": stub},
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@needs_cupy
def test_a_launch_function_starts_what_was_compiled_for_it(told: dict[str, Any]) -> None:
    for launch in told["launched"]:
        assert launch["arguments"] == launch["expected"]
        assert launch["grid"] == [7, 1, 1]
        assert launch["name"].startswith("_Z8rms_norm")
        assert Path(launch["path"]).match("rms_norm-sm_90a-*.cubin")


@needs_cupy
def test_a_kernel_is_loaded_once_on_each_device_while_that_is_current(told: dict[str, Any]) -> None:
    first, other, again = told["launched"]
    assert [launch["device"] for launch in (first, other, again)] == [0, 1, 0]
    assert first["function"] == again["function"] != other["function"]


@needs_cupy
def test_what_a_function_may_have_of_shared_memory_only_grows(told: dict[str, Any]) -> None:
    """It is one function for all bindings of a kernel."""
    assert told["shared_bytes"] == [48 << 10, 90000, 90000]


@needs_cupy
def test_what_the_driver_refuses_is_said_with_the_file_and_the_device(told: dict[str, Any]) -> None:
    bad, gone, absent, _, too_much, _ = told["sentences"]
    assert bad.startswith("GPU 1 cannot load /") and "bad.cubin (CUDA_ERROR" in bad
    assert bad.endswith("device kernel image is invalid)")
    assert "gone.cubin" in gone and gone.endswith("file not found)")
    assert absent.endswith("named symbol not found)")
    assert too_much.endswith("invalid argument)")


@needs_cupy
def test_a_driver_older_than_what_was_made_for_it_is_named(told: dict[str, Any]) -> None:
    _, _, _, cubin, _, cupy = told["sentences"]
    assert cubin.startswith("the NVIDIA driver is for CUDA 13.0 and rms_norm-sm_90a-")
    assert cubin.endswith(".cubin was compiled by CUDA 14.1: install a newer driver")
    assert cupy.startswith("the NVIDIA driver is for CUDA 12.8 and CuPy 1")
    assert cupy.endswith(": install a newer driver")


def test_a_missing_cupy_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    sentence = (
        r"CuPy, which loads the CUDA kernels, cannot be imported \(.*\): pip install 'trioserve\[cuda\]'"
    )
    with pytest.raises(KernelError, match=sentence):
        Loader(0, 13000)
