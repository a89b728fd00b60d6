"""The decoder on a GPU, which is the emulator here, against torch's layers and transformers."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, cast

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.model.checkpoints import WIDE, Checkpoints, prompt_of
from tests.model.device_bench import (
    DeviceBench,
    HostDevice,
    decoder_kernels,
    invariant_kernels,
    quantized_kernels,
)
from tests.model.pieces import Bench, Piece
from tests.model.ranks import gloo_ranks
from tests.model.test_tensor_parallel import assert_alike
from trioserve.kernels.device import Device
from trioserve.model import device_products, device_weights
from trioserve.model.config import read_config
from trioserve.model.decoder import Decoder
from trioserve.model.device import FP8, DeviceDecoder, device_obstacle
from trioserve.model.device_quantization import DEVICE_QUANTIZATIONS, DeviceQuantization
from trioserve.model.families import NormConfig
from trioserve.model.layers import Linear
from trioserve.model.loader import load_weights
from trioserve.model.parts import WHOLE, Part
from trioserve.model.ranks import GroupRanks
from trioserve.model.rope_config import RopeConfig

TEXT: Final = prompt_of(41, seed=1)
OTHER: Final = prompt_of(19, seed=2)
BLOCKS: Final = [9, 2, 30]
TOLERANCE: Final = {torch.bfloat16: 0.03, torch.float16: 0.004}
"""Of all logits, relative, against float32: what torch's layers are held to."""


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu([*decoder_kernels(), *quantized_kernels(), *invariant_kernels()])


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """What nothing writes is no number: ``torch.empty`` gives NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class NoNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call] # theirs
    """Sees to it that the host looks at no number of a tensor."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique_dim"), name
        return func(*args, **kwargs or {})


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
    is_invariant = options.get("batch_invariant", False)
    return DeviceBench(decoder, gpu, kv_dtype or model.dtype, num_kv_heads, is_invariant=is_invariant)


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


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("llama-biased", "none"),
        ("llama-biased", "int8"),
        ("qwen3-tied", "none"),
        ("gemma2", "none"),
        ("cohere", "none"),
        ("stablelm-parallel", "none"),
        ("olmo2", "none"),
    ],
)
def test_two_ranks_compute_what_one_does(
    gpu: EmulatedGpu, wide_checkpoints: Checkpoints, name: str, quantization: DeviceQuantization
) -> None:
    """With biases that count once, a KV head that both have, sums of attention and MLP together, norms of all heads."""
    folder = wide_checkpoints.folder(name, dtype=torch.bfloat16)

    def run(ranks: GroupRanks) -> Tensor:
        part = Part(ranks.tp_rank, ranks.tp_size, ranks)
        model = Decoder(read_config(folder), torch.bfloat16, num_positions=256, part=part)
        load_weights(model, folder, may_borrow=True)
        return run_in_pieces(bench(gpu, model, quantization=quantization))

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


# ---- whatever the batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "quantization"),
    [("llama-biased", "none"), ("olmo3-single", "none"), ("stablelm", "none"), ("qwen3-tied", "int8")],
)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(
    gpu: EmulatedGpu, wide_checkpoints: Checkpoints, name: str, quantization: DeviceQuantization
) -> None:
    """A decode alone, beside another, and beside a prompt."""
    model = loaded(wide_checkpoints, name, torch.bfloat16)
    one = bench(gpu, model, batch_invariant=True, quantization=quantization)
    one.run(Piece(TEXT, 0, 40, BLOCKS))
    decode, other = Piece(TEXT, 40, 41, BLOCKS), Piece(OTHER, 0, 19, [50, 51])
    alone = one.run(decode)
    assert torch.equal(one.run(other, decode)[19:], alone)
    assert torch.equal(one.run(decode, Piece(OTHER, 18, 19, [50, 51]))[:1], alone)
    assert error(alone, wide_checkpoints.logits(name, TEXT)[40:]) < 2 * TOLERANCE[torch.bfloat16]


# ---- steps as a runner makes them ------------------------------------------------------------------------------------


def test_rows_that_only_fill_a_batch_change_nothing(gpu: EmulatedGpu, wide_checkpoints: Checkpoints) -> None:
    """They have no slot and a length of 0, and their logits are numbers."""
    one = bench(gpu, loaded(wide_checkpoints, "gemma2", torch.bfloat16))
    one.run(Piece(TEXT, 0, 40, BLOCKS))
    batch = one.batch(Piece(TEXT, 40, 41, BLOCKS), Piece(TEXT, 0, 1, [60]), Piece(TEXT, 0, 1, [61]))
    batch.slot_mapping[1:] = -1
    batch.attention.seq_lens[1:] = 0
    found = one.decoder.compute_logits(one.decoder(batch, one.caches)).float()
    assert error(found[0], wide_checkpoints.logits("gemma2", TEXT)[40]) < TOLERANCE[torch.bfloat16]
    assert bool(found.isfinite().all())
    assert bool(one.caches[0].k[60:].isnan().all())


def test_only_rows_that_sample_have_logits_and_there_may_be_none(
    gpu: EmulatedGpu, wide_checkpoints: Checkpoints
) -> None:
    one = bench(gpu, loaded(wide_checkpoints, "cohere", torch.bfloat16))
    batch = one.batch(Piece(TEXT, 0, 41, BLOCKS))
    whole = one.run(Piece(TEXT, 0, 41, BLOCKS))
    for rows in ([40, 3], []):
        sampling = replace(batch, sample_rows=torch.tensor(rows, dtype=torch.int64))
        hidden = one.decoder(sampling, one.caches)
        assert hidden.shape == (len(rows), 256)
        assert error(one.decoder.compute_logits(hidden).float(), whole[rows]) < 0.01 or not rows


