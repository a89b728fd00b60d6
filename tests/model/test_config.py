"""config.json -> DecoderConfig."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from trioserve.errors import ModelError
from trioserve.model.config import DecoderConfig, decoder_config, read_config
from trioserve.model.families import Scales
from trioserve.model.rope import rope_table
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


def test_longrope_has_two_rotations_and_goes_by_older_names() -> None:
    factors = {"short_factor": [1.0] * 32, "long_factor": [4.0] * 32}
    fields = {"max_position_embeddings": 8192, "original_max_position_embeddings": 1024}
    ropes = [
        of("Phi3", rope_scaling={"type": kind, **factors}, **fields).rope
        for kind in ("longrope", "su", "yarn")
    ]
    assert ropes[0] == ropes[1] == ropes[2]
    assert ropes[0].attention_factor == pytest.approx(math.sqrt(1.3))
    short, long = (rope_table(ropes[0], 64, num_positions) for num_positions in (1024, 1025))
    assert not torch.equal(short, long[:1024])
    assert torch.allclose(short[:250], long[:1000:4])


@pytest.mark.parametrize(("spelling", "value"), [("dtype", "bfloat16"), ("torch_dtype", "torch.bfloat16")])
def test_both_spellings_of_dtype_are_read(spelling: str, value: str) -> None:
    assert decoder_config(LLAMA | {spelling: value}).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "architecture GPT2LMHeadModel is not served; these are: Cohere2",
        ),
        ({"architectures": []}, "names no architecture"),
        ({"architectures": "LlamaForCausalLM"}, "names no architecture"),
        (
            {"quantization_config": {"quant_method": "aqlm"}},
            "quant_method 'aqlm' is not served; served are awq",
        ),
        ({"rope_scaling": {"rope_type": "longrope"}}, "short_factor is not a list of 32 numbers"),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1] * 32, "long_factor": [1] * 31 + [0]}},
            "long_factor is 0, not a number above 0",
        ),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope parameter factor is None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "rope parameter factor is -1"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "low_freq_factor is None"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differ by layer"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported, whole heads"),
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


def of(family: str, **fields: Any) -> DecoderConfig:
    return decoder_config(LLAMA | fields | {"architectures": [f"{family}ForCausalLM"]})


def test_gemmas_norms_embeddings_scores_and_logits_are_described() -> None:
    gemma = of("Gemma", hidden_act="gelu")
    assert (gemma.activation, gemma.norm.offset, gemma.scales.embedding) == ("gelu_tanh", 1.0, 2048**0.5)
    gemma2 = of("Gemma2", query_pre_attn_scalar=144, attn_logit_softcapping=None)
    assert gemma2.attention_scale == pytest.approx(1 / 12)
    assert (gemma2.scales.attention_bound, gemma2.scales.logits_bound) == (None, 30.0)
    assert (gemma2.norm.after_attention, gemma2.norm.before_mlp) == (
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
    )
    assert gemma2.sliding_windows == (4096, None) * 2
    assert of("Gemma2").scales.attention_bound == 50.0
    assert of("Gemma3").scales.logits_bound is None


def test_both_spellings_of_two_bases_mean_the_same() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = of(
        "Gemma3", rope_theta=5e5, rope_local_base_freq=2e4, rope_scaling=scaling, sliding_window_pattern=2
    )
    nested = {
        "full_attention": {"rope_theta": 5e5, **scaling},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    new = of("Gemma3", rope_parameters=nested, layer_types=["sliding_attention", "full_attention"] * 2)
    assert old == new
    assert [rope and (rope.theta, rope.factor) for rope in map(new.rope_of, range(4))] == [
        (2e4, 1.0),
        (5e5, 8.0),
    ] * 2
    assert of("Gemma3").local_rope == RopeConfig("half", 10_000.0)
    olmo3 = of("Olmo3", rope_theta=3e5, rope_scaling={"rope_type": "yarn", "factor": 8.0})
    assert olmo3.local_rope == RopeConfig("half", 3e5)
    assert (olmo3.rope.kind, olmo3.rope.theta) == ("yarn", 3e5)


def test_parts_of_heads_and_layers_without_rotation_are_described() -> None:
    assert of("Glm4").rope == RopeConfig("interleaved", 10_000.0, part=0.5)
    assert of("Glm4", partial_rotary_factor=0.25).rope.num_pairs(64) == 8
    assert of("StableLm", rope_parameters={"partial_rotary_factor": 0.75}).rope.part == 0.75
    smollm3 = of("SmolLM3", no_rope_layers=[1, 0, 0, 1])
    assert [smollm3.rope_of(layer) is None for layer in range(4)] == [False, True, True, False]
    assert of("SmolLM3").unrotated_layers == (3,)
    cohere2 = of("Cohere2", sliding_window_pattern=2, sliding_window=64)
    assert (cohere2.sliding_windows, cohere2.unrotated_layers) == ((64, None) * 2, (1, 3))


def test_multipliers_are_what_the_config_says() -> None:
    granite = of("Granite", attention_multiplier=0.1, embedding_multiplier=12, logits_scaling=8.0)
    assert granite.scales == Scales(attention=0.1, embedding=12.0, residual=1.0, logits=0.125)
    assert of("Cohere").scales.logits == 0.0625
    assert of("StableLm", use_parallel_residual=True).is_parallel
    assert not of("StableLm").is_parallel


@pytest.mark.parametrize(
    ("family", "fields", "sentence"),
    [
        (
            "Gemma2",
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention True is not supported",
        ),
        ("Gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is not supported"),
        (
            "Gemma3",
            {"rope_parameters": {"rope_theta": 1e6}},
            "does not tell full_attention from sliding_attention",
        ),
        ("Gemma2", {"sliding_window": None}, "sliding_window is None"),
        ("Gemma2", {"final_logit_softcapping": 0}, "final_logit_softcapping is 0.0, not a number above 0"),
        ("Glm4", {"partial_rotary_factor": 1.5}, "partial_rotary_factor 1.5 of head_dim 128"),
        ("Glm4", {"partial_rotary_factor": 0.01}, "leaves no even number of elements to rotate"),
        ("Granite", {"logits_scaling": -1}, "logits_scaling is -1.0, not a number above 0"),
        ("SmolLM3", {"no_rope_layers": [1, 0]}, "no_rope_layers does not say 0 or 1 of each of 4 layers"),
        ("Cohere", {"use_qk_norm": True}, "use_qk_norm True is not supported"),
        ("StableLm", {"qk_layernorm": True}, "qk_layernorm True is not supported"),
    ],
)
def test_what_a_family_cannot_be_served_with_is_named(
    family: str, fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        of(family, **fields)


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
