"""The emulator: what is right runs, each planted fault is caught, and the sentence says which."""

import pytest
import torch
from torch import Tensor

from tests.emu.build import HERE, ORDERS, EmulatorError, Library
from tests.emu.conftest import Emulate

RIGHT = (
    "convert<bf16> convert<fp16> exchange sums reverse rotate_lanes places narrow_codes copy_some widen_codes<bf16> "
    "widen_codes<fp16> multiply<bf16,false> multiply<bf16,true> multiply<fp16,false> multiply<fp16,true>"
).split()
WAITING = {
    "barrier_in_a_branch": r"deadlock: 32 threads wait at a barrier|divergent",
    "two_barriers": r"divergent barrier: .*probes.cu:\d+, while others wait at .*probes.cu:\d+",
    "barrier_after_leaving": r"divergent barrier: .*(leaves|left)",
    "lane_outside_its_mask": r"lane \d+ is outside the mask 0000ffff",
    "source_outside_the_mask": r"lane 0 shuffles from lane 16, outside the mask 0000ffff",
    "lane_that_left": r"names lane 3, which is not there|deadlock",
    "two_collectives": r"divergent collective: lanes \d+ and \d+",
}
"""Kernels without arguments, of 64 threads, and what is said of them."""
OTHERS = (
    "shared_beyond dynamic_beyond read_before_write write_after_read two_writers misaligned_load misaligned_store "
    "store_to_input read_too_early read_of_another never_waited copy_off_its_boundary copy_beyond"
).split()


@pytest.fixture(scope="module")
def library(emulate: Emulate) -> Library:
    return emulate(HERE / "probes.cu", [*RIGHT, *WAITING, *OTHERS])


