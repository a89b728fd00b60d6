"""The emulator's barriers in shared memory and matrix instructions of four warps, and each planted fault."""

from collections.abc import Callable
from typing import Final

import pytest
import torch
from torch import Tensor

from tests.emu.build import HERE, ORDERS, EmulatorError, Library
from tests.emu.conftest import Emulate
from tests.emu.tensors import TYPES, random

SWIZZLES: Final = {1: 0, 2: 3, 4: 2, 8: 1}
"""Chunks of 16 bytes that are permuted -> what a matrix is told."""
RIGHT: Final = [
    (kind, tiles, by_rows) for kind in ("bf16", "fp16") for tiles in (8, 16) for by_rows in (False, True)
]
PRODUCT_FAULTS: Final = {
    1: "is multiplied, thread \\d+ wrote it and did not publish it",
    2: "race: byte \\d+ of shared memory is multiplied|nobody wrote it|on its way",
    3: "threads 0 and 77 of a warpgroup multiply by different matrices",
    4: "multiplies registers that no begin_products speaks of",
    5: "products are waited for that were not committed",
    6: "race: byte 0 of shared memory is written, a product of warp \\d may still read it",
    8: "a warpgroup multiplies, its thread 127 has left",
    9: "multiplies registers that no begin_products speaks of",
}
PHASE_FAULTS: Final = {
    1: "a barrier is used that nobody began|nobody wrote it",
    2: "deadlock: 0 threads wait at a barrier, 64 for a phase of one",
    3: "a barrier is begun twice",
    4: "a barrier is used that nobody began|race|nobody wrote it",
    5: "race",
    6: "race|nobody wrote it",
    7: "race|nobody wrote it",
    8: "race",
}


def product(kind: str, tiles: int, by_rows: bool, fault: int = 0) -> str:
    return f"multiply_warpgroup<{kind}, {tiles}, {str(by_rows).lower()}, {fault}>"


@pytest.fixture(scope="module")
def library(emulate: Emulate) -> Library:
    kernels = [*(product(*case) for case in RIGHT), "tell_in_turn", "hand_over<0>"]
    kernels += [product("bf16", 8, False, fault) for fault in (*PRODUCT_FAULTS, 7)]
    return emulate(
        HERE / "warpgroup_probes.cu", [*kernels, *(f"hand_over<{fault}>" for fault in PHASE_FAULTS)]
    )


def place_of_column_major(chunks: int, leading: int, stride: int) -> Callable[[int, int], int]:
    """Where row k and column n of b are, in bytes: ((8, m), (8, 2)) columns and rows of canonical layouts."""
    if chunks == 1:
        return lambda k, n: n // 8 * stride + n % 8 * 16 + k // 8 * leading + k % 8 * 2
    return lambda k, n: n // 8 * stride + n % 8 * 16 * chunks + k * 2


def place_of_row_major(chunks: int, leading: int, stride: int) -> Callable[[int, int], int]:
    """The same where neighbours are of one row."""
    width = 8 * chunks
    if chunks == 1:
        return lambda k, n: n // 8 * stride + n % 8 * 2 + k % 8 * 16 + k // 8 * leading
    return lambda k, n: n // width * leading + n % width * 2 + k % 8 * 16 * chunks + k // 8 * stride


