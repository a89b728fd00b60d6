"""What tells model families apart, as data: how each departs from Llama, and what its config calls it.

Source: the configuration and modeling files of transformers 5.23, one folder a family.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from trioserve.errors import ModelError
from trioserve.model.config_fields import Fields
from trioserve.model.rope_config import RopeStyle

NormKind = Literal["rms", "layer"]
Windows = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class NormConfig:
    """The norms of a decoder, and which of its four places have one: a name is the checkpoint's, None is no norm."""

    kind: NormKind = "rms"
    has_bias: bool = False
    offset: float = 0.0
    """What is added to the checkpoint's weights."""
    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    """Of what attention adds to the residual."""
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    heads_together: bool = False
    """Whether all heads of q of a token are normalised as one, and those of k; or each by itself."""


@dataclass(frozen=True, slots=True)
class Scales:
    """Numbers that some families multiply by, or bound by: a bound b makes b * tanh(x / b) of x."""

    attention: float | None = None
    """Of the scores; None: 1 / sqrt(head_dim)."""
    attention_bound: float | None = None
    """Of the scores, after they are scaled."""
    embedding: float = 1.0
    """Rounded to the model's type before it is used."""
    residual: float = 1.0
    """Of what attention and MLP add to the residual."""
    logits: float = 1.0
    logits_bound: float | None = None
    """Of the logits, after they are scaled."""


LLAMA_NORMS: Final = NormConfig()
NO_SCALES: Final = Scales()


def _no_biases(fields: Fields) -> tuple[bool, bool, bool]:
    del fields
    return (False, False, False)


def _llama_biases(fields: Fields) -> tuple[bool, bool, bool]:
    return (fields.flag("attention_bias"), fields.flag("attention_bias"), fields.flag("mlp_bias"))


def _attention_biases(fields: Fields) -> tuple[bool, bool, bool]:
    return (fields.flag("attention_bias"), fields.flag("attention_bias"), False)


def _no_windows(fields: Fields) -> Windows:
    return (None,) * fields.count("num_hidden_layers")


def _mistral_windows(fields: Fields) -> Windows:
    """Every layer slides when ``sliding_window`` is a number."""
    window = fields.count("sliding_window") if fields.has("sliding_window") else None
    return (window,) * fields.count("num_hidden_layers")


def _qwen_windows(fields: Fields) -> Windows:
    """``layer_types`` decides; older configs slide from ``max_window_layers`` on, and only if told to."""
    num_layers = fields.count("num_hidden_layers")
    window = None
    if fields.flag("use_sliding_window") and fields.values.get("sliding_window", 4096) is not None:
        window = fields.count("sliding_window", 4096)
    first = fields.number("max_window_layers", 28)
    slides = _sliding_layers(fields) or tuple(layer >= first for layer in range(num_layers))
    return tuple(window if sliding else None for sliding in slides)


def _alternating_windows(period: int, key: str | None = None) -> Callable[[Fields], Windows]:
    """``layer_types`` decides; without it all layers slide but every ``period``-th, or what ``key`` says."""

    def windows(fields: Fields) -> Windows:
        every = period if key is None else fields.count(key, period)
        num_layers = fields.count("num_hidden_layers")
        slides = _sliding_layers(fields) or tuple((layer + 1) % every != 0 for layer in range(num_layers))
        if not any(slides):
            return (None,) * num_layers
        window = fields.count("sliding_window", None if "sliding_window" in fields.values else 4096)
        return tuple(window if sliding else None for sliding in slides)

    return windows


def _smollm3_windows(fields: Fields) -> Windows:
    """Layers without rotation slide, if layers are told to."""
    num_layers = fields.count("num_hidden_layers")
    window = None
    if fields.flag("use_sliding_window") and fields.has("sliding_window"):
        window = fields.count("sliding_window")
    unrotated = _smollm3_unrotated(fields)
    slides = _sliding_layers(fields) or tuple(layer in unrotated for layer in range(num_layers))
    return tuple(window if sliding else None for sliding in slides)


def _sliding_layers(fields: Fields) -> tuple[bool, ...] | None:
    """What ``layer_types`` says; None: nothing."""
    types, num_layers = fields.values.get("layer_types"), fields.count("num_hidden_layers")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != num_layers:
        raise ModelError(f"config.json: layer_types does not name the kind of each of {num_layers} layers")
    unknown = [kind for kind in types if kind not in ("full_attention", "sliding_attention")]
    if unknown:
        raise ModelError(f"layers of type {unknown[0]!r} are not supported")
    return tuple(kind == "sliding_attention" for kind in types)


def _smollm3_unrotated(fields: Fields) -> tuple[int, ...]:
    """``no_rope_layers`` has a 1 for each layer that is rotated; without it every fourth is not."""
    num_layers = fields.count("num_hidden_layers")
    rotated = fields.values.get("no_rope_layers")
    if rotated is None:
        interval = fields.count("no_rope_layer_interval", 4)
        return tuple(range(interval - 1, num_layers, interval))
    is_fit = (
        isinstance(rotated, list) and len(rotated) >= num_layers and all(flag in (0, 1) for flag in rotated)
    )
    if not is_fit:
        raise ModelError(f"config.json: no_rope_layers does not say 0 or 1 of each of {num_layers} layers")
    return tuple(layer for layer in range(num_layers) if not rotated[layer])


