"""Fills a decoder from a folder of safetensors, tensor by tensor, or with seeded noise.

Only safetensors are read: the other formats of checkpoints are pickles, and a pickle is a program.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trioserve.errors import ModelError
from trioserve.model.config import DecoderConfig
from trioserve.model.decoder import Decoder
from trioserve.model.layers import WeightedLayer
from trioserve.model.progress import Progress, unseen
from trioserve.model.quantized_loader import QuantizedTargets

_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_IGNORED_ENDINGS: Final = ("rotary_emb.inv_freq",)
"""Buffers that old checkpoints carry and that follow from the config."""
_DTYPES: Final = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class _Target(NamedTuple):
    """Where a checkpoint's tensor goes."""

    layer: WeightedLayer
    parameter: nn.Parameter
    shard: str | None


class _Merged(NamedTuple):
    """A tensor that holds several others."""

    target: _Target
    parts: list[str]


def resolve_dtype(folder: Path, config: DecoderConfig, asked: str) -> torch.dtype:
    """The type to compute in: what was asked for, or for "auto" what the checkpoint holds.

    Raises:
        ModelError: The checkpoint holds no type that is served.
    """
    if asked != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[asked]
    if config.dtype is not None:
        return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[config.dtype]
    with _opened(weight_files(folder)[0]) as file:
        types = [file.get_slice(name).get_dtype() for name in file.keys()]  # noqa: SIM118 # no mapping
    # beside codes there are scales and norms, whose type is what was computed in
    stored = next((each for each in types if each in _DTYPES), types[0])
    if stored not in _DTYPES:
        raise ModelError(f"{folder} holds weights of type {stored}; served are {', '.join(_DTYPES)}")
    return _DTYPES[stored]


def load_weights(
    model: Decoder, folder: Path, progress: Progress = unseen, *, may_borrow: bool = False
) -> None:
    """Fill every parameter of ``model`` from the safetensors in ``folder``.

    Args:
        progress: Told of what is copied, in bytes of the files.
        may_borrow: Whether matrices may stay where the files are mapped: for a model that is packed natively, which
            reads them once and frees them.
    Raises:
        ModelError: No safetensors, a damaged file, or tensors that are missing, unknown or of another shape.
    """
    targets, merged = checkpoint_targets(model), merged_targets(model)
    files = weight_files(folder)
    quantized = _quantized_targets(model, files)
    for name in quantized.weights if quantized else ():
        targets.pop(name, None)
        merged.pop(name, None)
    total = sum(path.stat().st_size for path in files)
    loaded, has_borrowed = 0, False
    missing, unknown = set(targets), []
    for path in files:
        for name, tensor in _tensors(path):
            is_borrowed = False
            if quantized and quantized.take(name, tensor):
                is_borrowed = may_borrow
            elif name in targets:
                is_borrowed = _fill(targets[name], name, tensor, may_borrow)
                missing.discard(name)
            elif name in merged:
                is_borrowed = _fill(merged[name].target, name, tensor, may_borrow)
                missing.difference_update(merged[name].parts)
            elif not _is_ignored(name, model.config):
                unknown.append(name)
            if not is_borrowed:
                loaded += tensor.nbytes
                progress(loaded, total)
            has_borrowed = has_borrowed or is_borrowed
    _refuse_leftovers(folder, sorted(missing), sorted(unknown))
    if quantized:
        _refuse_leftovers(folder, quantized.finish(), [])
    if not has_borrowed:
        progress(total, total)


def _quantized_targets(model: Decoder, files: list[Path]) -> QuantizedTargets | None:
    if model.config.quantization is None:
        return None
    names: set[str] = set()
    for path in files:
        with _opened(path) as file:
            names.update(file.keys())
    return QuantizedTargets(model, model.config.quantization, names)


def dummy_weights(model: Decoder, seed: int, progress: Progress = unseen) -> None:
    """Fill ``model`` with noise that depends on ``seed``, not on the part that is here; norms are one, biases small."""
    generator = torch.Generator().manual_seed(seed)
    total, loaded = sum(parameter.nbytes for parameter in model.parameters()), 0
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.fill_(1.0 - model.config.norm.offset)
        else:
            _fill_with_noise(model.get_submodule(name.rpartition(".")[0]), parameter, generator)
        loaded += parameter.nbytes
        progress(loaded, total)