def laid_out(matrices: list[Tensor], places: list[Callable[[int, int], int]], chunks: int) -> Tensor:
    """The bytes of some matrices [16, columns] in one memory, chunks permuted by bits 7 to 9 of their address."""
    elements = torch.zeros(1 << 15, dtype=matrices[0].dtype)
    for matrix, place in zip(matrices, places, strict=True):
        for k in range(16):
            for n in range(matrix.shape[1]):
                at = place(k, n)
                elements[(at ^ (at // 128 % chunks) * 16) // 2] = matrix[k, n]
    return elements.view(torch.uint8)


def launch(
    library: Library, kernel: str, c: Tensor, a: Tensor, b: Tensor, matrix: int, step: int, order: int = 0
) -> None:
    library.launch(
        kernel,
        *(c, a, b, matrix - (matrix >> 63 << 64), len(b), step),
        grid=(1,),
        block=(128,),
        shared_bytes=len(b),
        order=order,
    )


def described(start: int, leading: int, stride: int, chunks: int) -> int:
    return start // 16 | leading // 16 << 16 | stride // 16 << 32 | SWIZZLES[chunks] << 62


@pytest.mark.parametrize("chunks", SWIZZLES)
@pytest.mark.parametrize(("kind", "tiles", "by_rows"), RIGHT)
def test_a_warpgroup_multiplies_matrices_in_every_layout(
    library: Library, kind: str, tiles: int, by_rows: bool, chunks: int
) -> None:
    """Against what is laid out here by the canonical layouts; the second matrix begins where a kernel would go on."""
    columns, a = 8 * tiles, random(2, 64, 16, dtype=TYPES[kind])
    matrices = [random(16, columns, dtype=TYPES[kind], seed=seed) for seed in (1, 2)]
    if by_rows:
        leading, stride = (128 * tiles, 128) if chunks == 1 else (4096, 128 * chunks)
        step = 8192 if chunks == 1 else 2 * stride
        place = place_of_row_major(chunks, leading, stride)
    else:
        leading, stride = (128, 256) if chunks == 1 else (16, 128 * chunks)
        step = 8192 if chunks <= 2 else 32
        place = place_of_column_major(chunks, leading, stride)
    b = laid_out(matrices, [place, lambda k, n: place(k, n) + step], chunks)
    c = torch.full((64, columns), torch.nan)
    launch(library, product(kind, tiles, by_rows), c, a, b, described(0, leading, stride, chunks), step)
    expected = a[0].float() @ matrices[0].float() + a[1].float() @ matrices[1].float()
    torch.testing.assert_close(c, expected, rtol=1e-5, atol=1e-5)


def given() -> tuple[Tensor, Tensor, Tensor]:
    b = torch.zeros(1 << 14, dtype=torch.uint8)
    return torch.zeros(64, 64), random(2, 64, 16, dtype=TYPES["bf16"]), b


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", PRODUCT_FAULTS)
def test_products_that_are_asked_for_wrongly_are_caught(library: Library, fault: int, order: int) -> None:
    with pytest.raises(EmulatorError, match=PRODUCT_FAULTS[fault]):
        launch(library, product("bf16", 8, False, fault), *given(), described(0, 16, 1024, 8), 32, order)


def test_sums_are_no_numbers_until_they_are_waited_for(library: Library) -> None:
    c, a, b = given()
    launch(library, product("bf16", 8, False, 7), c, a, b, described(0, 16, 1024, 8), 32)
    assert bool(c.isnan().all())


@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        (described(128, 16, 1024, 8), "begins in the middle of its eight rows, byte 128"),
        (described(0, 16, 1024, 8) | 1 << 49, "a matrix with a base offset"),
        (described(0, 16, 4096, 8), "out of bounds: byte"),
    ],
)
def test_a_matrix_is_where_the_instruction_can_read_it(library: Library, matrix: int, sentence: str) -> None:
    with pytest.raises(EmulatorError, match=sentence):
        launch(library, product("bf16", 8, False), *given(), matrix, 32)


@pytest.mark.parametrize("order", ORDERS)
def test_barriers_hand_over_what_was_stored(library: Library, order: int) -> None:
    out = torch.full((3, 32), -1, dtype=torch.int32)
    library.launch("hand_over<0>", out, grid=(1,), block=(64,), order=order)
    assert out.tolist() == [[100 * turn + 31 - lane for lane in range(32)] for turn in range(3)]
    out = torch.full((64,), -1, dtype=torch.int32)
    library.launch("tell_in_turn", out, grid=(2,), block=(64,), order=order)
    assert out.tolist() == [sum(range(64))] * 64


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", PHASE_FAULTS)
def test_barriers_that_are_used_wrongly_are_caught(library: Library, fault: int, order: int) -> None:
    """Whatever the order of the threads, and also where the numbers would happen to be right."""
    out = torch.full((3, 32), -1, dtype=torch.int32)
    with pytest.raises(EmulatorError, match=PHASE_FAULTS[fault]):
        library.launch(f"hand_over<{fault}>", out, grid=(1,), block=(64,), order=order)
