"""The decoder on a GPU, which is the emulator here, against torch's layers and transformers."""

from typing import Any, Final, cast

import pytest
import torch
from torch import Tensor

from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.model.checkpoints import WIDE, Checkpoints, prompt_of
from tests.model.device_bench import DeviceBench, HostDevice, decoder_kernels, quantized_kernels
from tests.model.pieces import Bench, Piece
from tests.model.ranks import gloo_ranks
from tests.model.test_tensor_parallel import assert_alike
from trioserve.kernels.device import Device
from trioserve.model import device_products
from trioserve.model.config import read_config
from trioserve.model.decoder import Decoder
from trioserve.model.device import FP8, DeviceDecoder
from trioserve.model.device_quantization import DeviceQuantization
from trioserve.model.loader import load_weights
from trioserve.model.parts import WHOLE, Part
from trioserve.model.ranks import GroupRanks

TEXT: Final = prompt_of(41, seed=1)
OTHER: Final = prompt_of(19, seed=2)
BLOCKS: Final = [9, 2, 30]
TOLERANCE: Final = {torch.bfloat16: 0.03, torch.float16: 0.004}
"""Of all logits, relative, against float32: what torch's layers are held to."""


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu([*decoder_kernels(), *quantized_kernels()])


def loaded(checkpoints: Checkpoints, name: str, dtype: torch.dtype, part: Part = WHOLE) -> Decoder:
    folder = checkpoints.folder(name, dtype=dtype)
    model = Decoder(read_config(folder), dtype, num_positions=256, part=part)
    load_weights(model, folder, may_borrow=True)
    return model


def bench(
    gpu: EmulatedGpu, model: Decoder, kv_dtype: torch.dtype | None = None, **options: Any
) -> DeviceBench:
    decoder = DeviceDecoder(model, cast("Device", HostDevice(gpu)), **options)
    num_kv_heads = model.part.shape(model.config).num_kv_heads
    return DeviceBench(decoder, gpu, kv_dtype or model.dtype, num_kv_heads)


def run_in_pieces(bench: DeviceBench | Bench) -> Tensor:
    """A prompt in two chunks, then its next token beside another prompt and another's decode: logits of every token."""
    first = bench.run(Piece(TEXT, 0, 17, BLOCKS), Piece(OTHER, 0, 18, [50, 51]))
    second = bench.run(Piece(TEXT, 17, 40, BLOCKS))
    last = bench.run(
        Piece(prompt_of(7, seed=3), 0, 7, [4]), Piece(TEXT, 40, 41, BLOCKS), Piece(OTHER, 18, 19, [50, 51])
    )
    return torch.cat([first[:17], second, last[7:8], first[17:], last[8:]])


def expected(checkpoints: Checkpoints, name: str) -> Tensor:
    return torch.cat([checkpoints.logits(name, TEXT), checkpoints.logits(name, OTHER)])


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", WIDE)
def test_a_gpu_computes_what_transformers_does_as_nearly_as_torchs_layers(
    gpu: EmulatedGpu, wide_checkpoints: Checkpoints, name: str, dtype: torch.dtype
) -> None:
    folder = wide_checkpoints.folder(name, dtype=dtype)
    plain = Decoder(read_config(folder), dtype, num_positions=256)
    load_weights(plain, folder)
    found = run_in_pieces(bench(gpu, loaded(wide_checkpoints, name, dtype)))
    true = expected(wide_checkpoints, name)
    assert error(found, true) < TOLERANCE[dtype]
    assert error(found, true) < 1.3 * error(run_in_pieces(Bench(plain)), true)


@pytest.mark.parametrize("name", ["llama-biased", "gemma3"])
def test_a_cache_of_codes_errs_a_little_more(
    gpu: EmulatedGpu, wide_checkpoints: Checkpoints, name: str
) -> None:
    found = run_in_pieces(bench(gpu, loaded(wide_checkpoints, name, torch.bfloat16), FP8))
    assert error(found, expected(wide_checkpoints, name)) < 0.06


# ---- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-biased", "qwen3-tied", "gemma2", "cohere", "stablelm-parallel"])
def test_two_ranks_compute_what_one_does(gpu: EmulatedGpu, wide_checkpoints: Checkpoints, name: str) -> None:
    """With biases that count once, a KV head that both have, sums of attention and MLP together."""
    folder = wide_checkpoints.folder(name, dtype=torch.bfloat16)

    def run(ranks: GroupRanks) -> Tensor:
        part = Part(ranks.tp_rank, ranks.tp_size, ranks)
        model = Decoder(read_config(folder), torch.bfloat16, num_positions=256, part=part)
        load_weights(model, folder, may_borrow=True)
        return run_in_pieces(bench(gpu, model))

    found = assert_alike(gloo_ranks(2, run))
    assert error(found, expected(wide_checkpoints, name)) < TOLERANCE[torch.bfloat16]


# ---- few bits --------------------------------------------------------------------------------------------------------

BOUNDS: Final = {"int8": 0.03, "fp8": 0.1, "int4": 0.3}


@pytest.mark.parametrize("quantization", BOUNDS)
@pytest.mark.parametrize("name", ["llama-biased", "qwen3-tied"])
def test_weights_of_few_bits_err_as_their_codes_do(
    gpu: EmulatedGpu,
    wide_checkpoints: Checkpoints,
    name: str,
    quantization: DeviceQuantization,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By their codes and unpacked, in pieces, and the same within rounding."""
    true = expected(wide_checkpoints, name)
    by_codes = run_in_pieces(
        bench(gpu, loaded(wide_checkpoints, name, torch.bfloat16), quantization=quantization)
    )
    assert error(by_codes, true) < BOUNDS[quantization]
    monkeypatch.setattr(device_products, "MOST_BY_CODES", 8)
    monkeypatch.setattr(device_products, "SCRATCH_ELEMENTS", 33 * 256)
    unpacked = run_in_pieces(
        bench(gpu, loaded(wide_checkpoints, name, torch.bfloat16), quantization=quantization)
    )
    assert 0 < error(unpacked, by_codes) < 0.02


@pytest.mark.parametrize("quantization", BOUNDS)
def test_weights_of_few_bits_take_less_memory(
    gpu: EmulatedGpu, wide_checkpoints: Checkpoints, quantization: DeviceQuantization
) -> None:
    plain, few = (
        bench(gpu, loaded(wide_checkpoints, "llama-biased", torch.bfloat16), quantization=each).decoder
        for each in ("none", quantization)
    )
    layers = plain.num_bytes - 2 * 160 * 256 * 2  # of the embedding and the head
    assert few.num_bytes < plain.num_bytes - layers * (0.35 if quantization != "int4" else 0.4)
