"""What is timed on a GPU, run once on the emulator at small sizes: no case asks for what its kernel does not take."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import attention, kernels
from benchmarks.gpu.report import Report, Row, markdown_of
from tests.emu.build import build
from tests.emu.device import EmulatedGpu, emulated
from trioserve.kernels import activation, copy_blocks, invariant_linear, rms_norm, rope_store_kv, sampling_gpu
from trioserve.kernels.paged_attention_gpu import decode_kernel, merge_kernel, prefill_kernel
from trioserve.kernels.quantized_linear import instances as products

ALL = (
    "residual + norm",
    "SiLU-mul",
    "RoPE + cache",
    "copy of",
    "edits, top-k and top-p",
    "a layer's products",
)


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> EmulatedGpu:
    modules = (activation, invariant_linear, rms_norm, rope_store_kv, sampling_gpu)
    wanted = [kernel for module in modules for kernel in module.instances() if "bf16" in kernel.name]
    wanted += [kernel for kernel in sampling_gpu.instances() if "choose" in kernel.file]
    wanted += [kernel for kernel in products() if "bf16" in kernel.name]
    wanted += [merge_kernel("bf16"), prefill_kernel("bf16", "bf16", 128), *copy_blocks.instances()]
    wanted += [decode_kernel("bf16", kv, 128) for kv in ("bf16", "e4m3")]
    return emulated(wanted, emulate=partial(build, folder=tmp_path_factory.mktemp("emu")))


@pytest.fixture(autouse=True)
def _small_and_here(monkeypatch: pytest.MonkeyPatch, gpu: EmulatedGpu) -> None:
    for module in (attention, kernels):
        monkeypatch.setattr(module, "DEVICE", torch.device("cpu"))
        monkeypatch.setattr(module, "gpu_of", lambda device: gpu)
        monkeypatch.setattr(module, "medians", called_once)
        monkeypatch.setattr(module, "num_sets", lambda num_bytes: 1)
        monkeypatch.setattr(module, "rotated", lambda make, num_bytes: [make(0)])
        monkeypatch.setattr(module, "copy_rate", lambda report: 1e12)
    monkeypatch.setattr(attention, "product_rate", lambda report: 1e15)


def called_once(contenders: Mapping[str, Sequence[Callable[[], object]]]) -> dict[str, float]:
    for calls in contenders.values():
        for call in calls:
            call()
    return dict.fromkeys(contenders, 10.0)


def test_every_kernel_has_its_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = {
        "HIDDEN": 128,
        "INTERMEDIATE": 256,
        "HEADS": 4,
        "KV_HEADS": 2,
        "NUM_BLOCKS": 8,
        "VOCAB_SIZE": 512,
    }
    for name, size in small.items():
        monkeypatch.setattr(kernels, name, size)
    monkeypatch.setattr(kernels, "LAYER", ((96, 128), (128, 64)))
    report = Report(tmp_path / "rows.jsonl")
    kernels.measure(report)
    rows = report.rows()
    assert all(any(row.name.startswith(name) for row in rows) for name in ALL)
    assert all(row.value == 10 for row in rows)


def test_attention_is_compared_with_torch_before_it_is_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(attention, "DECODES", {(2, 1024): 12})
    monkeypatch.setattr(attention, "PREFILLS", {1024: 540})
    monkeypatch.setattr(attention, "_peers", lambda case, sets, *, has_flex: iter(()))
    monkeypatch.setattr(attention.Case, "__init__", shortened(attention.Case.__init__))
    report = Report(tmp_path / "rows.jsonl")
    attention.measure(report)
    assert [row.name for row in report.rows()] == ["decode 2 x 1k", "decode 8 x 32k, e4m3", "prefill 1k"]
    monkeypatch.setattr(attention.Buffers, "ours", lambda self: torch.zeros_like(self.q))
    with pytest.raises(AssertionError, match=r"is wrong: relative error 1\.0"):
        attention.measure(report)


def shortened(make: Callable[..., None]) -> Callable[..., None]:
    """Cases of 48 tokens at most and 2 sequences."""

    def short(
        self: attention.Case,
        batch: int,
        num_queries: int,
        context: int,
        kv_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        make(self, min(batch, 2), min(num_queries, 48), min(context, 48), kv_dtype)

    return short


def test_a_figure_stands_beside_its_peer_and_its_target() -> None:
    slower = Row("kernels", "norm", 4.0, "us", 0.5, "torch", 8.0, 2.5)
    assert (slower.ratio, slower.is_met) == (2.0, False)
    assert "| norm | 4 us | 50% | torch 8 | 2.00 | 2.5, missed |  |" in markdown_of([slower])
    faster = Row("attention", "prefill", 600.0, "TFLOP/s", None, "flash", 400.0, 540.0)
    assert (faster.ratio, faster.is_met) == (1.5, True)
