"""All kernels but attention, at the shapes of a Llama-3-8B's layer: how near the memory's rate they come, and torch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Final, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from benchmarks.gpu.ceilings import copy_rate
from benchmarks.gpu.report import Report, Row
from benchmarks.gpu.timing import Call, medians, num_sets, rotated
from tests.emu.sampled import Wish, tables
from trioserve.kernels.activation import activation_mul_gpu
from trioserve.kernels.copy_blocks import copy_blocks_gpu
from trioserve.kernels.driver import gpu_of
from trioserve.kernels.gpu import Gpu
from trioserve.kernels.invariant_linear import invariant_linear_gpu
from trioserve.kernels.quantized_linear import (
    PackedWeight,
    pack_codes,
    pack_nibbles,
    quantize_e4m3,
    quantize_int4,
    quantize_int8,
    quantized_linear_gpu,
)
from trioserve.kernels.rms_norm import add_rms_norm_gpu
from trioserve.kernels.rope_store_kv import rope_store_kv_gpu
from trioserve.kernels.sampling_gpu import RowTables, SlotTables, choose_tokens_gpu, edit_logits_gpu

Tables = TypeVar("Tables", RowTables, SlotTables)
BF16: Final = torch.bfloat16
DEVICE: Final = torch.device("cuda", 0)
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 4096, 14336, 32, 8, 128
BLOCK_SIZE, NUM_BLOCKS = 16, 4096
VOCAB_SIZE: Final = 128256
LAYER: Final = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
"""The four products of a layer, [out_size, in_size]."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one size."""

    name: str
    bytes_moved: int
    """That cannot be avoided."""
    ours: Callable[[int], Call]
    """Of one set of buffers, by its number."""
    peer_name: str = ""
    peer: Callable[[int], Call] | None = None
    target: float | None = None


def measure(report: Report) -> None:
    """Add a row for each case; the share is that of the bytes at the rate of the copy."""
    for case in cases(gpu_of(DEVICE)):
        contenders = {"ours": rotated(case.ours, case.bytes_moved)}
        if case.peer is not None:
            contenders["peer"] = rotated(case.peer, case.bytes_moved)
        found = medians(contenders)
        share = case.bytes_moved / (found["ours"] * 1e-6) / copy_rate(report)
        row = Row(
            "kernels", case.name, found["ours"], "us", share, case.peer_name, found.get("peer"), case.target
        )
        report.add(row)


def cases(gpu: Gpu) -> Iterator[Case]:
    """All of them."""
    for num_tokens in (1, 64):
        yield _norm(gpu, num_tokens)
        yield _gate(gpu, num_tokens)
        yield _rope(gpu, num_tokens)
    yield _copy(gpu)
    for num_rows in (1, 64):
        yield _sampling(gpu, num_rows)
    yield from _products(gpu)
    for num_tokens in (1, 64, 2048):
        yield _invariant(gpu, num_tokens)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=BF16, device=DEVICE)


def _norm(gpu: Gpu, num_tokens: int) -> Case:
    num_bytes = 4 * num_tokens * HIDDEN * 2
    sets = [(_random(num_tokens, HIDDEN), _random(num_tokens, HIDDEN)) for _ in range(num_sets(num_bytes))]
    weight = _random(HIDDEN)

    def theirs(x: Tensor, residual: Tensor) -> Tensor:
        return rms_norm(residual.add_(x), (HIDDEN,), weight, 1e-5)

    return Case(
        f"residual + norm, {num_tokens} tokens",
        num_bytes,
        lambda number: partial(add_rms_norm_gpu, gpu, *sets[number], weight, eps=1e-5),
        "torch",
        lambda number: partial(theirs, *sets[number]),
        2.5,
    )


def _gate(gpu: Gpu, num_tokens: int) -> Case:
    num_bytes = 3 * num_tokens * INTERMEDIATE * 2
    sets = [_random(num_tokens, 2 * INTERMEDIATE) for _ in range(num_sets(num_bytes))]

    def theirs(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=1)
        return silu(gate) * up

    return Case(
        f"SiLU-mul, {num_tokens} tokens",
        num_bytes,
        lambda number: partial(activation_mul_gpu, gpu, sets[number], "silu"),
        "torch",
        lambda number: partial(theirs, sets[number]),
        2.5,
    )


def _rope(gpu: Gpu, num_tokens: int) -> Case:
    num_bytes = 2 * num_tokens * (HEADS + 2 * KV_HEADS) * HEAD_DIM * 2
    sets = [_random(num_tokens, HEADS + 2 * KV_HEADS, HEAD_DIM) for _ in range(num_sets(num_bytes))]
    k_cache, v_cache = (_random(NUM_BLOCKS, KV_HEADS, BLOCK_SIZE, HEAD_DIM) for _ in range(2))
    table = torch.randn(8192, 2, HEAD_DIM // 2, device=DEVICE)
    positions = torch.randint(0, 8192, (num_tokens,), device=DEVICE)
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, device=DEVICE)[:num_tokens]

    def ours(number: int) -> Call:
        q, k, v = torch.split(sets[number], [HEADS, KV_HEADS, KV_HEADS], dim=1)
        heads = partial(rope_store_kv_gpu, gpu, q, k, v, positions, table)
        return partial(heads, k_cache, v_cache, slots, interleaved=False)

    return Case(f"RoPE + cache, {num_tokens} tokens", num_bytes, ours, target=2.5)