def test_behind_the_last_attention_only_rows_that_sample_are_computed(
    gpu: EmulatedGpu, wide_checkpoints: Checkpoints
) -> None:
    one = bench(gpu, loaded(wide_checkpoints, "llama-biased", torch.bfloat16))
    batch = replace(one.batch(Piece(TEXT, 0, 41, BLOCKS)), sample_rows=torch.tensor([40]))
    gpu.launched.clear()
    one.decoder(batch, one.caches)
    grids = [grid for kernel, grid in gpu.launched if kernel.base == "activation_mul"]
    assert [grid[0] for grid in grids] == [41, 1]


LAUNCHES: Final = {
    "llama-biased": 5,
    "granite": 5,
    "gemma3": 5,
    "glm4": 5,
    "stablelm": 5,
    "cohere": 4,
    "olmo2": 7,
}
"""Of kernels in a layer's decode, products by torch and sums of attention and MLP aside."""


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_layer_launches_as_few_kernels_as_the_docs_say(
    gpu: EmulatedGpu, wide_checkpoints: Checkpoints, name: str
) -> None:
    one = bench(gpu, loaded(wide_checkpoints, name, torch.bfloat16))
    one.run(Piece(TEXT, 0, 20, BLOCKS))
    gpu.launched.clear()
    one.run(Piece(TEXT, 20, 21, BLOCKS))
    kernels = [kernel.base for kernel, _ in gpu.launched]
    rotations = [at for at, base in enumerate(kernels) if base == "rope_store_kv"]
    assert rotations[1] - rotations[0] == LAUNCHES[name]


@pytest.mark.parametrize("name", ["gemma3", "stablelm-parallel"])
def test_nothing_looks_at_numbers(gpu: EmulatedGpu, wide_checkpoints: Checkpoints, name: str) -> None:
    """A step could be captured: what it starts follows from shapes."""
    one = bench(gpu, loaded(wide_checkpoints, name, torch.bfloat16))
    batch = one.batch(Piece(TEXT, 0, 20, BLOCKS), Piece(OTHER, 0, 1, [50]))
    with NoNumbers():  # type: ignore[no-untyped-call] # theirs
        one.decoder.compute_logits(one.decoder(batch, one.caches))


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_weights_leave_the_host_as_they_are_carried_over(
    gpu: EmulatedGpu, wide_checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through buffers of a few rows, in the parts that a rank has, and all of them are told of."""
    monkeypatch.setattr(device_weights, "_BUFFER_BYTES", 4096)
    model = loaded(wide_checkpoints, "llama-biased", torch.bfloat16)
    told: list[tuple[int, int]] = []
    one = bench(gpu, model, progress=lambda done, total: told.append((done, total)))
    assert error(run_in_pieces(one), expected(wide_checkpoints, "llama-biased")) < TOLERANCE[torch.bfloat16]
    matrices = [module for module in model.modules() if isinstance(module, Linear)]
    assert all(not matrix.weight.numel() and not matrix.num_borrowed_bytes for matrix in matrices)
    assert not model.model.embed_tokens.weight.numel()
    assert told == sorted(told)
    assert told[-1] == (one.decoder.num_bytes, one.decoder.num_bytes)


def test_weights_of_another_type_are_rounded_on_the_way(
    gpu: EmulatedGpu, wide_checkpoints: Checkpoints
) -> None:
    folder = wide_checkpoints.folder("qwen3-tied", dtype=torch.float32)
    model = Decoder(read_config(folder), torch.bfloat16, num_positions=256)
    load_weights(model, folder, may_borrow=True)
    found = run_in_pieces(bench(gpu, model))
    assert error(found, expected(wide_checkpoints, "qwen3-tied")) < TOLERANCE[torch.bfloat16]


# ---- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WIDE)
def test_no_family_is_refused(wide_checkpoints: Checkpoints, name: str) -> None:
    config = read_config(wide_checkpoints.folder(name))
    for quantization in DEVICE_QUANTIZATIONS:
        assert device_obstacle(config, torch.float16, quantization=quantization, batch_invariant=True) is None


@pytest.mark.parametrize(
    ("changes", "options", "why"),
    [
        ({"head_dim": 48}, {}, "head_dim 48 is none of 64, 80, 96, 128, 192, 256"),
        ({"intermediate_size": 196}, {"quantization": "int8"}, "depth of a matrix is 196, no multiple of 32"),
        ({"intermediate_size": 196}, {"batch_invariant": True}, "depth of a matrix is 196, no multiple of 8"),
        ({"qk_norm": True, "norm": NormConfig(kind="layer")}, {}, "heads are normalised by layer norms"),
        ({"head_dim": 128, "rope": RopeConfig("half", 1e4, part=66 / 128)}, {}, "33 pairs of head_dim 128"),
    ],
)
def test_an_obstacle_is_named(
    wide_checkpoints: Checkpoints, changes: dict[str, Any], options: dict[str, Any], why: str
) -> None:
    config = replace(read_config(wide_checkpoints.folder("llama-biased")), **changes)
    found = device_obstacle(config, torch.bfloat16, **options)
    assert found is not None and why in found
    assert device_obstacle(config, torch.float32) == "weights are float32, neither bfloat16 nor float16"
