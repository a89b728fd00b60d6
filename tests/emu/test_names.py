"""A kernel, its launch function and its reference call the same thing by the same name."""

import inspect
import re
from collections.abc import Callable

import pytest

from tests.emu.build import CUDA
from trioserve.kernels.activation import activation_mul
from trioserve.kernels.rms_norm import add_rms_norm, rms_norm
from trioserve.kernels.rope import apply_rope
from trioserve.kernels.store_kv import store_kv


def names_of_kernel(file: str, kernel: str) -> set[str]:
    """Of its arguments, and of its template's: ``kInterleaved`` and ``Activation`` as the face writes them."""
    text = (CUDA / file).read_text()
    found = re.search(rf"template <([^>]*)>\n__global__[^\n]*\n{kernel}\(([^)]*)\)", text)
    assert found is not None, f"{file} has no {kernel}"
    template, arguments = ([word.split()[-1] for word in part.split(",")] for part in found.groups())
    return {name.removeprefix("k").lower() for name in template} | set(arguments)


@pytest.mark.parametrize(
    ("file", "face"),
    [
        ("rms_norm.cu", rms_norm),
        ("rms_norm.cu", add_rms_norm),
        ("activation.cu", activation_mul),
        ("rope.cu", apply_rope),
        ("store_kv.cu", store_kv),
    ],
)
def test_a_kernel_takes_what_its_face_takes(file: str, face: Callable[..., object]) -> None:
    missing = set(inspect.signature(face).parameters) - names_of_kernel(file, face.__name__)
    assert missing == set()
