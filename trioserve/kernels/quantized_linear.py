"""Products of few tokens with weights of 8 or 4 bits on a GPU, and how such weights are laid out for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from torch import Tensor

from trioserve.kernels.gpu import Gpu, element_of
from trioserve.kernels.shapes import ShapeError, Shapes
from trioserve.kernels.source import Kernel

FP8: Final = torch.float8_e4m3fn
WARPS: Final = 8
"""Of a block, which share the depth of a tile."""
_TILE: Final = 16
"""Rows of the matrix that a block has."""
_TILE_TOKENS: Final = 8
_BLOCKS_OF_MULTIPROCESSOR: Final = 2
"""That the depth is split for."""
_SLABS_OF_WARP: Final = 4
"""That a warp has at least where the depth is split."""
_TOKENS_AT_ONCE: Final = 512
"""Of a launch, which bounds what the sums of the parts take."""
_MERGE_THREADS: Final = 256
_BYTES_ORDER: Final = (0, 2, 1, 3)
"""Which of four neighbours each byte of a word holds."""
_ELEMENTS: Final = ("bf16", "fp16")


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A matrix [out_size, in_size] as ``quantized_linear.cu`` reads it."""

    weight: Tensor
    """[tiles, num_slabs, 32, 16] uint8 or float8_e4m3fn"""
    scales: Tensor
    """[out_size] float32; of nibbles [tiles, num_groups, 16, 2], scale and offset, of the activations' type"""
    out_size: int
    in_size: int
    group_size: int = 0
    """Of nibbles; 0: codes of 8 bits, which have a scale for each row."""
    has_zero_points: bool = False
    """Of nibbles: weight = scale * (code - offset), not scale * code + offset."""

    @property
    def num_bytes(self) -> int:
        """Memory, which is what a product of one token takes its time for."""
        return self.weight.nbytes + self.scales.nbytes


