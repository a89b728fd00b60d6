"""In which formats the native decoder has its matrices, and what each is packed from."""

from typing import Final, Literal, NamedTuple

from torch import Tensor

from trioserve.model.layers import Linear

Quantization = Literal["auto", "none", "int8", "int4"]
"""What weights are brought to at load; auto: as near to what the checkpoint holds as there are formats."""
QUANTIZATIONS: Final[tuple[Quantization, ...]] = ("none", "int8", "int4")
"""Those that a matrix has, whatever the checkpoint holds."""

PRODUCTS: Final = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""The matrices of a layer."""


def layer_formats(quantization: Quantization, layer: int, num_layers: int) -> dict[str, str]:
    """The formats of a layer's matrices that the checkpoint does not keep in few bits.

    With int4 some matrices stay int8: q, k and v, which are small and err most for their size, and all of the last
    layer, whose errors nothing evens out any more.
    """
    if quantization in ("auto", "none"):
        return dict.fromkeys(PRODUCTS, "bf16")
    is_fine = quantization == "int8" or layer == num_layers - 1
    rest = dict.fromkeys(PRODUCTS, "int8" if is_fine else "int4")
    return {**rest, "qkv_proj": "int8"}


def head_format(quantization: Quantization) -> str:
    """The format of the head: int8 with int4 too, for it errs last and in every token."""
    return "bf16" if quantization in ("auto", "none") else "int8"


def matrix_format(linear: Linear, quantization: Quantization, otherwise: str) -> str:
    """The format of a matrix, ``otherwise`` where the checkpoint does not keep it in few bits.

    Its codes are kept where the decoder has them and ``quantization`` does not ask for something else. Where it has
    not, auto is int8, which adds least to what they are off already, and takes no more memory than 8 bits do; or bf16
    where some of the matrix is not quantized.
    """
    quantized = linear.quantized
    if quantized is None or quantization == "none":
        return otherwise
    kept = quantized.native_format
    if quantization == "auto":
        return kept or ("bf16" if quantized.is_mixed else "int8")
    return kept if kept is not None and quantization != "int8" else otherwise


class Matrix(NamedTuple):
    """What a matrix is packed from."""

    tensors: list[Tensor]
    """Its rows, bfloat16 and in pieces; or its codes."""
    grids: Tensor | None
    """What its codes stand for; None: there are none."""

    @property
    def pieces(self) -> list[tuple[int, int, int]]:
        """Address, number of rows and their stride of each."""
        assert all(piece.stride(1) == 1 for piece in self.tensors), "a row of a weight is not contiguous"
        return [(piece.data_ptr(), len(piece), piece.stride(0)) for piece in self.tensors]

    @property
    def address(self) -> int:
        """Of the grids; 0: there are none."""
        return 0 if self.grids is None else self.grids.data_ptr()


def matrix_of(linear: Linear, form: str) -> Matrix:
    """``linear`` as it becomes ``form``."""
    if linear.quantized is not None and linear.quantized.native_format == form:
        codes, grids = linear.quantized.native()
        return Matrix([codes], grids)
    return Matrix(linear.pieces(), None)