def _full_layers(windows: Callable[[Fields], Windows]) -> Callable[[Fields], tuple[int, ...]]:
    """The layers that do not slide."""
    return lambda fields: tuple(i for i, window in enumerate(windows(fields)) if window is None)


def _gemma_activation(fields: Fields) -> object:
    """Released as gelu, trained with its approximation by tanh."""
    name = fields.values.get("hidden_act")
    return "gelu_pytorch_tanh" if name in (None, "gelu") else name


def _gemma_scales(fields: Fields) -> Scales:
    return Scales(embedding=math.sqrt(fields.count("hidden_size")))


def _gemma2_scales(fields: Fields) -> Scales:
    return Scales(
        attention=fields.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_bound=fields.bound("attn_logit_softcapping", 50.0),
        embedding=math.sqrt(fields.count("hidden_size")),
        logits_bound=fields.bound("final_logit_softcapping", 30.0),
    )


def _gemma3_scales(fields: Fields) -> Scales:
    return Scales(
        attention=fields.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        embedding=math.sqrt(fields.count("hidden_size")),
        logits_bound=fields.bound("final_logit_softcapping", None),
    )


def _granite_scales(fields: Fields) -> Scales:
    return Scales(
        attention=fields.positive("attention_multiplier", 1.0),
        embedding=fields.positive("embedding_multiplier", 1.0),
        residual=fields.positive("residual_multiplier", 1.0),
        logits=1.0 / fields.positive("logits_scaling", 1.0),
    )


@dataclass(frozen=True, slots=True)
class Family:
    """Where a family departs from Llama."""

    rope_style: RopeStyle = "half"
    rope_theta: float = 10_000.0
    local_rope: tuple[str, float] | None = None
    """Layers that slide are rotated by a base of their own: where older configs have it, and its default."""
    rotated_part: float | None = None
    """The part of a head that is rotated, where ``partial_rotary_factor`` is absent; None: it is always all."""
    unrotated: Callable[[Fields], tuple[int, ...]] = lambda _fields: ()
    """The layers whose heads are not rotated."""
    tied_by_default: bool = False
    head_dim: int | None = None
    """What a config without ``head_dim`` means; None: hidden_size / num_heads."""
    max_position_embeddings: int = 2048
    norm: Callable[[Fields], NormConfig] = lambda _fields: LLAMA_NORMS
    norm_eps: tuple[str, float] = ("rms_norm_eps", 1e-6)
    """What it is called, and its default."""
    activation: Callable[[Fields], object] = lambda fields: fields.values.get("hidden_act", "silu")
    """What the config calls it."""
    biases: Callable[[Fields], tuple[bool, bool, bool]] = _llama_biases
    """-> qkv, o, mlp."""
    qk_norm: bool = False
    """Whether q and k are normalised before they are rotated."""
    windows: Callable[[Fields], Windows] = _no_windows
    is_parallel: Callable[[Fields], bool] = lambda _fields: False
    scales: Callable[[Fields], Scales] = lambda _fields: NO_SCALES
    refused: tuple[str, ...] = ()
    """Fields that ask, unless they are null or false, for what no decoder here does."""


_GEMMA_NORMS: Final = NormConfig(
    offset=1.0,
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)
_GLM4_NORMS: Final = NormConfig(after_attention="post_self_attn_layernorm", after_mlp="post_mlp_layernorm")
_OLMO_NORMS: Final = NormConfig(
    before_attention=None,
    after_attention="post_attention_layernorm",
    before_mlp=None,
    after_mlp="post_feedforward_layernorm",
    heads_together=True,
)
_COHERE_NORMS: Final = NormConfig(kind="layer", before_mlp=None)
_COHERE2_WINDOWS: Final = _alternating_windows(4, "sliding_window_pattern")


def _hidden_activation(fields: Fields) -> object:
    return fields.values.get("hidden_activation") or "gelu_pytorch_tanh"


def _stablelm_norms(fields: Fields) -> NormConfig:
    """Attention and MLP side by side read the same norm."""
    name = None if fields.flag("use_parallel_residual") else "post_attention_layernorm"
    return NormConfig(kind="layer", has_bias=True, before_mlp=name)