def half_way(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Each value of ``dtype``, and the midpoints between neighbours, where ties must go to even."""
    values = x.view(dtype).float()
    return torch.cat([values, (values[1:] + values[:-1]) / 2])


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_conversions_round_as_torch_does(library: Library, kind: str, dtype: torch.dtype) -> None:
    every = torch.arange(-0x8000, 0x8000, dtype=torch.int32).to(torch.int16)
    scattered = torch.randint(
        -(2**31), 2**31, (1 << 14,), dtype=torch.int64, generator=torch.Generator().manual_seed(0)
    )
    x = torch.cat([half_way(every, dtype), scattered.to(torch.int32).view(torch.float32)])
    narrowed, widened = torch.empty(len(x), dtype=dtype), torch.empty(len(x))
    library.launch(
        f"convert<{kind}>", *(narrowed, widened, x, len(x)), grid=(-(-len(x) // 1024),), block=(1024,)
    )
    torch.testing.assert_close(narrowed, x.to(dtype), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(widened, x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_codes_of_8_bits_are_what_torch_has(library: Library, kind: str) -> None:
    """All of them, alone and as four; 0x7f and 0xff, no numbers, become 480: nothing here writes them unasked."""
    codes = torch.arange(256, dtype=torch.uint8)
    out = torch.empty(256, 5)
    library.launch(f"widen_codes<{kind}>", *(out, codes, 256), grid=(1,), block=(256,))
    expected = codes.view(torch.float8_e4m3fn).float().nan_to_num(480.0)
    expected[255] = -480.0
    assert torch.equal(out, torch.stack([*(expected.roll(-61 * j) for j in range(4)), expected], dim=1))


def test_numbers_go_to_the_nearest_code(library: Library) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    values = every.view(torch.float8_e4m3fn).float()[:127]
    scattered = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 3, 4000)
    x = torch.cat([values, (values[1:] + values[:-1]) / 2, scattered, torch.tensor([449.0, 1e9, torch.inf])])
    x = torch.cat([x, -x, torch.tensor([torch.nan])])
    out = torch.empty(len(x), dtype=torch.float8_e4m3fn)
    library.launch("narrow_codes", *(out, x, len(x)), grid=(-(-len(x) // 256),), block=(256,))
    expected = x.clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(out.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_warp_multiplies_matrices(
    library: Library, kind: str, dtype: torch.dtype, transposed: bool, order: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((16, 16), (16, 8)))
    c = torch.full((16, 8), torch.nan)
    given = b if transposed else b.T.contiguous()
    kernel = f"multiply<{kind},{str(transposed).lower()}>"
    library.launch(kernel, *(c, a, given), grid=(1,), block=(32,), shared_bytes=1024, order=order)
    torch.testing.assert_close(c, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [0, 3, 8])
def test_copies_that_are_not_wanted_are_zeros_and_read_nothing(library: Library, wanted: int) -> None:
    x, out = torch.arange(4.0 * wanted) + 1, torch.empty(32)
    library.launch("copy_some", *(out, x, wanted), grid=(1,), block=(8,), shared_bytes=128)
    assert out.tolist() == [*x.tolist(), *[0.0] * (32 - 4 * wanted)]
    if wanted:
        with pytest.raises(EmulatorError, match="out of bounds: load of 16"):
            library.launch("copy_some", *(out, x[:-1], wanted), grid=(1,), block=(8,), shared_bytes=128)


@pytest.mark.parametrize("order", ORDERS)
def test_copies_that_are_not_waited_for_are_caught(library: Library, order: int) -> None:
    x, out = torch.arange(32.0), torch.empty(32)
    sizes = {"grid": (1,), "shared_bytes": 128, "order": order}
    with pytest.raises(
        EmulatorError, match="byte 16 of shared memory is touched, a copy to it is on its way"
    ):
        library.launch("read_too_early", out, x, block=(1,), **sizes)  # type: ignore[arg-type]
    with pytest.raises(EmulatorError, match=r"on its way|race|nobody wrote"):
        library.launch("read_of_another", out, x, block=(8,), **sizes)  # type: ignore[arg-type]
    with pytest.raises(EmulatorError, match="leaves, and copies of it are on their way"):
        library.launch("never_waited", x, block=(1,), **sizes)  # type: ignore[arg-type]
    with pytest.raises(EmulatorError, match="misaligned: load of 16 bytes"):
        library.launch("copy_off_its_boundary", x, block=(1,), **sizes)  # type: ignore[arg-type]
    with pytest.raises(EmulatorError, match="out of bounds: byte 128"):
        library.launch("copy_beyond", x, 32, block=(1,), **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_exchange_their_values(library: Library, order: int) -> None:
    out = torch.zeros(6, 32, dtype=torch.int32)
    library.launch("exchange", out, grid=(1,), block=(32,), order=order)
    lanes = range(32)
    assert out.tolist() == [
        [7 for _ in lanes],
        [lane ^ 3 for lane in lanes],
        [lane + 5 if lane + 5 < 32 else lane for lane in lanes],
        [lane - 5 if lane >= 5 else lane for lane in lanes],
        [sum(1 << lane for lane in lanes if lane % 3 == 0)] * 32,
        [lane ^ 1 if lane < 16 else lane ^ 2 for lane in lanes],
    ]


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_shares_its_memory(library: Library, order: int) -> None:
    out = torch.zeros(96, dtype=torch.int32)
    library.launch("reverse", *(out, 96), grid=(3,), block=(96,), shared_bytes=4 * 96, order=order)
    assert out.tolist() == list(range(95, -1, -1))
    library.launch("rotate_lanes", out[:64], grid=(2,), block=(64,), order=order)
    assert out[:64].tolist() == [*range(1, 32), 0, *range(33, 64), 32]
    total = torch.zeros(128)
    library.launch("sums", total, grid=(2,), block=(128,), order=order)
    assert total.tolist() == [128 * 127 * 128 / 2] * 128


@pytest.mark.parametrize("order", ORDERS)
def test_every_thread_of_every_block_runs_once(library: Library, order: int) -> None:
    out = torch.full((2 * 3 * 2, 4 * 2 * 5, 2), -1, dtype=torch.int32)
    library.launch("places", out, grid=(2, 3, 2), block=(4, 2, 5), order=order)
    assert out.tolist() == [[[block, thread] for thread in range(40)] for block in range(12)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", WAITING)
def test_threads_that_wait_in_vain_are_caught(library: Library, kernel: str, order: int) -> None:
    with pytest.raises(EmulatorError, match=WAITING[kernel]):
        library.launch(kernel, grid=(1,), block=(64,), order=order)


@pytest.mark.parametrize("at", [-1, 8, 1000])
def test_shared_memory_has_bounds(library: Library, at: int) -> None:
    library.launch("shared_beyond", 7, grid=(1,), block=(1,))
    with pytest.raises(EmulatorError, match=f"out of bounds: element {at} of a shared array of 8"):
        library.launch("shared_beyond", at, grid=(1,), block=(1,))
    library.launch("dynamic_beyond", 7, grid=(1,), block=(1,), shared_bytes=32)
    with pytest.raises(EmulatorError, match="out of bounds"):
        library.launch("dynamic_beyond", at, grid=(1,), block=(1,), shared_bytes=32)


@pytest.mark.parametrize("order", ORDERS)
def test_races_in_shared_memory_are_caught(library: Library, order: int) -> None:
    out = torch.empty(64)
    with pytest.raises(EmulatorError, match=r"race: .* is (written, others read|read, thread)"):
        library.launch("write_after_read", out, grid=(1,), block=(64,), order=order)
    with pytest.raises(EmulatorError, match=r"race: .* is written, thread"):
        library.launch("two_writers", grid=(1,), block=(64,), order=order)
    with pytest.raises(EmulatorError, match="nobody wrote it"):
        library.launch("read_before_write", out, grid=(1,), block=(32,), order=order)


@pytest.mark.parametrize("order", ORDERS)
def test_fibers_of_other_processors_do_the_same(emulate: Emulate, order: int) -> None:
    """Those of x86-64 are written by hand; the rest has ucontext, which is here too."""
    portable = emulate(HERE / "probes.cu", ["sums", "two_writers"], defines=["CUEMU_UCONTEXT"])
    total = torch.zeros(128)
    portable.launch("sums", total, grid=(2,), block=(128,), order=order)
    assert total.tolist() == [128 * 127 * 128 / 2] * 128
    with pytest.raises(EmulatorError, match="race"):
        portable.launch("two_writers", grid=(1,), block=(64,), order=order)


def test_one_block_does_not_see_what_another_left_in_shared_memory(library: Library) -> None:
    library.launch("shared_beyond", 0, grid=(1,), block=(1,))
    with pytest.raises(EmulatorError, match="nobody wrote it"):
        library.launch("read_before_write", torch.empty(32), grid=(1,), block=(32,))


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_vectors_are_aligned(library: Library, shift: int) -> None:
    x = torch.arange(16.0)
    library.launch("misaligned_load", *(x.clone(), x, 4), grid=(1,), block=(1,))
    with pytest.raises(EmulatorError, match="misaligned: load of 16 bytes"):
        library.launch("misaligned_load", *(x.clone(), x, shift), grid=(1,), block=(1,))
    with pytest.raises(EmulatorError, match="misaligned: store of 16 bytes"):
        library.launch("misaligned_store", *(x, shift), grid=(1,), block=(1,))


def test_tensors_have_bounds_and_inputs_stay(library: Library) -> None:
    x = torch.arange(16.0)
    with pytest.raises(EmulatorError, match="out of bounds: load"):
        library.launch("misaligned_load", *(x.clone(), x[:6], 4), grid=(1,), block=(1,))
    with pytest.raises(EmulatorError, match="out of bounds: store"):
        library.launch("misaligned_store", *(x[:6], 4), grid=(1,), block=(1,))
    with pytest.raises(EmulatorError, match="outside of the arguments that it may touch"):
        library.launch("store_to_input", x, grid=(1,), block=(1,))
    assert x.tolist() == list(range(16))


def test_arguments_are_those_of_the_kernel(library: Library) -> None:
    assert library.signature("misaligned_load") == ["out f32", "in f32", "i32"]
    x = torch.zeros(4)
    for wrong in ((x, x), (x, x.double(), 0), (x, x, 0.5), (x, x, x), (x, 0, 0), (x, x, 1 << 40)):
        with pytest.raises(TypeError):
            library.launch("misaligned_load", *wrong, grid=(1,), block=(1,))


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "sentence"),
    [
        ((0,), (32,), 0, "an empty grid or block"),
        ((1,), (1025,), 0, "more than 1024 threads"),
        ((1, 65536), (32,), 0, "more than 65535 blocks"),
        ((1,), (32,), 1 << 18, "more than 227 KB"),
    ],
)
def test_launches_that_cuda_refuses_are_refused(
    library: Library, grid: tuple[int, ...], block: tuple[int, ...], shared_bytes: int, sentence: str
) -> None:
    with pytest.raises(EmulatorError, match=sentence):
        library.launch("two_writers", grid=grid, block=block, shared_bytes=shared_bytes)