def _fill_with_noise(layer: nn.Module, parameter: nn.Parameter, generator: torch.Generator) -> None:
    assert isinstance(layer, WeightedLayer), "a parameter belongs to a layer that knows its part"
    shape = layer.full_shape(parameter.data, None)
    is_whole = shape == list(parameter.shape)
    noise = parameter.data if is_whole else torch.empty(shape, dtype=parameter.dtype)
    # the standard deviation of an untrained checkpoint, drawn evenly: a tenth of the time of a normal draw
    bound = 0.02 * math.sqrt(3.0)
    noise.uniform_(-bound, bound, generator=generator)
    if not is_whole:
        layer.weight_loader(parameter, noise, None)


def checkpoint_targets(model: nn.Module) -> dict[str, _Target]:
    """The tensors that a checkpoint of ``model`` must hold, by name."""
    targets = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, WeightedLayer):
            continue
        parent = path.rpartition(".")[0]
        for kind, parameter in layer.named_parameters(recurse=False):
            for shard in layer.shards or (None,):
                name = f"{path}.{kind}" if shard is None else f"{parent}.{shard}.{kind}"
                targets[name] = _Target(layer, parameter, shard)
    if isinstance(model, Decoder) and model.config.tie_word_embeddings:
        del targets["lm_head.weight"]
    return targets


def merged_targets(model: nn.Module) -> dict[str, _Merged]:
    """The tensors that may stand for several of ``checkpoint_targets``, their rows in the order of a layer's shards."""
    targets = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, WeightedLayer) or not layer.shards:
            continue
        parent = path.rpartition(".")[0]
        for kind, parameter in layer.named_parameters(recurse=False):
            parts = [f"{parent}.{shard}.{kind}" for shard in layer.shards]
            targets[f"{path}.{kind}"] = _Merged(_Target(layer, parameter, None), parts)
    return targets


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint in ``folder``.

    Raises:
        ModelError: There are none, or the index names files that are not there.
    """
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        return _indexed_files(folder)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    others = [path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern)]
    held = f"only {', '.join(sorted(others)[:3])}" if others else "no weights"
    raise ModelError(f"{folder} holds {held}; safetensors are needed ({_SINGLE}, or shards with {_INDEX})")


def _indexed_files(folder: Path) -> list[Path]:
    path = folder / _INDEX
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as exc:
        raise ModelError(f"{path} is damaged: {exc}") from exc
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise ModelError(f"{path} is damaged: it does not name files of its own folder")
    absent = sorted(name for name in names if not (folder / name).is_file())
    if absent:
        raise ModelError(f"{folder} lacks {len(absent)} of {len(names)} weight files, such as {absent[0]}")
    return [folder / name for name in sorted(names)]


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 # a safetensors handle is no mapping
            try:
                yield name, file.get_tensor(name)
            except SafetensorError as exc:
                raise ModelError(f"{path}: {name} cannot be read: {exc}") from exc


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as exc:
        raise ModelError(f"{path} is damaged or truncated: {exc}") from exc


def _fill(target: _Target, name: str, tensor: Tensor, may_borrow: bool) -> bool:
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise ModelError(
            f"tensor {name} is of type {tensor.dtype}, and nothing says what its numbers stand for: config.json has no "
            "quantization_config that does, or its scales are missing"
        )
    try:
        return target.layer.weight_loader(target.parameter, tensor, target.shard, may_borrow=may_borrow)
    except ModelError as exc:
        raise ModelError(f"tensor {name} {exc}") from None


def _is_ignored(name: str, config: DecoderConfig) -> bool:
    return name.endswith(_IGNORED_ENDINGS) or (config.tie_word_embeddings and name == "lm_head.weight")


def _refuse_leftovers(folder: Path, missing: list[str], unknown: list[str]) -> None:
    for names, fault in ((missing, "lacks"), (unknown, "holds unknown")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(f"{folder} {fault} {len(names)} tensors: {', '.join(names[:3])}{more}")