FAMILIES: Final[Mapping[str, Family]] = {
    "LlamaForCausalLM": Family(),
    "MistralForCausalLM": Family(
        biases=_no_biases, windows=_mistral_windows, max_position_embeddings=131_072
    ),
    "Qwen2ForCausalLM": Family(
        biases=lambda fields: (True, False, False), windows=_qwen_windows, max_position_embeddings=32_768
    ),
    "Qwen3ForCausalLM": Family(
        biases=_attention_biases,
        qk_norm=True,
        windows=_qwen_windows,
        head_dim=128,
        max_position_embeddings=32_768,
    ),
    "Phi3ForCausalLM": Family(
        biases=_no_biases,
        rotated_part=1.0,
        windows=_mistral_windows,
        max_position_embeddings=4096,
        norm_eps=("rms_norm_eps", 1e-5),
    ),
    "SeedOssForCausalLM": Family(
        biases=lambda fields: (
            fields.flag("attention_bias", True),
            fields.flag("attention_out_bias"),
            fields.flag("mlp_bias"),
        ),
        head_dim=128,
        max_position_embeddings=524_288,
    ),
    "Ernie4_5ForCausalLM": Family(
        rope_style="interleaved",
        rope_theta=500_000.0,
        biases=lambda fields: (fields.flag("use_bias"),) * 3,
        tied_by_default=True,
        head_dim=128,
        max_position_embeddings=131_072,
        norm_eps=("rms_norm_eps", 1e-5),
    ),
    "GemmaForCausalLM": Family(
        norm=lambda _fields: NormConfig(offset=1.0),
        activation=_gemma_activation,
        biases=_attention_biases,
        scales=_gemma_scales,
        tied_by_default=True,
        head_dim=256,
        max_position_embeddings=8192,
        refused=("use_bidirectional_attention",),
    ),
    "Gemma2ForCausalLM": Family(
        norm=lambda _fields: _GEMMA_NORMS,
        activation=_hidden_activation,
        biases=_attention_biases,
        windows=_alternating_windows(2),
        scales=_gemma2_scales,
        tied_by_default=True,
        head_dim=256,
        max_position_embeddings=8192,
        refused=("use_bidirectional_attention",),
    ),
    "Gemma3ForCausalLM": Family(
        rope_theta=1_000_000.0,
        local_rope=("rope_local_base_freq", 10_000.0),
        norm=lambda _fields: _GEMMA_NORMS,
        activation=_hidden_activation,
        biases=_attention_biases,
        qk_norm=True,
        windows=_alternating_windows(6, "sliding_window_pattern"),
        scales=_gemma3_scales,
        tied_by_default=True,
        head_dim=256,
        max_position_embeddings=131_072,
        refused=("use_bidirectional_attention", "attn_logit_softcapping"),
    ),
    "GlmForCausalLM": Family(
        rope_style="interleaved",
        rotated_part=0.5,
        biases=lambda fields: (fields.flag("attention_bias", True), False, False),
        head_dim=128,
        max_position_embeddings=131_072,
        norm_eps=("rms_norm_eps", 1.5625e-7),
    ),
    "Glm4ForCausalLM": Family(
        rope_style="interleaved",
        rotated_part=0.5,
        norm=lambda _fields: _GLM4_NORMS,
        biases=lambda fields: (fields.flag("attention_bias", True), False, False),
        head_dim=128,
        max_position_embeddings=131_072,
        norm_eps=("rms_norm_eps", 1.5625e-7),
    ),
    "GraniteForCausalLM": Family(scales=_granite_scales),
    "Olmo2ForCausalLM": Family(
        norm=lambda _fields: _OLMO_NORMS,
        norm_eps=("rms_norm_eps", 1e-5),
        biases=_attention_biases,
        qk_norm=True,
    ),
    "Olmo3ForCausalLM": Family(
        rope_theta=500_000.0,
        local_rope=("rope_theta", 500_000.0),
        norm=lambda _fields: _OLMO_NORMS,
        norm_eps=("rms_norm_eps", 1e-5),
        biases=_attention_biases,
        qk_norm=True,
        windows=_alternating_windows(4),
    ),
    "SmolLM3ForCausalLM": Family(
        rope_theta=2_000_000.0,
        unrotated=_smollm3_unrotated,
        windows=_smollm3_windows,
        tied_by_default=True,
        max_position_embeddings=32_768,
    ),
    "CohereForCausalLM": Family(
        rope_style="interleaved",
        rope_theta=500_000.0,
        norm=lambda _fields: _COHERE_NORMS,
        norm_eps=("layer_norm_eps", 1e-5),
        biases=_attention_biases,
        is_parallel=lambda _fields: True,
        scales=lambda fields: Scales(logits=fields.positive("logit_scale", 0.0625)),
        tied_by_default=True,
        max_position_embeddings=8192,
        refused=("use_qk_norm",),
    ),
    "Cohere2ForCausalLM": Family(
        rope_style="interleaved",
        unrotated=_full_layers(_COHERE2_WINDOWS),
        norm=lambda _fields: _COHERE_NORMS,
        norm_eps=("layer_norm_eps", 1e-5),
        biases=_attention_biases,
        windows=_COHERE2_WINDOWS,
        is_parallel=lambda _fields: True,
        scales=lambda fields: Scales(logits=fields.positive("logit_scale", 0.0625)),
        tied_by_default=True,
        max_position_embeddings=8192,
    ),
    "StableLmForCausalLM": Family(
        rotated_part=0.25,
        norm=_stablelm_norms,
        norm_eps=("layer_norm_eps", 1e-5),
        biases=lambda fields: (fields.flag("use_qkv_bias"), False, False),
        is_parallel=lambda fields: fields.flag("use_parallel_residual"),
        max_position_embeddings=4096,
        refused=("qk_layernorm",),
    ),
}