def pack_codes(codes: Tensor, scales: Tensor) -> PackedWeight:
    """Lay out codes of 8 bits.

    Shapes:
        codes: [out_size, in_size], int8 from -127 to 127 or float8_e4m3fn; in_size a multiple of 32
        scales: [out_size] float32, weight = scale * code
    Raises:
        ShapeError: They do not fit, or there is -128 among the codes.
    """
    shapes = Shapes(codes=(codes, "out_size in_size"), scales=(scales, "out_size"))
    out_size, in_size = shapes["out_size"], shapes["in_size"]
    if codes.dtype != FP8 and bool((codes == -128).any()):
        raise ShapeError("codes of int8 are -127 to 127, and there is a -128")
    values = codes if codes.dtype == FP8 else torch.where(codes < 0, 128, 0) + codes.int().abs()
    tiles = _tiles_of(values.view(torch.uint8) if codes.dtype == FP8 else values.to(torch.uint8), 32)
    # [tile, row of two, g, slab, t, j, byte] -> [tile, slab, g, t, j, row of two, byte]
    words = tiles.view(len(tiles), 2, 8, in_size // 32, 4, 2, 4).permute(0, 3, 2, 4, 5, 1, 6)
    packed = words[..., list(_BYTES_ORDER)].reshape(len(tiles), in_size // 32, 32, 16).contiguous()
    weight = packed.view(FP8) if codes.dtype == FP8 else packed
    return PackedWeight(weight, scales.float().contiguous(), out_size, in_size)


def pack_nibbles(
    codes: Tensor, scales: Tensor, offsets: Tensor, *, has_zero_points: bool, dtype: torch.dtype
) -> PackedWeight:
    """Lay out codes of 4 bits.

    Shapes:
        codes: [out_size, in_size], 0 to 15
        scales, offsets: [out_size, in_size / group_size]; a group of 32 or a multiple of 64
    Args:
        has_zero_points: Whether weight = scale * (code - offset); otherwise scale * code + offset.
        dtype: Of activations; scales and offsets are rounded to it.
    Raises:
        ShapeError: They do not fit.
    """
    shapes = Shapes(
        codes=(codes, "out_size in_size"),
        scales=(scales, "out_size num_groups"),
        offsets=(offsets, "out_size num_groups"),
    )
    out_size, in_size = shapes["out_size"], shapes["in_size"]
    group_size = in_size // max(shapes["num_groups"], 1)
    shapes.expect("in_size", group_size * shapes["num_groups"])
    if group_size != 32 and (group_size % 64 or not group_size):
        raise ShapeError(f"a group of {group_size} is neither 32 nor a multiple of 64")
    tiles = _tiles_of(codes.to(torch.uint8), 64)
    # [tile, row of two, g, slab, half, t, pair, of pair] -> [tile, slab, g, t, half, row of two, of pair, pair]
    nibbles = tiles.view(len(tiles), 2, 8, in_size // 64, 2, 4, 4, 2).permute(0, 3, 2, 5, 4, 1, 7, 6)
    packed = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
    both = torch.stack([_tiles_of(scales, 1), _tiles_of(offsets, 1)], dim=-1).to(dtype)
    return PackedWeight(
        packed.reshape(len(tiles), in_size // 64, 32, 16).contiguous(),
        both.transpose(1, 2).contiguous(),
        out_size,
        in_size,
        group_size,
        has_zero_points,
    )


def unpack(packed: PackedWeight) -> Tensor:
    """The matrix [out_size, in_size] that the codes stand for, float64."""
    codes, tiles = _codes_of(packed), len(packed.weight)
    if not packed.group_size:
        return codes * packed.scales.double()[:, None]
    both = packed.scales.double().transpose(1, 2).reshape(tiles * _TILE, -1, 2)[: packed.out_size]
    scale, offset = both.repeat_interleave(packed.group_size, dim=1).unbind(-1)
    return scale * (codes - offset) if packed.has_zero_points else scale * codes + offset


def _codes_of(packed: PackedWeight) -> Tensor:
    tiles, num_slabs = packed.weight.shape[:2]
    if packed.group_size:
        pairs = packed.weight.view(tiles, num_slabs, 8, 4, 2, 2, 2, 2)
        nibbles = torch.stack([pairs & 15, pairs >> 4], dim=-1)  # [.., of pair, pair / 2, pair % 2]
        codes = nibbles.flatten(-2).permute(0, 5, 2, 1, 4, 3, 7, 6)
    else:
        words = packed.weight.view(torch.uint8).view(tiles, num_slabs, 8, 4, 2, 2, 4)[..., list(_BYTES_ORDER)]
        codes = words.permute(0, 5, 2, 1, 3, 4, 6)
    flat = codes.reshape(tiles * _TILE, packed.in_size)[: packed.out_size]
    if packed.weight.dtype == FP8:
        return flat.contiguous().view(FP8).double()
    return flat.double() if packed.group_size else torch.where(flat < 128, flat.double(), 128 - flat.double())


def _tiles_of(matrix: Tensor, slab: int) -> Tensor:
    """[tiles, 16, columns], rows of zeros added."""
    out_size, columns = matrix.shape
    if columns % slab:
        raise ShapeError(f"in_size is {columns}, no multiple of {slab}")
    tiles = matrix.new_zeros(-(-out_size // _TILE) * _TILE, columns)
    tiles[:out_size] = matrix
    return tiles.view(-1, _TILE, columns)


# ---- from weights to codes, as the CPU's quantize.h makes them -------------------------------------------------------


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of int8 and a scale for each row, which makes its largest weight 127.

    Shapes:
        weight: [out_size, in_size]
        result: [out_size, in_size] int8, [out_size] float32
    """
    wide = weight.float()
    scales = wide.abs().amax(dim=1) / torch.tensor(127.0)
    return (wide * _steps_of(scales)[:, None]).round().to(torch.int8), scales


def quantize_e4m3(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of e4m3 and a scale for each row, which makes its largest weight 448."""
    wide = weight.float()
    scales = wide.abs().amax(dim=1) / torch.tensor(448.0)
    return (wide * _steps_of(scales)[:, None]).to(FP8), scales


def quantize_int4(weight: Tensor, *, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of 4 bits, scales and least numbers: weight = scale * code + least.

    Of several ranges, each fitted to the codes that it gives, the one with the least squared error counts.

    Shapes:
        weight: [out_size, in_size]
        result: [out_size, in_size] uint8, and twice [out_size, in_size / group_size] bfloat16
    """
    groups = weight.float().view(len(weight), -1, group_size)
    low, whole = groups.amin(-1), groups.amax(-1) - groups.amin(-1)
    best = low, low.new_zeros(low.shape)
    error = low.new_full(low.shape, torch.inf)
    for share in (1.0, 0.92, 0.84, 0.75):
        scale, least = whole * share / 15, low + whole * (1 - torch.tensor(share)) / 2
        for turn in range(3):
            if turn > 0:
                scale, least = _fitted(groups, _grid(groups, scale, least)[0], scale, least)
            scale, least = scale.bfloat16().float(), least.bfloat16().float()
            found = _grid(groups, scale, least)[1]
            better = found < error
            best = torch.where(better, scale, best[0]), torch.where(better, least, best[1])
            error = torch.where(better, found, error)
    codes = _grid(groups, *best)[0].to(torch.uint8).view(weight.shape)
    return codes, best[0].bfloat16(), best[1].bfloat16()


def _grid(groups: Tensor, scale: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest codes, and the squared error."""
    codes = ((groups - least[..., None]) * _steps_of(scale)[..., None]).clamp(0, 15).round()
    return codes, (codes * scale[..., None] + least[..., None] - groups).square().sum(-1)


def _fitted(groups: Tensor, codes: Tensor, scale: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """The line through the weights over their codes; where these are all the same, what there was."""
    size, xs, ys = codes.shape[-1], codes.sum(-1), groups.sum(-1)
    spread = size * codes.square().sum(-1) - xs.square()
    slope = (size * (codes * groups).sum(-1) - xs * ys) / spread
    is_line = spread > 0
    return torch.where(is_line, slope, scale), torch.where(is_line, (ys - slope * xs) / size, least)


def _steps_of(scales: Tensor) -> Tensor:
    return torch.where(scales.abs() > 1e-30, 1 / scales, 0.0)


# ---- products --------------------------------------------------------------------------------------------------------


def quantized_linear_gpu(
    gpu: Gpu, x: Tensor, packed: PackedWeight, bias: Tensor | None = None, *, batch_invariant: bool = False
) -> Tensor:
    """``x`` times the transposed weight, and ``bias`` added, by ``quantized_linear.cu``.

    How the sums of a row are made depends on the sizes of the weight and on the GPU, not on its neighbours, but a row
    alone has an order of its own unless ``batch_invariant``. The weight is read once for each 16 rows.

    Shapes:
        x: [num_tokens, in_size] bfloat16 or float16
        bias: [out_size], of the type of ``x``
        result: [num_tokens, out_size]
    Raises:
        ShapeError: ``x`` or ``bias`` do not fit the weight.
    """
    shapes = Shapes(x=(x, "num_tokens in_size"))
    shapes.expect("in_size", packed.in_size)
    num_tokens, element = shapes["num_tokens"], element_of(x.dtype, *_ELEMENTS)
    if packed.group_size and packed.scales.dtype != x.dtype:
        raise ShapeError(f"x is {x.dtype}, the weight was packed for {packed.scales.dtype}")
    if bias is not None:
        Shapes(bias=(bias, "out_size")).expect("out_size", packed.out_size)
    assert x.stride(1) == 1 and x.stride(0) % 8 == 0, "the rows of x are not vectors of 16 bytes"
    assert bias is None or bias.is_contiguous(), "bias is not contiguous"
    out = torch.empty(num_tokens, packed.out_size, dtype=x.dtype, device=x.device)
    if not num_tokens:
        return out
    is_single = num_tokens == 1 and not batch_invariant
    parts = [(out, x)]
    if num_tokens > _TOKENS_AT_ONCE:
        starts = range(0, num_tokens, _TOKENS_AT_ONCE)
        parts = [(out[at : at + _TOKENS_AT_ONCE], x[at : at + _TOKENS_AT_ONCE]) for at in starts]
    for out_part, x_part in parts:
        _multiply(gpu, out_part, x_part, packed, bias, element, is_single=is_single)
    return out


def _multiply(
    gpu: Gpu,
    out: Tensor,
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None,
    element: str,
    *,
    is_single: bool,
) -> None:
    """Write ``out``, by way of the parts' sums where the depth is split."""
    num_tokens, (num_tiles, num_slabs) = len(x), packed.weight.shape[:2]
    num_splits = splits_of(num_tiles, num_slabs, gpu.num_multiprocessors)
    none, sums = _none(x.dtype, x.device), _none(torch.float32, x.device)
    bias = none if bias is None else bias
    if num_splits > 1:
        sums = torch.empty(num_splits, num_tokens, packed.out_size, dtype=torch.float32, device=x.device)
    groups = (packed.group_size, int(packed.has_zero_points)) if packed.group_size else ()
    tiles_of_tokens = 0 if is_single else min(-(-num_tokens // _TILE_TOKENS), 2)
    gpu.launch(
        _kernel_for(element, packed, tiles_of_tokens),
        *(out, sums, x, packed.weight, packed.scales, none if num_splits > 1 else bias),
        *(() if is_single else (num_tokens,)),
        *(packed.in_size, packed.out_size, *groups),
        *(() if is_single else (x.stride(0),)),
        grid=(num_tiles, num_splits, 1 if is_single else -(-num_tokens // (tiles_of_tokens * _TILE_TOKENS))),
        block=(WARPS * 32,),
    )
    if num_splits > 1:
        gpu.launch(
            merge_products_kernel(element),
            *(out, sums, bias, num_splits, num_tokens, packed.out_size),
            grid=(-(-packed.out_size // _MERGE_THREADS), num_tokens),
            block=(_MERGE_THREADS,),
        )


@cache
def splits_of(num_tiles: int, num_slabs: int, num_multiprocessors: int) -> int:
    """Into how many parts the depth is cut: so that blocks fill the multiprocessors, and warps still have work.

    None of the parts is empty.
    """
    wanted = _BLOCKS_OF_MULTIPROCESSOR * num_multiprocessors // max(num_tiles, 1)
    splits = max(1, min(wanted, num_slabs // (WARPS * _SLABS_OF_WARP)))
    return -(-num_slabs // -(-num_slabs // splits))


@cache
def _none(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(0, dtype=dtype, device=device)


def quantized_linear_ref(x: Tensor, packed: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """The truth for ``quantized_linear_gpu``: float64, rounded once."""
    exact = x.double() @ unpack(packed).T
    return (exact if bias is None else exact + bias.double()).to(x.dtype)


def _kernel_for(element: str, packed: PackedWeight, num_tiles: int) -> Kernel:
    if packed.group_size:
        return group_kernel(element, packed.group_size == 32, num_tiles)
    return channel_kernel(element, "e4m3" if packed.weight.dtype == FP8 else "u8", num_tiles)


@cache
def channel_kernel(element: str, code: str, num_tiles: int) -> Kernel:
    """``channel_linear`` for tiles of 8 tokens; ``channel_linear_single`` for none, one token."""
    return _kernel(f"channel_linear{{}}<{element}, {code}{{}}, {WARPS}>", num_tiles)


@cache
def group_kernel(element: str, is_fine: bool, num_tiles: int) -> Kernel:
    """``group_linear`` and ``group_linear_single``, likewise."""
    return _kernel(f"group_linear{{}}<{element}, {str(is_fine).lower()}{{}}, {WARPS}>", num_tiles)


@cache
def merge_products_kernel(element: str) -> Kernel:
    """``merge_products``."""
    return Kernel("quantized_linear.cu", f"merge_products<{element}, {_MERGE_THREADS}>")


def _kernel(name: str, num_tiles: int) -> Kernel:
    return Kernel(
        "quantized_linear.cu", name.format("", f", {num_tiles}") if num_tiles else name.format("_single", "")
    )


def instances() -> Iterator[Kernel]:
    """Every kernel there is."""
    for element in _ELEMENTS:
        yield merge_products_kernel(element)
        for num_tiles in range(3):
            yield from (channel_kernel(element, code, num_tiles) for code in ("u8", "e4m3"))
            yield from (group_kernel(element, is_fine, num_tiles) for is_fine in (True, False))
