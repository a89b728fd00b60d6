"""What ``quantization_config`` of a config.json says, for each of those who write it.

Lists of modules that were left as they are (``ignore``, ``modules_to_not_convert``, ``lm_head``) are not needed: the
files hold either a module's codes or its weight.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from trioserve.errors import ModelError
from trioserve.model.quantized_storage import CheckpointQuantization, Packing, Rule, Storage

_ACTIVATION_SCALES: Final = ("input_scale", "input_zero_point", "activation_scale", "input_scale_ub")
"""Of inputs that others bring to 8 bits as well; here they stay as they are."""
_AWQ_PLACES: Final = (0, 2, 4, 6, 1, 3, 5, 7)


def read_quantization(config: object) -> CheckpointQuantization:
    """The meaning of a ``quantization_config``.

    Raises:
        ModelError: Something in it is not served; names the field, its value and what is.
    """
    if not isinstance(config, dict):
        raise ModelError(f"config.json: quantization_config is {config!r}, not an object")
    method = config.get("quant_method")
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise _refusal("quant_method", method, *_READERS)
    return CheckpointQuantization(str(method), reader(config))


def _refusal(field: str, value: object, *served: object) -> ModelError:
    those = f"; served are {', '.join(map(str, served))}" if served else ""
    return ModelError(f"config.json: quantization_config.{field} {value!r} is not served{those}")


def _one_of(value: object, field: str, *served: object) -> Any:
    """``value``, which is one of ``served``."""
    if any(type(value) is type(each) and value == each for each in served):
        return value
    raise _refusal(field, value, *served)


def _group_size(value: object, field: str = "group_size") -> int | None:
    """Columns of a group; None, as -1 says: all."""
    if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value != -1):
        raise _refusal(field, value, "-1", "whole numbers of at least 1")
    return None if value == -1 else value


def _object(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refusal(field, value, "objects")
    return value


def _pattern(text: object, field: str) -> str:
    try:
        return re.compile(str(text)).pattern
    except re.error as exc:
        raise _refusal(field, text, f"regular expressions ({exc})") from exc


# ---- AWQ -------------------------------------------------------------------------------------------------------------


def _read_awq(config: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Codes and zero points lie along the output columns, eight in a word, even ones first."""
    bits = _one_of(config.get("bits", config.get("w_bit", 4)), "bits", 4)
    version = config.get("version") or config.get("format") or "gemm"
    _one_of(str(version).lower(), "version", "gemm")
    _one_of(config.get("zero_point", True), "zero_point", True)
    if config.get("backend") == "llm-awq":
        raise _refusal("backend", "llm-awq", "autoawq")
    packing = Packing(bits, dim=1, places=_AWQ_PLACES)
    storage = Storage(
        method="awq",
        bits=bits,
        codes="qweight",
        scales="scales",
        is_transposed=True,
        packing=packing,
        group_size=_group_size(config.get("group_size", config.get("q_group_size", 128))),
        zero_points="qzeros",
        zero_packing=packing,
    )
    return (Rule((storage,)),)


# ---- GPTQ ------------------------------------------------------------------------------------------------------------


