"""Quantized checkpoints as whole models: beside transformers on what they stand for, by parts, and damaged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.model.checkpoints import Checkpoints, prompt_of
from tests.model.pieces import Bench, Piece
from tests.model.quantized import (
    FORMS,
    Form,
    exact_int8,
    is_matrix,
    is_matrix_or_head,
    quantize_folder,
    write_twin,
)
from tests.model.ranks import exchanges, gloo_ranks, native_part, torch_part
from trioserve.errors import ModelError
from trioserve.model.config import read_config
from trioserve.model.decoder import Decoder
from trioserve.model.loader import load_weights, resolve_dtype
from trioserve.model.native import Crew
from trioserve.model.native_matrices import Quantization

TEXT = prompt_of(40, seed=2)
BLOCKS = [3, 1, 2]
SINGLE = "model.safetensors"


class Quantized:
    """A quantized folder and its truth."""

    def __init__(self, source: Path, folder: Path, form: Form, **how: Any) -> None:
        self.folder = folder
        self.truth = quantize_folder(source, folder, form, **how)

    def load(self, dtype: torch.dtype = torch.float32, *, may_borrow: bool = False) -> Decoder:
        model = Decoder(read_config(self.folder), dtype, num_positions=64)
        load_weights(model, self.folder, may_borrow=may_borrow)
        return model

    def dense(self) -> Decoder:
        """On torch's layers."""
        model = self.load()
        assert model.pack().startswith("torch layers: as told; ")
        return model

    def native(self, quantization: Quantization = "auto") -> tuple[Decoder, str]:
        model = self.load(torch.bfloat16, may_borrow=True)
        return model, model.pack(Crew(2, alone_work=0), quantization)

    @torch.inference_mode()
    def expected(self, reference: Any) -> Tensor:
        """transformers' logits on the dense weights, float32."""
        config = reference.config
        model = type(reference)(config).eval()
        missing, unknown = model.load_state_dict({n: t.float() for n, t in self.truth.items()}, strict=False)
        assert set(missing) <= {"lm_head.weight"} and not unknown
        logits: Tensor = model(torch.tensor([TEXT]), use_cache=False).logits[0]
        return logits


Make = Callable[..., Quantized]


@pytest.fixture
def make(checkpoints: Checkpoints, tmp_path: Path) -> Make:
    """``make(form, family)``: a checkpoint of the family, quantized."""

    def made(form: str, name: str = "llama", **how: Any) -> Quantized:
        return Quantized(checkpoints.folder(name), tmp_path / form, FORMS[form], **how)

    return made


def logits(model: Decoder) -> Tensor:
    return Bench(model).run(Piece(TEXT, 0, len(TEXT), BLOCKS)).float()


def error(found: Tensor, expected: Tensor) -> float:
    """Of the root mean square."""
    return float((found - expected).norm() / expected.norm())


# ---- beside transformers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_torchs_layers_compute_what_transformers_does_on_the_dense_weights(
    checkpoints: Checkpoints, make: Make, form: str
) -> None:
    quantized = make(form)
    assert error(logits(quantized.dense()), quantized.expected(checkpoints.reference("llama"))) < 1e-5


def test_torchs_layers_say_what_has_become_dense(make: Make) -> None:
    assert make("gptq-8").load(torch.float16).pack() == "torch layers: as told; gptq int8 as float16"


@pytest.mark.parametrize(
    ("form", "said", "most"),
    [
        ("awq", "native {isa}, awq int4 kept as it is, 2 threads", 0.1),
        ("packed-int4", "native {isa}, compressed-tensors int4 kept as it is, 2 threads", 0.1),
        ("gptq-desc-act", "native {isa}, gptq int4 as int8, 2 threads", 0.1),
        ("int8", "native {isa}, compressed-tensors int8 kept as it is, 2 threads", 0.1),
        ("fp8-blocks", "native {isa}, fp8 as int8, 2 threads", 0.1),
    ],
)
def test_the_native_decoder_keeps_codes_or_says_what_they_become(
    checkpoints: Checkpoints, make: Make, form: str, said: str, most: float
) -> None:
    quantized = make(form)
    model, description = quantized.native()
    assert description == said.format(isa=description.split()[1].rstrip(","))
    assert error(logits(model), quantized.expected(checkpoints.reference("llama"))) < most


