"""config.json -> DecoderConfig."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from trioserve.errors import ModelError
from trioserve.model.config import decoder_config, read_config
from trioserve.model.rope_config import RopeConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 4,
    "vocab_size": 128256,
}


def test_a_config_of_few_words_gets_the_defaults_of_its_family() -> None:
    config = decoder_config(LLAMA)
    assert (config.num_kv_heads, config.head_dim, config.max_position_embeddings) == (32, 64, 2048)
    assert config.rope == RopeConfig("half", 10_000.0)
    assert config.sliding_windows == (None,) * 4
    assert config.dtype is None
    assert not (
        config.qkv_bias or config.o_bias or config.mlp_bias or config.qk_norm or config.tie_word_embeddings
    )
    assert config.activation == "silu"
    assert config.rms_norm_eps == 1e-6


def test_families_differ_in_data_only() -> None:
    qwen2 = decoder_config(LLAMA | {"architectures": ["Qwen2ForCausalLM"]})
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.mlp_bias) == (True, False, False)
    qwen3 = decoder_config(LLAMA | {"architectures": ["Qwen3ForCausalLM"], "attention_bias": True})
    assert (qwen3.qkv_bias, qwen3.o_bias, qwen3.qk_norm, qwen3.head_dim) == (True, True, True, 128)
    ernie = decoder_config(LLAMA | {"architectures": ["Ernie4_5ForCausalLM"], "use_bias": True})
    assert (ernie.qkv_bias, ernie.o_bias, ernie.mlp_bias, ernie.tie_word_embeddings) == (True,) * 4
    assert (ernie.rope.style, ernie.rope.theta, ernie.rms_norm_eps) == ("interleaved", 500_000.0, 1e-5)
    mistral = decoder_config(LLAMA | {"architectures": ["MistralForCausalLM"], "sliding_window": 4096})
    assert mistral.sliding_windows == (4096,) * 4


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"use_sliding_window": False, "sliding_window": 8}, (None,) * 4),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}, (None, None, None, 8)),
        ({"use_sliding_window": True, "sliding_window": None}, (None,) * 4),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            (None, 8, None, 8),
        ),
    ],
)
def test_which_layers_of_qwen_slide(fields: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    for family in ("Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        assert decoder_config(LLAMA | fields | {"architectures": [family]}).sliding_windows == windows


LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def test_both_spellings_of_rope_mean_the_same() -> None:
    old = decoder_config(LLAMA | {"rope_theta": 500_000.0, "rope_scaling": LLAMA3})
    new = decoder_config(LLAMA | {"rope_parameters": {"rope_theta": 500_000.0, **LLAMA3}})
    assert old.rope == new.rope
    assert new.rope == RopeConfig("half", 500_000.0, "llama3", 32.0, 8192, 1.0, 4.0)
    oldest = decoder_config(LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    assert (oldest.rope.kind, oldest.rope.factor, oldest.rope.theta) == ("linear", 2.0, 10_000.0)
    assert decoder_config(LLAMA | {"rope_scaling": None}).rope.kind == "default"


def test_the_attention_factor_of_yarn_is_given_or_inferred() -> None:
    def factor(**fields: float) -> float:
        scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, **fields}
        return decoder_config(LLAMA | {"rope_scaling": scaling}).rope.attention_factor

    assert factor() == pytest.approx(0.1 * math.log(4) + 1)
    assert factor(attention_factor=1.5) == 1.5
    assert factor(mscale=0.707, mscale_all_dim=1.0) == pytest.approx(
        (0.0707 * math.log(4) + 1) / (0.1 * math.log(4) + 1)
    )


@pytest.mark.parametrize(("spelling", "value"), [("dtype", "bfloat16"), ("torch_dtype", "torch.bfloat16")])
def test_both_spellings_of_dtype_are_read(spelling: str, value: str) -> None:
    assert decoder_config(LLAMA | {spelling: value}).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "architecture GPT2LMHeadModel is not served; these are: Ernie4_5",
        ),
        ({"architectures": []}, "names no architecture"),
        ({"architectures": "LlamaForCausalLM"}, "names no architecture"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized by awq"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope parameter factor is None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "rope parameter factor is -1"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "low_freq_factor is None"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differ by layer"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"hidden_act": "relu6"}, "hidden_act 'relu6' is not supported"),
        ({"dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is not supported"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"rms_norm_eps": True}, "rms_norm_eps is True"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
        ({"num_key_value_heads": 5}, "32 is no multiple of num_key_value_heads 5"),
        ({"head_dim": 63}, "head_dim 63 is odd"),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        decoder_config(LLAMA | changes)


@pytest.mark.parametrize(
    ("types", "sentence"),
    [
        (["chunked_attention"] * 4, "layers of type 'chunked_attention' are not supported"),
        (["full_attention"] * 3, "does not name the kind of each of 4 layers"),
        ("full_attention", "does not name the kind of each of 4 layers"),
        ([[]] * 4, r"layers of type \[\] are not supported"),
    ],
)
def test_layer_types_that_do_not_fit_are_named(types: object, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        decoder_config(LLAMA | {"architectures": ["Qwen3ForCausalLM"], "layer_types": types})


def test_a_folder_without_a_readable_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a model folder: it has no config\.json"):
        read_config(tmp_path)
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"config\.json"):
            read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_config(tmp_path).hidden_size == 2048
