"""How a config says that positions turn into rotations, in both spellings that checkpoints use."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from trioserve.errors import ModelError

RopeStyle = Literal["half", "interleaved"]
RopeKind = Literal["default", "linear", "llama3", "longrope", "yarn"]

_KINDS: Final = ("default", "linear", "llama3", "longrope", "yarn")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding; fields of other kinds than ``kind`` keep their defaults."""

    style: RopeStyle
    """half: element i pairs with i + half of them; interleaved: 2 i pairs with 2 i + 1."""
    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    original_max_positions: int = 0
    """Context of the first training, in tokens."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    """Multiplies cos and sin."""
    truncate: bool = True
    """yarn: whether the ramp begins and ends at whole dimensions."""
    short_factors: tuple[float, ...] = ()
    """longrope: what slows each pair, where no sequence outgrows the first context."""
    long_factors: tuple[float, ...] = ()
    """longrope: the same where one may."""
    part: float = 1.0
    """Of a head that is rotated: its first elements, among which they pair."""

    def num_pairs(self, head_dim: int) -> int:
        """Pairs of a head that are rotated."""
        return int(head_dim * self.part) // 2


def read_rope(
    values: Mapping[str, Any],
    style: RopeStyle,
    default_theta: float,
    head_dim: int,
    max_positions: int,
    default_part: float | None = None,
) -> RopeConfig:
    """The rotary part of a config: ``rope_parameters``, or ``rope_theta`` with ``rope_scaling``.

    Args:
        default_part: Of a head, rotated where the config does not say; None: it may not say anything but all.
    Raises:
        ModelError: The kind is not supported or lacks a number that it needs.
    """
    if head_dim % 2:
        raise ModelError(f"head_dim {head_dim} is odd and cannot be rotated in pairs")
    fields = _fields(values)
    kind = fields.get("rope_type") or fields.get("type") or "default"
    if kind in ("su", "yarn") and fields.get("long_factor") is not None:  # what it was called before
        kind = "longrope"
    if kind not in _KINDS:
        raise ModelError(f"rope type {kind!r} is not supported; these are: {', '.join(_KINDS)}")
    part = _part(fields, head_dim, default_part)
    theta = _number(fields, "rope_theta", default_theta)
    if kind == "default":
        return RopeConfig(style, theta, part=part)
    original = values.get("original_max_position_embeddings") or fields.get(
        "original_max_position_embeddings"
    )
    original = int(_number({"original": original}, "original", max_positions))
    factor = _number(fields, "factor", max_positions / original if kind in ("yarn", "longrope") else None)
    num_pairs = int(head_dim * part) // 2
    return RopeConfig(
        style,
        theta,
        cast("RopeKind", kind),
        factor,
        original,
        low_freq_factor=_number(fields, "low_freq_factor", None if kind == "llama3" else 1.0),
        high_freq_factor=_number(fields, "high_freq_factor", None if kind == "llama3" else 4.0),
        beta_fast=_number(fields, "beta_fast", 32.0),
        beta_slow=_number(fields, "beta_slow", 1.0),
        attention_factor=_attention_factor(fields, kind, factor, original),
        truncate=fields.get("truncate") is not False,
        short_factors=_factors(fields, "short_factor", num_pairs) if kind == "longrope" else (),
        long_factors=_factors(fields, "long_factor", num_pairs) if kind == "longrope" else (),
        part=part,
    )


def of_layers(values: Mapping[str, Any], kind: str, theta_key: str) -> dict[str, Any]:
    """What the config would say if all its layers were of ``kind``, of a family whose kinds are rotated differently.

    Older configs have the base of each kind under a key of its own, and scaling is of layers that see everything.

    Raises:
        ModelError: ``rope_parameters`` does not tell kinds of layers apart.
    """
    rest = {key: value for key, value in values.items() if not key.startswith("rope_")}
    nested = values.get("rope_parameters")
    if isinstance(nested, dict) and nested:
        if not {"full_attention", "sliding_attention"} & nested.keys():
            raise ModelError(
                "config.json: rope_parameters does not tell full_attention from sliding_attention"
            )
        return rest | {"rope_parameters": nested.get(kind)}
    scaling = values.get("rope_scaling") if kind == "full_attention" else None
    return rest | {"rope_theta": values.get(theta_key), "rope_scaling": scaling}


def _part(fields: Mapping[str, Any], head_dim: int, default: float | None) -> float:
    """The part of a head that is rotated."""
    part = _number(fields, "partial_rotary_factor", default or 1.0)
    if default is None and part != 1.0:
        raise ModelError(
            f"partial_rotary_factor {part} is not supported, whole heads are rotated in this architecture"
        )
    if part > 1.0 or int(head_dim * part) % 2 or int(head_dim * part) == 0:
        raise ModelError(
            f"partial_rotary_factor {part} of head_dim {head_dim} leaves no even number of elements to rotate"
        )
    return part


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Theta and scaling in one mapping, whichever spelling the config uses."""
    fields: dict[str, Any] = {key: values.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    for spelling in ("rope_scaling", "rope_parameters"):
        found = values.get(spelling)
        if isinstance(found, dict):
            fields |= found
    nested = [key for key, value in fields.items() if isinstance(value, dict)]
    if nested:
        raise ModelError(f"rope parameters that differ by layer are not supported: {', '.join(nested)}")
    return fields


def _factors(fields: Mapping[str, Any], key: str, num_pairs: int) -> tuple[float, ...]:
    factors = fields.get(key)
    if not isinstance(factors, list) or len(factors) != num_pairs:
        raise ModelError(f"config.json: the rope parameter {key} is not a list of {num_pairs} numbers")
    return tuple(_number({key: factor}, key, None) for factor in factors)


def _attention_factor(fields: Mapping[str, Any], kind: str, factor: float, original: int) -> float:
    """What yarn and longrope multiply cos and sin by, given or inferred.

    Source: arXiv:2309.00071, and ``mscale`` as transformers' ``_compute_yarn_parameters`` reads it; arXiv:2402.13753.
    """
    if kind not in ("yarn", "longrope"):
        return 1.0
    if fields.get("attention_factor") is not None:
        return _number(fields, "attention_factor", None)
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    upper, lower = fields.get("mscale"), fields.get("mscale_all_dim")
    if upper and lower:
        return mscale(float(upper)) / mscale(float(lower))
    return mscale(1.0)


def _number(fields: Mapping[str, Any], key: str, default: float | None) -> float:
    value = fields.get(key)
    if value is None:
        value = default
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ModelError(f"config.json: the rope parameter {key} is {value!r}, not a number above 0")
    return float(value)
