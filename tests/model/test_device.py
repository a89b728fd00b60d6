"""The decoder on a GPU, which is the emulator here, against torch's layers and transformers."""

from typing import Final, cast

import pytest
import torch
from torch import Tensor

from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.model.checkpoints import WIDE, Checkpoints, prompt_of
from tests.model.device_bench import DeviceBench, HostDevice, decoder_kernels
from tests.model.pieces import Bench, Piece
from trioserve.kernels.device import Device
from trioserve.model.config import read_config
from trioserve.model.decoder import Decoder
from trioserve.model.device import FP8, DeviceDecoder
from trioserve.model.loader import load_weights
from trioserve.model.parts import WHOLE, Part

TEXT: Final = prompt_of(41, seed=1)
OTHER: Final = prompt_of(19, seed=2)
BLOCKS: Final = [9, 2, 30]
TOLERANCE: Final = {torch.bfloat16: 0.03, torch.float16: 0.004}
"""Of all logits, relative, against float32: what torch's layers are held to."""


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu(decoder_kernels())


def loaded(checkpoints: Checkpoints, name: str, dtype: torch.dtype, part: Part = WHOLE) -> Decoder:
    folder = checkpoints.folder(name, dtype=dtype)
    model = Decoder(read_config(folder), dtype, num_positions=256, part=part)
    load_weights(model, folder, may_borrow=True)
    return model


def bench(gpu: EmulatedGpu, model: Decoder, kv_dtype: torch.dtype | None = None) -> DeviceBench:
    decoder = DeviceDecoder(model, cast("Device", HostDevice(gpu)))
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
