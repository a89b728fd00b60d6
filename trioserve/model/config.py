"""A decoder described by data: what a Hugging Face ``config.json`` says, checked and in one vocabulary.

Nothing behind this file knows a model family; a family is a row of ``_FAMILIES``.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from trioserve.errors import ModelError
from trioserve.model.rope_config import RopeConfig, RopeStyle, read_rope

Activation = Literal["silu", "gelu", "gelu_tanh"]
DType = Literal["bfloat16", "float16", "float32"]

_ACTIVATIONS: Final[Mapping[str, Activation]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_DTYPES: Final[Mapping[str, DType]] = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
    "float32": "float32",
    "float": "float32",
}


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of a decoder-only transformer: pre-norm, RMSNorm, rotary positions, gated MLP."""

    architecture: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    activation: Activation
    rope: RopeConfig
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """Whether each head of q and k is normalised before it is rotated."""
    tie_word_embeddings: bool
    sliding_windows: tuple[int | None, ...]
    """One per layer: how many tokens, itself included, a token sees; None is all of them."""
    dtype: DType | None
    """What the checkpoint says it holds; None where it does not say."""


@dataclass(frozen=True, slots=True)
class _Family:
    """Where a family departs from Llama."""

    rope_style: RopeStyle = "half"
    rope_theta: float = 10_000.0
    tied_by_default: bool = False
    head_dim: int | None = None
    """What a config without ``head_dim`` means; None: hidden_size / num_heads."""
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    biases: Callable[["_Fields"], tuple[bool, bool, bool]] = lambda fields: (
        fields.flag("attention_bias"),
        fields.flag("attention_bias"),
        fields.flag("mlp_bias"),
    )
    """-> qkv, o, mlp."""
    qk_norm: bool = False
    windows: Callable[["_Fields"], tuple[int | None, ...]] = lambda fields: (
        (None,) * fields.count("num_hidden_layers")
    )


def read_config(folder: Path) -> DecoderConfig:
    """Read ``folder/config.json``.

    Raises:
        ModelError: It is missing or unreadable, names an architecture that is not served, or a feature of it.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a model folder: it has no config.json") from None
    except (OSError, ValueError, RecursionError) as exc:
        raise ModelError(f"{path} cannot be read: {exc}") from exc
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds no JSON object")
    return decoder_config(values)


def decoder_config(values: Mapping[str, Any]) -> DecoderConfig:
    """The same for a config that is already parsed."""
    fields = _Fields(values)
    name = _architecture(values)
    family = _FAMILIES.get(name)
    if family is None:
        raise ModelError(f"architecture {name} is not served; these are: {', '.join(sorted(_FAMILIES))}")
    _refuse_unsupported(values, name)
    num_heads = fields.count("num_attention_heads")
    hidden_size = fields.count("hidden_size")
    head_dim = fields.count("head_dim", family.head_dim or hidden_size // num_heads)
    max_positions = fields.count("max_position_embeddings", family.max_position_embeddings)
    num_kv_heads = fields.count("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}"
        )
    qkv_bias, o_bias, mlp_bias = family.biases(fields)
    return DecoderConfig(
        architecture=name,
        num_hidden_layers=fields.count("num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=fields.count("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=fields.count("vocab_size"),
        max_position_embeddings=max_positions,
        rms_norm_eps=fields.number("rms_norm_eps", family.rms_norm_eps),
        activation=_activation(values.get("hidden_act", "silu")),
        rope=read_rope(values, family.rope_style, family.rope_theta, head_dim, max_positions),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=family.qk_norm,
        tie_word_embeddings=fields.flag("tie_word_embeddings", family.tied_by_default),
        sliding_windows=family.windows(fields),
        dtype=_dtype(values.get("dtype") or values.get("torch_dtype")),
    )


class _Fields:
    """Reads numbers and flags of a config and says which one is wrong."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1; null is the same as absent."""
        value = self.values.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"config.json: {key} is {value!r}, not a whole number of at least 1")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ModelError(f"config.json: {key} is {value!r}, not a number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"config.json: {key} is {value!r}, neither true nor false")
        return value


def _architecture(values: Mapping[str, Any]) -> str:
    names = values.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelError("config.json names no architecture")
    return names[0]


def _refuse_unsupported(values: Mapping[str, Any], name: str) -> None:
    quantization = values.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else "unnamed"
        raise ModelError(f"{name} is quantized by {method}; only unquantized checkpoints are served")
    partial = values.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0):
        raise ModelError(
            f"{name}: partial_rotary_factor {partial} is not supported, only whole heads are rotated"
        )


def _activation(name: object) -> Activation:
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ModelError(
            f"hidden_act {name!r} is not supported; these are: {', '.join(sorted(_ACTIVATIONS))}"
        )
    return _ACTIVATIONS[name]


def _dtype(name: object) -> DType | None:
    if name is None or name == "auto":
        return None
    if not isinstance(name, str) or name.removeprefix("torch.") not in _DTYPES:
        raise ModelError(f"dtype {name!r} is not supported; these are: {', '.join(sorted(_DTYPES))}")
    return _DTYPES[name.removeprefix("torch.")]


def _mistral_windows(fields: _Fields) -> tuple[int | None, ...]:
    """Every layer slides when ``sliding_window`` is a number."""
    window = None if fields.values.get("sliding_window") is None else fields.count("sliding_window")
    return (window,) * fields.count("num_hidden_layers")


def _qwen_windows(fields: _Fields) -> tuple[int | None, ...]:
    """``layer_types`` decides; older configs slide from ``max_window_layers`` on, and only if told to."""
    num_layers = fields.count("num_hidden_layers")
    window = None
    if fields.flag("use_sliding_window") and fields.values.get("sliding_window", 4096) is not None:
        window = fields.count("sliding_window", 4096)
    types = fields.values.get("layer_types")
    if types is None:
        first = fields.number("max_window_layers", 28)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if not isinstance(types, list) or len(types) != num_layers:
        raise ModelError(f"config.json: layer_types does not name the kind of each of {num_layers} layers")
    unknown = [kind for kind in types if kind not in ("full_attention", "sliding_attention")]
    if unknown:
        raise ModelError(f"layers of type {unknown[0]!r} are not supported")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


_FAMILIES: Final[Mapping[str, _Family]] = {
    "LlamaForCausalLM": _Family(),
    "MistralForCausalLM": _Family(
        biases=lambda fields: (False, False, False), windows=_mistral_windows, max_position_embeddings=131_072
    ),
    "Qwen2ForCausalLM": _Family(
        biases=lambda fields: (True, False, False), windows=_qwen_windows, max_position_embeddings=32_768
    ),
    "Qwen3ForCausalLM": _Family(
        biases=lambda fields: (fields.flag("attention_bias"), fields.flag("attention_bias"), False),
        qk_norm=True,
        windows=_qwen_windows,
        head_dim=128,
        max_position_embeddings=32_768,
    ),
    "Phi3ForCausalLM": _Family(
        biases=lambda fields: (False, False, False),
        windows=_mistral_windows,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    ),
    "SeedOssForCausalLM": _Family(
        biases=lambda fields: (
            fields.flag("attention_bias", True),
            fields.flag("attention_out_bias"),
            fields.flag("mlp_bias"),
        ),
        head_dim=128,
        max_position_embeddings=524_288,
    ),
    "Ernie4_5ForCausalLM": _Family(
        rope_style="interleaved",
        rope_theta=500_000.0,
        biases=lambda fields: (fields.flag("use_bias"),) * 3,
        tied_by_default=True,
        head_dim=128,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
    ),
}
"""Source: the configuration and modeling files of transformers 5.23, one folder a family."""