@pytest.mark.parametrize(
    ("quantization", "said"), [("none", "as bf16"), ("int8", "as int8"), ("int4", "kept")]
)
def test_quantization_that_is_asked_for_is_obeyed(
    checkpoints: Checkpoints, make: Make, quantization: Quantization, said: str
) -> None:
    quantized = make("packed-int4")
    model, description = quantized.native(quantization)
    assert f"compressed-tensors int4 {said}" in description
    most = 0.03 if quantization == "none" else 0.15
    assert error(logits(model), quantized.expected(checkpoints.reference("llama"))) < most


def test_4_bits_take_a_third_of_the_memory_of_16(make: Make) -> None:
    """Codes, and for each 32 columns 32 bits; the head and the embeddings are not quantized."""
    quantized = make("awq")
    kept, dense = (quantized.native(each)[0].packed_bytes for each in ("auto", "none"))
    assert kept is not None and dense is not None
    config = read_config(quantized.folder)
    rest = 2 * 2 * config.vocab_size * config.hidden_size
    assert (kept - rest) * 16 < (dense - rest) * 5.5


@pytest.mark.parametrize("form", ["awq", "fp8"])
def test_what_comes_merged_is_told_apart(checkpoints: Checkpoints, make: Make, form: str) -> None:
    quantized = make(form, "phi3")
    assert any("qkv_proj.weight" in name for name in quantized.truth)
    expected = quantized.expected(checkpoints.reference("phi3"))
    assert error(logits(quantized.dense()), expected) < 1e-5
    assert error(logits(quantized.native()[0]), expected) < 0.1


def test_matrices_beside_quantized_ones_may_be_as_they_were(checkpoints: Checkpoints, make: Make) -> None:
    """Also within a layer that is one product here: k_proj is left, q_proj and v_proj are not."""
    quantized = make("packed-int4", which=lambda name: is_matrix(name) and "k_proj" not in name)
    expected = quantized.expected(checkpoints.reference("llama"))
    assert error(logits(quantized.dense()), expected) < 1e-5
    model, said = quantized.native()
    assert "2 of compressed-tensors int4 as bf16, 6 of compressed-tensors int4 kept as it is" in said
    assert error(logits(model), expected) < 0.1


@pytest.mark.parametrize(("form", "name"), [("gptq", "llama-biased"), ("int8", "qwen3"), ("awq", "gemma2")])
def test_heads_biases_and_other_families_are_served(
    checkpoints: Checkpoints, make: Make, form: str, name: str
) -> None:
    quantized = make(form, name, which=is_matrix_or_head)
    expected = quantized.expected(checkpoints.reference(name))
    assert error(logits(quantized.dense()), expected) < 2e-5
    assert error(logits(quantized.native()[0]), expected) < 0.1