def _copy(gpu: Gpu) -> Case:
    block = KV_HEADS * BLOCK_SIZE * HEAD_DIM * 2
    count = NUM_BLOCKS // 4
    source, to = (_random(NUM_BLOCKS, KV_HEADS, BLOCK_SIZE, HEAD_DIM) for _ in range(2))
    ids = [torch.randperm(NUM_BLOCKS, device=DEVICE)[: 2 * count].view(count, 2) for _ in range(8)]

    def theirs(pairs: Tensor) -> None:
        to.index_copy_(0, pairs[:, 1], source.index_select(0, pairs[:, 0]))

    return Case(
        f"copy of {count} blocks",
        2 * count * block,
        lambda number: partial(copy_blocks_gpu, gpu, to, source, ids[number % len(ids)]),
        "torch",
        lambda number: partial(theirs, ids[number % len(ids)]),
    )


def _sampling(gpu: Gpu, num_rows: int) -> Case:
    """Top-k and top-p, a bitmask and penalties in every row; torch sorts, and edits nothing."""
    wish = Wish(
        temperature=0.8,
        top_k=50,
        top_p=0.9,
        mask=tuple(range(0, VOCAB_SIZE, 2)),
        penalties=(1.1, 0.1, 0.1),
        prompt=tuple(range(100)),
        output=tuple(range(50)),
    )
    rows, slots = tables([wish] * num_rows, VOCAB_SIZE)
    rows, slots = _there(rows), _there(slots)
    num_bytes = num_rows * VOCAB_SIZE * 2
    sets = [_random(num_rows, VOCAB_SIZE) * 3 for _ in range(num_sets(num_bytes))]

    def ours(logits: Tensor) -> Tensor:
        return choose_tokens_gpu(gpu, edit_logits_gpu(gpu, logits, rows, slots), rows, slots)

    def theirs(logits: Tensor) -> Tensor:
        chances, ids = (logits.float() / 0.8).softmax(-1).sort(-1, descending=True)
        chances[:, 50:] = 0
        chances.masked_fill_(chances.cumsum(-1) - chances > 0.9, 0)
        return ids.gather(1, torch.multinomial(chances, 1))

    return Case(
        f"edits, top-k and top-p, {num_rows} rows of {VOCAB_SIZE:,}",
        num_bytes,
        lambda number: partial(ours, sets[number]),
        "torch",
        lambda number: partial(theirs, sets[number]),
        80 if num_rows == 64 else None,
    )


def _there(of: Tables) -> Tables:
    """The same tables on the device."""
    return type(of)(**{field.name: getattr(of, field.name).to(DEVICE) for field in fields(of)})


def _products(gpu: Gpu) -> Iterator[Case]:
    """All four products of a layer, one after the other, beside dense ones in bf16."""
    weights = [_random(*shape) * 0.02 for shape in LAYER]
    formats: Mapping[str, list[PackedWeight]] = {
        "int8": [_on_device(pack_codes(*quantize_int8(weight.cpu().float()))) for weight in weights],
        "e4m3": [_on_device(pack_codes(*quantize_e4m3(weight.cpu().float()))) for weight in weights],
        "int4": [_on_device(_nibbles(weight)) for weight in weights],
    }
    targets = {"int8": 51.0, "int4": 27.0}
    for num_tokens in (1, 8, 16):
        inputs = [_random(num_tokens, in_size) for _, in_size in LAYER]
        dense = partial(_all, lambda x, weight: linear(x, weight), inputs, weights)
        for name, packed in formats.items():
            ours = partial(_all, partial(quantized_linear_gpu, gpu), inputs, packed)
            yield Case(
                f"a layer's products, {name}, {num_tokens} tokens",
                sum(of.num_bytes for of in packed),
                _always(ours),
                "torch, bf16",
                _always(dense),
                targets.get(name) if num_tokens <= 8 else None,
            )


def _invariant(gpu: Gpu, num_tokens: int) -> Case:
    """All four products of a layer whose bits do not depend on the batch, beside cuBLAS, whose do."""
    weights = [_random(*shape) * 0.02 for shape in LAYER]
    inputs = [_random(num_tokens, in_size) for _, in_size in LAYER]
    return Case(
        f"a layer's products, batch-invariant, {num_tokens} tokens",
        sum(weight.nbytes for weight in weights),
        _always(partial(_all, partial(invariant_linear_gpu, gpu), inputs, weights)),
        "torch",
        _always(partial(_all, lambda x, weight: linear(x, weight), inputs, weights)),
    )


def _always(call: Call) -> Callable[[int], Call]:
    """Of a case whose one set is larger than the cache."""
    return lambda number: call


def _all(
    product: Callable[[Tensor, Tensor], Tensor] | Callable[[Tensor, PackedWeight], Tensor],
    inputs: list[Tensor],
    weights: list[Tensor] | list[PackedWeight],
) -> None:
    for x, weight in zip(inputs, weights, strict=True):
        product(x, weight)  # type: ignore[arg-type] # of the kind that the product takes


def _nibbles(weight: Tensor) -> PackedWeight:
    codes, scales, offsets = quantize_int4(weight.cpu().float(), group_size=64)
    return pack_nibbles(codes, scales, offsets, has_zero_points=False, dtype=BF16)


def _on_device(packed: PackedWeight) -> PackedWeight:
    return PackedWeight(
        packed.weight.to(DEVICE),
        packed.scales.to(DEVICE),
        packed.out_size,
        packed.in_size,
        packed.group_size,
        packed.has_zero_points,
    )
