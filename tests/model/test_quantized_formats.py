"""``quantization_config`` of every kind: what is understood, for which modules, and the sentence where it is not."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest

from tests.model.quantized import FORMS, compressed
from trioserve.errors import ModelError
from trioserve.model.quantized_formats import read_quantization
from trioserve.model.quantized_storage import Storage

Q_PROJ, DOWN_PROJ = "model.layers.1.self_attn.q_proj", "model.layers.11.mlp.down_proj"


def storage_of(config: Mapping[str, Any], module: str, *names: str) -> Storage | None:
    """How ``module`` is kept in files that have tensors of these names, of every module."""
    stored = {f"{each}.{name}" for each in (Q_PROJ, DOWN_PROJ, "lm_head") for name in names}
    return read_quantization(config).storage_of(module, stored)


def changed(name: str, **changes: Any) -> dict[str, Any]:
    return FORMS[name].config | changes


def weights(name: str, **changes: Any) -> dict[str, Any]:
    config = copy.deepcopy(FORMS[name].config)
    config["config_groups"]["group_0"]["weights"] |= changes
    return config


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("awq", "awq int4"),
        ("gptq-8", "gptq int8"),
        ("packed-int4", "compressed-tensors int4"),
        ("float8-rows", "compressed-tensors fp8"),
        ("fp8-blocks", "fp8"),
    ],
)
def test_a_storage_says_who_made_it_and_of_how_many_bits(name: str, said: str) -> None:
    names = ("qweight", "scales", "weight", "weight_packed", "weight_scale", "weight_scale_inv")
    storage = storage_of(FORMS[name].config, Q_PROJ, *names)
    assert storage is not None and storage.name == said


@pytest.mark.parametrize("name", FORMS)
def test_a_module_without_scales_is_not_quantized_whatever_the_lists_say(name: str) -> None:
    assert storage_of(FORMS[name].config, "lm_head", "weight") is None


def test_a_head_that_has_codes_is_quantized() -> None:
    storage = storage_of(FORMS["gptq"].config, "lm_head", "qweight", "qzeros", "scales")
    assert storage is not None and storage.codes == "qweight"


def test_gptq_may_keep_some_modules_otherwise() -> None:
    dynamic = {r"-:.*\.q_proj": {}, r"+:.*\.11\..*": {"bits": 8, "group_size": -1}, r".*\.12\.": {"bits": 8}}
    config = changed("gptq", dynamic=dynamic)
    assert storage_of(config, Q_PROJ, "qweight", "scales") is None
    storage = storage_of(config, DOWN_PROJ, "qweight", "scales")
    assert storage is not None and (storage.bits, storage.group_size) == (8, None)
    head = storage_of(config, "lm_head", "qweight", "scales")
    assert head is not None and (head.bits, head.group_size) == (4, 32)


def test_what_names_a_module_counts_before_what_describes_it_and_before_its_class() -> None:
    config = compressed("pack-quantized", {"num_bits": 4, "group_size": 64, "strategy": "group"})
    config["config_groups"] |= {
        "group_1": {"targets": [r"re:.*\.(q|down)_proj"], "weights": {"num_bits": 8, "group_size": -1}},
        "group_2": {
            "targets": [Q_PROJ],
            "weights": {"num_bits": 8, "type": "float"},
            "format": "float-quantized",
        },
        "group_3": {"targets": ["re:.*self_attn$"], "weights": None},
    }
    names = ("weight", "weight_packed", "weight_scale")
    found = [storage_of(config, module, *names) for module in (Q_PROJ, DOWN_PROJ, "lm_head")]
    assert [each and (each.bits, each.is_float, each.group_size) for each in found] == [
        (8, True, None),
        (8, False, None),
        (4, False, 64),
    ]


@pytest.mark.parametrize(
    ("changes", "has_block"), [({"weight_block_size": None}, False), ({"weight_block_size": [64, 32]}, True)]
)
def test_fp8_is_found_by_either_name_of_its_scales(changes: dict[str, Any], has_block: bool) -> None:
    for name in ("weight_scale", "weight_scale_inv"):
        storage = storage_of(changed("fp8", **changes), Q_PROJ, "weight", name)
        assert storage is not None and storage.scales == name
        assert (storage.block_rows, storage.group_size) == ((64, 32) if has_block else (1, None))


def test_a_block_may_be_written_as_rows_x_columns() -> None:
    storage = storage_of(weights("float8-blocks", block_structure="64x32"), Q_PROJ, "weight", "weight_scale")
    assert storage is not None and (storage.block_rows, storage.group_size) == (64, 32)


# ---- what is not served ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("awq", "quantization_config is 'awq', not an object"),
        ({"bits": 4}, "quant_method None is not served; served are awq, compressed-tensors, fp8, fbgemm_fp8"),
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes' is not served"),
        (changed("awq", bits=8), "bits 8 is not served; served are 4"),
        (changed("awq", version="gemv"), "version 'gemv' is not served; served are gemm"),
        (changed("awq", zero_point=False), "zero_point False is not served; served are True"),
        (changed("awq", backend="llm-awq"), "backend 'llm-awq' is not served"),
        (changed("awq", group_size=0), "group_size 0 is not served; served are -1, whole numbers of"),
        (changed("gptq", bits=3), "bits 3 is not served; served are 4, 8"),
        (changed("gptq", checkpoint_format="marlin"), "checkpoint_format 'marlin' is not served"),
        (changed("gptq", is_marlin_format=True), "checkpoint_format 'marlin' is not served"),
        (changed("gptq", pack_dtype="int16"), "pack_dtype 'int16' is not served; served are int32"),
        (changed("gptq", dynamic={"+:.*": {"bits": 2}}), "bits 2 is not served"),
        (changed("gptq", dynamic={"-:(": {}}), r"dynamic '\(' is not served; served are regular expressions"),
        (changed("fp8", weight_block_size=[128]), r"weight_block_size \[128\] is not served"),
        (changed("fp8", fmt="e5m2"), "fmt 'e5m2' is not served; served are e4m3"),
        (changed("packed-int4", config_groups=None), "config_groups None is not served; served are objects"),
        (changed("packed-int4", format="marlin-24"), "format 'marlin-24' is not served; served are pack-qua"),
        (changed("float8-rows", format="nvfp4-pack-quantized"), "format 'nvfp4-pack-quantized' is not"),
        (
            changed("packed-int4", sparsity_config={"format": "sparse-24-bitmask"}),
            "sparsity_config.format 'sparse-24-bitmask' is not served; served are dense",
        ),
        (changed("packed-int4", transform_config={"R1": {}}), "transform_config {'R1': {}} is not served$"),
        (weights("packed-int4", num_bits=3), r"config_groups.group_0.weights.num_bits 3 is not served"),
        (weights("float8-rows", num_bits=4), r"weights.num_bits 4 is not served; served are 8"),
        (weights("packed-int4", strategy="tensor_group"), r"weights.strategy 'tensor_group' is not"),
        (weights("packed-int4", group_size="many"), r"weights.group_size 'many' is not served"),
        (weights("int8", dynamic=True), r"weights.dynamic True is not served; served are False"),
        (weights("float8-blocks", block_structure=None), r"weights.block_structure None is not served"),
    ],
)
def test_what_is_not_understood_is_named_with_its_value(config: object, sentence: str) -> None:
    with pytest.raises(ModelError, match=f"^config.json: (quantization_config.)?.*{sentence}"):
        read_quantization(config)