def _read_gptq(config: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Codes lie along the input, zero points along the output columns; ``dynamic`` changes some modules."""
    written = config.get("checkpoint_format") or config.get("format") or "gptq"
    if config.get("is_marlin_format"):
        written = "marlin"
    _one_of(written, "checkpoint_format", "gptq", "gptq_v2")
    _one_of(str(config.get("pack_dtype", "int32")).removeprefix("torch."), "pack_dtype", "int32")
    rules = []
    for name, changes in _object(config.get("dynamic") or {}, "dynamic").items():
        pattern = _pattern(name.removeprefix("+:").removeprefix("-:"), "dynamic")
        if name.startswith("-:"):
            rules.append(Rule((), pattern))
        else:
            changed = {**config, **_object(changes, "dynamic")}
            rules.append(Rule((_gptq_storage(changed, written),), pattern))
    return (*rules, Rule((_gptq_storage(config, written),)))


def _gptq_storage(config: Mapping[str, Any], written: str) -> Storage:
    bits = _one_of(config.get("bits", 4), "bits", 4, 8)
    return Storage(
        method="gptq",
        bits=bits,
        codes="qweight",
        scales="scales",
        is_transposed=True,
        packing=Packing(bits, dim=0),
        group_size=_group_size(config.get("group_size", 128)),
        zero_points="qzeros",
        zero_packing=Packing(bits, dim=1, less=1 if written == "gptq" else 0),
        group_index="g_idx",
    )


# ---- fp8 -------------------------------------------------------------------------------------------------------------


def _read_fp8(config: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Numbers of e4m3 with a scale for the whole matrix or for each row; or, as DeepSeek began, for each block."""
    _one_of(config.get("fmt", "e4m3"), "fmt", "e4m3")
    size = config.get("weight_block_size")
    rows, columns = (1, None) if size is None else _block(size, "weight_block_size")
    storage = Storage(
        method="fp8",
        bits=8,
        is_float=True,
        codes="weight",
        scales="weight_scale_inv",
        group_size=columns,
        block_rows=rows,
        unneeded=_ACTIVATION_SCALES,
    )
    return (Rule((storage, replace(storage, scales="weight_scale"))),)


def _block(value: object, field: str) -> tuple[int, int]:
    """Rows and columns of a block, also as "128x128"."""
    if isinstance(value, str) and all(part.isdigit() for part in value.split("x")):
        value = [int(part) for part in value.split("x")]
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _refusal(field, value, "two numbers")
    rows, columns = (_group_size(each, field) for each in value)
    if rows is None or columns is None:
        raise _refusal(field, value, "two numbers of at least 1")
    return rows, columns


# ---- compressed-tensors ----------------------------------------------------------------------------------------------


def _read_compressed_tensors(config: Mapping[str, Any]) -> tuple[Rule, ...]:
    """A group of modules each; those that it names count before those it describes, and these before classes."""
    sparsity = _object(config.get("sparsity_config") or {}, "sparsity_config")
    _one_of(sparsity.get("format", "dense"), "sparsity_config.format", "dense")
    if config.get("transform_config"):
        raise _refusal("transform_config", config["transform_config"])
    ranked: list[tuple[int, Rule]] = []
    for name, group in _object(config.get("config_groups"), "config_groups").items():
        field = f"config_groups.{name}"
        values = _object(group, field)
        if values.get("weights") is None:
            continue
        form = values.get("format") or config.get("format")
        storage = _compressed_storage(_object(values["weights"], f"{field}.weights"), form, field)
        targets = values.get("targets")
        if not isinstance(targets, list):
            raise _refusal(f"{field}.targets", targets, "lists")
        ranked += [_ranked_rule(str(target), storage, field) for target in targets]
    return tuple(rule for _, rule in sorted(ranked, key=lambda each: each[0]))


def _ranked_rule(target: str, storage: Storage, field: str) -> tuple[int, Rule]:
    if target.startswith("re:"):
        return 1, Rule((storage,), _pattern(target.removeprefix("re:"), f"{field}.targets"))
    if target == "Linear":
        return 2, Rule((storage,))
    return 0, Rule((storage,), re.escape(target) + "$")


def _compressed_storage(weights: Mapping[str, Any], form: object, field: str) -> Storage:
    bits = _one_of(weights.get("num_bits", 8), f"{field}.weights.num_bits", 4, 8)
    kind = _one_of(weights.get("type", "int"), f"{field}.weights.type", "int", "float")
    _one_of(weights.get("dynamic", False), f"{field}.weights.dynamic", False)
    rows, columns = _compressed_group(weights, f"{field}.weights")
    storage = Storage(
        method="compressed-tensors",
        bits=bits,
        codes="weight",
        scales="weight_scale",
        is_float=kind == "float",
        group_size=columns,
        block_rows=rows,
        zero_points="" if weights.get("symmetric", True) else "weight_zero_point",
        middle=1 << bits - 1,
        unneeded=("weight_zero_point", "weight_shape", *_ACTIVATION_SCALES),
    )
    if kind == "float":
        _one_of(bits, f"{field}.weights.num_bits", 8)
        _one_of(form, "format", "float-quantized", "naive-quantized")
        return storage
    _one_of(form, "format", "pack-quantized", "int-quantized", "naive-quantized")
    if form != "pack-quantized":
        return storage
    return replace(
        storage,
        codes="weight_packed",
        packing=Packing(bits, dim=1),
        zero_packing=Packing(bits, dim=0),
        group_index="weight_g_idx",
    )


def _compressed_group(weights: Mapping[str, Any], field: str) -> tuple[int, int | None]:
    """Rows and columns that share a scale; columns None: all of a row."""
    size = weights.get("group_size")
    inferred = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = weights.get("strategy") or inferred
    _one_of(strategy, f"{field}.strategy", "tensor", "channel", "group", "block")
    if strategy == "block":
        return _block(weights.get("block_structure"), f"{field}.block_structure")
    return 1, _group_size(size, f"{field}.group_size") if strategy == "group" else None


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], tuple[Rule, ...]]]] = {
    "awq": _read_awq,
    "compressed-tensors": _read_compressed_tensors,
    "fp8": _read_fp8,
    "fbgemm_fp8": _read_fp8,
    "gptq": _read_gptq,
}
