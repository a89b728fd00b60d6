"""Quantized checkpoints in miniature, packed word by word as their formats say, and what their codes stand for.

Nothing here is shared with what reads them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FP8: Final = torch.float8_e4m3fn
AWQ_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)


class Written(NamedTuple):
    """A matrix of a checkpoint."""

    tensors: dict[str, Tensor]
    """By their names behind the module's."""
    truth: Tensor
    """What they stand for, float64."""


@dataclass(frozen=True)
class Form:
    """A way to keep matrices."""

    config: dict[str, Any]
    write: Callable[[Tensor], Written]
    """From a matrix [out_size, in_size]."""
    native: str | None
    """What the native decoder keeps its codes as."""
    has_packed: bool
    """Whether the kernels of a GPU have it."""


# ---- words -----------------------------------------------------------------------------------------------------------


def pack_words(codes: Tensor, bits: int, dim: int, order: tuple[int, ...] | None = None) -> Tensor:
    """int32 words of codes that count from 0; place i of a word has neighbour ``order[i]`` along ``dim``."""
    numbers = codes.numpy().astype(np.uint64)
    numbers = numbers.T if dim == 0 else numbers
    per_word = 32 // bits
    words = np.zeros((len(numbers), -(-numbers.shape[1] // per_word)), dtype=np.uint64)
    for column in range(words.shape[1]):
        for place in range(per_word):
            at = column * per_word + (place if order is None else order[place])
            if at < numbers.shape[1]:
                words[:, column] |= numbers[:, at] << np.uint64(bits * place)
    words = words.T if dim == 0 else words
    return torch.from_numpy(np.ascontiguousarray(words.astype(np.uint32).view(np.int32)))


class Grids(NamedTuple):
    """Codes that count from 0, and what they stand for."""

    codes: Tensor
    """[out_size, in_size] int64"""
    scales: Tensor
    """[out_size, num_groups]"""
    zeros: Tensor
    """[out_size, num_groups] int64"""
    truth: Tensor


def grids_of(
    weight: Tensor,
    bits: int,
    size: int | None,
    dtype: torch.dtype,
    *,
    symmetric: bool,
    group_of: Tensor | None = None,
) -> Grids:
    """The nearest codes, of groups of ``size`` columns, None: of whole rows; ``group_of`` names each column's group."""
    in_size, most = weight.shape[1], (1 << bits) - 1
    size = size or in_size
    index = torch.arange(in_size) // size if group_of is None else group_of.long()
    num_groups = int(index.max()) + 1
    low, high = (torch.stack([_of(weight, index, g, sign) for g in range(num_groups)], 1) for sign in (-1, 1))
    if symmetric:
        scales = (torch.maximum(-low, high) / (most / 2)).to(dtype)
        zeros = torch.full(scales.shape, 1 << bits - 1)
    else:
        scales = ((high - low).clamp(min=1e-6) / most).to(dtype)
        zeros = (-low / scales.double()).round().clamp(0, most).long()
    steps = weight.double() / scales.double()[:, index] + zeros[:, index]
    codes = steps.round().clamp(0, most).long()
    truth = (codes - zeros[:, index]).double() * scales.double()[:, index]
    return Grids(codes, scales, zeros, truth)


def _of(weight: Tensor, index: Tensor, group: int, sign: int) -> Tensor:
    columns = weight[:, index == group].double()
    return (columns.amax(1) if sign > 0 else columns.amin(1)).clamp(*((0, None) if sign > 0 else (None, 0)))


# ---- formats ---------------------------------------------------------------------------------------------------------


def scattered(in_size: int, size: int) -> Tensor:
    """Groups of columns as a checkpoint has them that was made in another order."""
    order = torch.randperm(in_size, generator=torch.Generator().manual_seed(in_size))
    return (torch.arange(in_size) // size)[order.argsort()].int()


def awq(size: int | None) -> Form:
    def write(weight: Tensor) -> Written:
        grids = grids_of(weight, 4, size, torch.float16, symmetric=False)
        return Written(
            {
                "qweight": pack_words(grids.codes.T, 4, 1, AWQ_ORDER),
                "qzeros": pack_words(grids.zeros.T, 4, 1, AWQ_ORDER),
                "scales": grids.scales.T.contiguous(),
            },
            grids.truth,
        )

    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": size or -1,
        "version": "gemm",
        "zero_point": True,
    }
    return Form(config, write, "int4", has_packed=True)


def gptq(
    bits: int, size: int | None, *, symmetric: bool = True, version: int = 1, desc_act: bool = False
) -> Form:
    def write(weight: Tensor) -> Written:
        index = scattered(weight.shape[1], size) if desc_act and size else None
        grids = grids_of(weight, bits, size, torch.float16, symmetric=symmetric, group_of=index)
        # the first version kept one less of each zero point, taken from whole words
        zeros = pack_words(grids.zeros.T, bits, 1)
        less = sum(1 << place for place in range(0, 32, bits)) if version == 1 else 0
        in_order = torch.arange(weight.shape[1]) // (size or weight.shape[1])
        return Written(
            {
                "qweight": pack_words(grids.codes.T, bits, 0),
                "qzeros": zeros - less,
                "scales": grids.scales.T.contiguous(),
                "g_idx": in_order.int() if index is None else index,
            },
            grids.truth,
        )

    config: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": size or -1,
        "desc_act": desc_act,
        "sym": symmetric,
        "lm_head": False,
    }
    if version == 2:
        config["checkpoint_format"] = "gptq_v2"
    native = "int4" if bits == 4 else "int8" if size is None and symmetric else None
    return Form(config, write, None if desc_act else native, has_packed=native is not None)


def compressed(form: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    """A config of compressed-tensors with one group of modules."""
    group = {"targets": ["Linear"], "weights": dict(weights), "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def packed_ints(
    bits: int,
    size: int | None,
    dtype: torch.dtype,
    *,
    symmetric: bool = True,
    actorder: bool = False,
) -> Form:
    def write(weight: Tensor) -> Written:
        index = scattered(weight.shape[1], size) if actorder and size else None
        grids = grids_of(weight, bits, size, dtype, symmetric=symmetric, group_of=index)
        tensors = {
            "weight_packed": pack_words(grids.codes, bits, 1),
            "weight_scale": grids.scales,
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            tensors["weight_zero_point"] = pack_words(grids.zeros, bits, 0)
        if index is not None:
            tensors["weight_g_idx"] = index
        return Written(tensors, grids.truth)

    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group" if size else "channel",
        "group_size": size,
        "actorder": "group" if actorder else None,
    }
    native = "int4" if bits == 4 else "int8" if size is None and symmetric else None
    return Form(
        compressed("pack-quantized", weights),
        write,
        None if actorder else native,
        has_packed=native is not None,
    )


def plain_int8(*, symmetric: bool = True) -> Form:
    def write(weight: Tensor) -> Written:
        grids = grids_of(weight, 8, None, torch.bfloat16, symmetric=symmetric)
        tensors = {"weight": (grids.codes - 128).to(torch.int8), "weight_scale": grids.scales}
        if not symmetric:
            tensors["weight_zero_point"] = (grids.zeros - 128).to(torch.int8)
        return Written(tensors, grids.truth)

    weights = {"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": "channel"}
    return Form(
        compressed("int-quantized", weights), write, "int8" if symmetric else None, has_packed=symmetric
    )


def exact_int8() -> Form:
    """Scales are a power of two and each row has a code of 127: quantizing what it stands for finds the same codes."""

    def write(weight: Tensor) -> Written:
        codes = (weight / weight.abs().amax(1, keepdim=True) * 127).round()
        tensors = {"weight": codes.to(torch.int8), "weight_scale": torch.full((len(codes), 1), 1 / 512)}
        return Written(tensors, codes.double() / 512)

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    return Form(compressed("int-quantized", weights), write, "int8", has_packed=True)


def _floats(weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of e4m3, and what they stand for; ``scales`` are as large as the matrix."""
    codes = (weight.double() / scales.double()).to(FP8)
    return codes, codes.double() * scales.double()


def blocks(weight: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A scale for each block, and these as large as the matrix."""
    out_size, in_size = weight.shape
    scales = torch.empty(-(-out_size // rows), -(-in_size // columns))
    for i in range(len(scales)):
        for j in range(scales.shape[1]):
            block = weight[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            scales[i, j] = block.abs().max() / 448
    spread = scales.repeat_interleave(rows, 0)[:out_size].repeat_interleave(columns, 1)[:, :in_size]
    return scales, spread


def float8(strategy: str) -> Form:
    """Of compressed-tensors."""

    def write(weight: Tensor) -> Written:
        if strategy == "block":
            scales, spread = blocks(weight, 32, 32)
        else:
            most = weight.abs().amax(1, keepdim=True) if strategy == "channel" else weight.abs().max()[None]
            scales = (most / 448).bfloat16()
            spread = scales.expand(weight.shape)
        codes, truth = _floats(weight, spread)
        return Written({"weight": codes, "weight_scale": scales}, truth)

    weights: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy}
    if strategy == "block":
        weights["block_structure"] = [32, 32]
    return Form(compressed("float-quantized", weights), write, None, has_packed=strategy != "block")


def fp8(size: list[int] | None, scale_name: str) -> Form:
    def write(weight: Tensor) -> Written:
        rows, columns = size or weight.shape
        scales, spread = blocks(weight, rows, columns)
        codes, truth = _floats(weight, spread)
        scales = scales if size else scales.reshape(())
        return Written({"weight": codes, scale_name: scales, "input_scale": torch.ones(())}, truth)

    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": size}
    return Form(config, write, None, has_packed=size is None)


FORMS: Final[dict[str, Form]] = {
    "awq": awq(32),
    "awq-rows": awq(None),
    "gptq": gptq(4, 32),
    "gptq-desc-act": gptq(4, 32, desc_act=True),
    "gptq-asymmetric": gptq(4, 32, symmetric=False),
    "gptq-v2": gptq(4, 32, symmetric=False, version=2),
    "gptq-8": gptq(8, 32, symmetric=False),
    "gptq-8-rows": gptq(8, None),
    "packed-int4": packed_ints(4, 32, torch.bfloat16),
    "packed-int4-asymmetric": packed_ints(4, 32, torch.float16, symmetric=False),
    "packed-int4-rows": packed_ints(4, None, torch.bfloat16, symmetric=False),
    "packed-int4-actorder": packed_ints(4, 32, torch.bfloat16, actorder=True),
    "packed-int8": packed_ints(8, None, torch.bfloat16),
    "packed-int8-groups": packed_ints(8, 32, torch.bfloat16, symmetric=False),
    "int8": plain_int8(),
    "int8-asymmetric": plain_int8(symmetric=False),
    "float8-rows": float8("channel"),
    "float8-tensor": float8("tensor"),
    "float8-blocks": float8("block"),
    "fp8": fp8(None, "weight_scale"),
    "fp8-inverse": fp8(None, "weight_scale_inv"),
    "fp8-blocks": fp8([32, 32], "weight_scale_inv"),
}


# ---- folders ---------------------------------------------------------------------------------------------------------


def is_matrix(name: str) -> bool:
    """Whether a tensor is what such checkpoints quantize."""
    return name.endswith("_proj.weight")


def is_matrix_or_head(name: str) -> bool:
    """The same, and the head."""
    return is_matrix(name) or name == "lm_head.weight"


def write_twin(source: Path, folder: Path, truth: Mapping[str, Tensor]) -> Path:
    """Write what ``quantize_folder`` returned as a checkpoint that is not quantized."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file({name: tensor.float() for name, tensor in truth.items()}, folder / "model.safetensors")
    return folder


def quantize_folder(
    source: Path, folder: Path, form: Form, *, which: Callable[[str], bool] = is_matrix
) -> dict[str, Tensor]:
    """Write the checkpoint ``source`` into ``folder`` in another form; what it stands for, by names, float64."""
    folder.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = form.config
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors: dict[str, Tensor] = {}
    truth: dict[str, Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if which(name):
            written = form.write(tensor.float())
            module = name.removesuffix("weight")
            tensors |= {module + kind: each.contiguous() for kind, each in written.tensors.items()}
            truth[name] = written.truth
        else:
            tensors[name], truth[name] = tensor, tensor.double()
    save_file(tensors, folder / "model.safetensors")
    return truth
