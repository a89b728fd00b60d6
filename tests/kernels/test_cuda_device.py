"""What is said where there is no GPU that torch can use."""

import pytest
import torch

from trioserve.kernels import cuda_device


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_a_torch_without_cuda_is_named() -> None:
    assert cuda_device.missing_for_cuda() == (
        f"torch {torch.__version__} is built without CUDA: install a build of torch that has it"
    )


def test_a_missing_driver_and_hidden_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cuda_device, "_DRIVER", "libnosuchdriver.so.1")
    assert "no NVIDIA driver (libnosuchdriver.so.1)" in (cuda_device.missing_for_cuda() or "")
    monkeypatch.setattr(cuda_device, "_DRIVER", "libc.so.6")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "CUDA_VISIBLE_DEVICES" in (cuda_device.missing_for_cuda() or "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert cuda_device.missing_for_cuda() is None
