"""unpack_weight.cu against its reference."""

import pytest
import torch

from tests.emu.build import ORDERS, EmulatorError
from tests.emu.conftest import MakeGpu
from tests.emu.device import EmulatedGpu
from tests.emu.tensors import TYPES, assert_near
from tests.emu.test_quantized_linear import FORMS, made
from trioserve.kernels.quantized_linear import unpack
from trioserve.kernels.shapes import ShapeError
from trioserve.kernels.unpack_weight import channel_kernel, instances, unpack_weight_gpu


@pytest.fixture(scope="module")
def gpu(make_gpu: MakeGpu) -> EmulatedGpu:
    return make_gpu(instances())


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("out_size", "in_size"), [(1, 128), (16, 384), (37, 640)], ids=str)
def test_a_matrix_is_what_its_codes_stand_for(
    gpu: EmulatedGpu, out_size: int, in_size: int, form: str, kind: str
) -> None:
    """In every order of the threads; a sum with an offset may fall to the other side of a tie."""
    packed = made(form, out_size, in_size, TYPES[kind])
    for order in ORDERS:
        found = unpack_weight_gpu(
            gpu.taking(order), packed, torch.empty(out_size, in_size, dtype=TYPES[kind])
        )
        assert_near(found, unpack(packed).to(TYPES[kind]), absolute=1e-5)


def test_a_weight_that_was_packed_for_another_type_is_refused(gpu: EmulatedGpu) -> None:
    packed = made("int4 of 64", 16, 64, torch.bfloat16)
    with pytest.raises(ShapeError, match=r"out is torch\.float16, the weight was packed for torch\.bfloat16"):
        unpack_weight_gpu(gpu, packed, torch.empty(16, 64, dtype=torch.float16))
    with pytest.raises(ShapeError, match="out_size is 15, expected 16"):
        unpack_weight_gpu(gpu, packed, torch.empty(15, 64, dtype=torch.bfloat16))


def test_a_tile_too_many_is_caught(gpu: EmulatedGpu) -> None:
    packed, out = made("int8", 16, 64, torch.bfloat16), torch.empty(16, 64, dtype=torch.bfloat16)
    with pytest.raises(EmulatorError, match="out of bounds"):
        gpu.launch(
            channel_kernel("bf16", "u8"),
            *(out, packed.weight, packed.scales, 64, 16),
            grid=(2,),
            block=(128,),
        )
