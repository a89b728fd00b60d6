"""Quantized checkpoints on a GPU, which is the emulator here, against what their codes stand for."""

from pathlib import Path
from typing import Final

import pytest
import torch

from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.model.checkpoints import Checkpoints
from tests.model.device_bench import decoder_kernels, quantized_kernels
from tests.model.pieces import Bench
from tests.model.quantized import FORMS, is_matrix_or_head, quantize_folder, write_twin
from tests.model.ranks import gloo_ranks
from tests.model.test_device import bench, error, run_in_pieces
from tests.model.test_tensor_parallel import assert_alike
from trioserve.model import device_products
from trioserve.model.config import read_config
from trioserve.model.decoder import Decoder
from trioserve.model.device_products import Quantized
from trioserve.model.device_quantization import DeviceQuantization
from trioserve.model.loader import load_weights
from trioserve.model.parts import WHOLE, Part
from trioserve.model.ranks import GroupRanks

NAMES: Final = ("awq", "gptq-desc-act", "packed-int4-asymmetric", "int8", "float8-rows", "fp8-blocks")
TOLERANCE: Final = 0.03
"""As that of weights of bfloat16, to which scales are rounded."""


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu([*decoder_kernels(), *quantized_kernels()])


def loaded(folder: Path, dtype: torch.dtype, part: Part = WHOLE) -> Decoder:
    model = Decoder(read_config(folder), dtype, num_positions=256, part=part)
    load_weights(model, folder, may_borrow=True)
    return model


def written(source: Path, folder: Path, name: str) -> tuple[Path, torch.Tensor]:
    """A checkpoint in another form, and the logits of what its codes stand for, by torch's layers in float32."""
    truth = quantize_folder(source, folder / "few", FORMS[name], which=is_matrix_or_head)
    write_twin(source, folder / "twin", truth)
    twin = Decoder(read_config(folder / "twin"), torch.float32, num_positions=256)
    load_weights(twin, folder / "twin")
    return folder / "few", run_in_pieces(Bench(twin))


@pytest.mark.parametrize("name", NAMES)
def test_codes_are_multiplied_as_they_are(
    gpu: EmulatedGpu,
    wide_checkpoints: Checkpoints,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By codes and unpacked, the head's too; dense where the kernels do not have the form."""
    folder, expected = written(wide_checkpoints.folder("llama-biased"), tmp_path, name)
    told: list[tuple[int, int]] = []
    model = loaded(folder, torch.bfloat16)
    one = bench(gpu, model, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    assert error(run_in_pieces(one), expected) < TOLERANCE
    products = [one.decoder._lm_head, one.decoder._layers[0].down_proj]
    assert [isinstance(product, Quantized) for product in products] == [FORMS[name].has_packed] * 2
    monkeypatch.setattr(device_products, "MOST_BY_CODES", 8)
    assert error(run_in_pieces(one), expected) < TOLERANCE


@pytest.mark.parametrize(
    ("quantization", "is_kept", "bound"),
    [("none", False, TOLERANCE), ("int8", True, 0.05), ("int4", True, TOLERANCE)],
)
def test_other_forms_may_be_asked_for(
    gpu: EmulatedGpu,
    wide_checkpoints: Checkpoints,
    tmp_path: Path,
    quantization: DeviceQuantization,
    is_kept: bool,
    bound: float,
) -> None:
    """int4 keeps codes of 4 bits as they are."""
    folder, expected = written(wide_checkpoints.folder("llama-biased"), tmp_path, "awq")
    one = bench(gpu, loaded(folder, torch.bfloat16), quantization=quantization)
    product = one.decoder._layers[0].down_proj
    assert isinstance(product, Quantized) == is_kept
    if isinstance(product, Quantized):
        assert product.packed.group_size == (32 if quantization == "int4" else 0)
    assert error(run_in_pieces(one), expected) < bound


def test_two_ranks_have_their_parts_of_the_codes(
    gpu: EmulatedGpu, wide_checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Whose columns are in another order."""
    folder, expected = written(wide_checkpoints.folder("llama-biased"), tmp_path, "gptq-desc-act")

    def run(ranks: GroupRanks) -> torch.Tensor:
        part = Part(ranks.tp_rank, ranks.tp_size, ranks)
        return run_in_pieces(bench(gpu, loaded(folder, torch.bfloat16, part)))

    assert error(assert_alike(gloo_ranks(2, run)), expected) < TOLERANCE
