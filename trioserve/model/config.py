"""A decoder described by data: what a Hugging Face ``config.json`` says, checked and in one vocabulary.

Nothing behind this file knows a model family; a family is a row of ``families.FAMILIES``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from trioserve.errors import ModelError
from trioserve.model.config_fields import Fields
from trioserve.model.families import FAMILIES, LLAMA_NORMS, NO_SCALES, Family, NormConfig, Scales
from trioserve.model.quantized_formats import read_quantization
from trioserve.model.quantized_storage import CheckpointQuantization
from trioserve.model.rope_config import RopeConfig, of_layers, read_rope

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
    """The shape of a decoder-only transformer: norms, rotary positions, a gated MLP."""

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
    """Of its norms, of whichever kind they are."""
    activation: Activation
    rope: RopeConfig
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """Whether q and k are normalised before they are rotated."""
    tie_word_embeddings: bool
    sliding_windows: tuple[int | None, ...]
    """One per layer: how many tokens, itself included, a token sees; None is all of them."""
    dtype: DType | None
    """What the checkpoint says it holds; None where it does not say."""
    norm: NormConfig = LLAMA_NORMS
    scales: Scales = NO_SCALES
    is_parallel: bool = False
    """Whether the MLP reads what attention reads, and both are added to the residual at once."""
    local_rope: RopeConfig | None = None
    """Of the layers that slide; None: ``rope``, as of the others."""
    unrotated_layers: tuple[int, ...] = ()
    """Layers whose heads are not rotated."""
    quantization: CheckpointQuantization | None = None
    """How the checkpoint keeps its matrices in few bits; None: it does not."""

    def rope_of(self, layer: int) -> RopeConfig | None:
        """How the heads of a layer are rotated; None: they are not."""
        if layer in self.unrotated_layers:
            return None
        return self.local_rope if self.local_rope and self.sliding_windows[layer] else self.rope

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied by."""
        return self.head_dim**-0.5 if self.scales.attention is None else self.scales.attention


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
    fields = Fields(values)
    name = _architecture(values)
    family = FAMILIES.get(name)
    if family is None:
        raise ModelError(f"architecture {name} is not served; these are: {', '.join(sorted(FAMILIES))}")
    _refuse_unsupported(fields, name, family)
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
    rope, local_rope = _ropes(fields, family, head_dim, max_positions)
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
        rms_norm_eps=fields.number(*family.norm_eps),
        activation=_activation(family.activation(fields)),
        rope=rope,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=family.qk_norm,
        tie_word_embeddings=fields.flag("tie_word_embeddings", family.tied_by_default),
        sliding_windows=family.windows(fields),
        dtype=_dtype(values.get("dtype") or values.get("torch_dtype")),
        norm=family.norm(fields),
        scales=family.scales(fields),
        is_parallel=family.is_parallel(fields),
        local_rope=local_rope,
        unrotated_layers=family.unrotated(fields),
        quantization=_quantization(values.get("quantization_config")),
    )


def _quantization(config: object) -> CheckpointQuantization | None:
    return read_quantization(config) if config else None


def _ropes(
    fields: Fields, family: Family, head_dim: int, max_positions: int
) -> tuple[RopeConfig, RopeConfig | None]:
    """The rotation of the layers, and that of those that slide where it is another."""
    style, part = family.rope_style, family.rotated_part
    if family.local_rope is None:
        return read_rope(fields.values, style, family.rope_theta, head_dim, max_positions, part), None
    key, theta = family.local_rope
    full = of_layers(fields.values, "full_attention", "rope_theta")
    sliding = of_layers(fields.values, "sliding_attention", key)
    return (
        read_rope(full, style, family.rope_theta, head_dim, max_positions, part),
        read_rope(sliding, style, theta, head_dim, max_positions, part),
    )


def _architecture(values: Mapping[str, Any]) -> str:
    names = values.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelError("config.json names no architecture")
    return names[0]


def _refuse_unsupported(fields: Fields, name: str, family: Family) -> None:
    for key in family.refused:
        if fields.values.get(key) not in (None, False):
            raise ModelError(f"{name}: {key} {fields.values[key]} is not supported")


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