def test_codes_that_quantizing_would_find_give_the_same_bits(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """From a checkpoint of int8, and from what it stands for, brought to int8 at load."""
    source = checkpoints.folder("llama")
    quantized = Quantized(source, tmp_path / "int8", exact_int8(), which=is_matrix_or_head)
    twin = Decoder(
        read_config(write_twin(source, tmp_path / "twin", quantized.truth)), torch.bfloat16, num_positions=64
    )
    load_weights(twin, tmp_path / "twin")
    twin.pack(Crew(1), "int8")
    model, said = quantized.native()
    assert "kept as it is" in said
    assert torch.equal(logits(model), logits(twin))


# ---- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["awq", "gptq-desc-act", "packed-int4-asymmetric", "fp8-blocks", "int8"])
def test_two_ranks_compute_what_one_does(make: Make, form: str) -> None:
    """Each has half of the columns of some matrices, which is one group and a half."""
    quantized = make(form)
    expected = logits(quantized.dense())
    for found in gloo_ranks(2, lambda ranks: logits(torch_part(quantized.folder, torch.float32, ranks))):
        assert error(found, expected) < 1e-5


@pytest.mark.parametrize("form", ["awq", "gptq-desc-act"])
def test_two_native_ranks_are_as_near_as_one(checkpoints: Checkpoints, make: Make, form: str) -> None:
    quantized = make(form)
    expected = quantized.expected(checkpoints.reference("llama"))
    parts = exchanges(
        2, lambda exchange: logits(native_part(quantized.folder, exchange, quantization="auto")).clone()
    )
    assert torch.equal(*parts)
    assert error(parts[0], expected) < 0.12


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def change(quantized: Quantized, how: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(quantized.folder / SINGLE)
    how(tensors)
    save_file(tensors, quantized.folder / SINGLE)


Q, DOWN = "model.layers.0.self_attn.q_proj.", "model.layers.0.mlp.down_proj."


@pytest.mark.parametrize(
    ("form", "how", "sentence"),
    [
        ("awq", lambda each: each.pop(Q + "qzeros"), "lacks 1 tensors: .*q_proj.qzeros"),
        ("awq", lambda each: each.pop(Q + "scales"), "q_proj.qweight"),
        ("int8", lambda each: each.pop(Q + "weight_scale"), "q_proj.weight is of type int8, not bfloat16 or"),
        (
            "int8",
            lambda each: each.pop(DOWN + "weight_scale"),
            "down_proj.weight is of type torch.int8, and noth",
        ),
        ("gptq", lambda each: each.update({Q + "bias": torch.ones(64)}), "bias of a layer that has none"),
        (
            "gptq",
            lambda each: each.update({Q + "lut": torch.ones(64)}),
            "holds unknown 1 tensors: .*q_proj.lut",
        ),
        ("awq", lambda each: each.update({Q + "scales": torch.ones(2, 8)}), "q_proj.scales has shape"),
    ],
)
def test_a_damaged_checkpoint_is_named(
    make: Make, form: str, how: Callable[[dict[str, Tensor]], object], sentence: str
) -> None:
    quantized = make(form)
    change(quantized, how)
    with pytest.raises(ModelError, match=sentence):
        quantized.load()


def test_what_others_need_beside_is_passed_over(checkpoints: Checkpoints, make: Make) -> None:
    """Biases of zeros where there are none, as old checkpoints of GPTQ have, and scales of keys and values."""
    quantized = make("gptq")
    spare = {Q + "bias": torch.zeros(64), "model.layers.1.self_attn.k_proj.k_scale": torch.ones(1)}
    change(quantized, lambda each: each.update(spare))
    assert error(logits(quantized.dense()), quantized.expected(checkpoints.reference("llama"))) < 1e-5


def test_a_checkpoint_that_does_not_name_its_type_has_that_of_its_other_tensors(make: Make) -> None:
    quantized = make("gptq")
    config = read_config(quantized.folder)
    assert resolve_dtype(quantized.folder, config, "auto") == torch.float32
    path = quantized.folder / "config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"dtype"', '"was"'), encoding="utf-8")
    halves = {
        name: each.half()
        for name, each in load_file(quantized.folder / SINGLE).items()
        if each.is_floating_point()
    }
    change(quantized, lambda each: each.update(halves))
    assert resolve_dtype(quantized.folder, read_config(quantized.folder), "auto") == torch.float16


def test_progress_counts_what_is_packed(make: Make) -> None:
    quantized = make("awq")
    seen: list[tuple[int, int]] = []
    model = quantized.load(torch.bfloat16, may_borrow=True)
    model.pack(Crew(1), progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0
