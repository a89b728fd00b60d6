"""Gathers the tensors of quantized matrices from a checkpoint's files, and gives each layer its own."""

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import Tensor

from trioserve.errors import ModelError
from trioserve.model.decoder import Decoder
from trioserve.model.layers import Linear
from trioserve.model.parts import Cut
from trioserve.model.quantized_storage import PLAIN, CheckpointQuantization, Storage
from trioserve.model.quantized_tensors import Span, Stored
from trioserve.model.quantized_weights import Piece, QuantizedWeight

_CACHE_SCALES = (".k_scale", ".v_scale", ".q_scale", ".k_proj.output_scale", ".v_proj.output_scale")
"""Of keys and values that others bring to 8 bits; ours have scales of their own."""


@dataclass(slots=True)
class _Matrix:
    """One that a checkpoint has: a layer's, or what one of its shards is, or all of these."""

    layer: Linear
    module: str
    shard: str | None
    storage: Storage
    tensors: dict[str, Tensor] = field(default_factory=dict)


class QuantizedTargets:
    """The matrices of a model of which some part is quantized."""

    def __init__(self, model: Decoder, quantization: CheckpointQuantization, stored: Collection[str]) -> None:
        """``stored``: the names of all tensors that the files hold."""
        self._matrices: list[_Matrix] = []
        for path, layer in model.named_modules():
            is_tied = layer is model.lm_head and model.config.tie_word_embeddings
            if isinstance(layer, Linear) and not is_tied:
                self._matrices += _matrices_of(layer, path, quantization, stored)
        self._of_tensor = {
            f"{matrix.module}.{name}": (matrix, name)
            for matrix in self._matrices
            for name in matrix.storage.known
        }
        self._spare_biases = {f"{each.module}.bias" for each in self._matrices if each.layer.bias is None}

    @property
    def weights(self) -> set[str]:
        """Names of tensors that would be the matrices' if they were not quantized."""
        return {f"{module}.weight" for matrix in self._matrices for module in _modules_of(matrix)}

    def take(self, name: str, tensor: Tensor) -> bool:
        """Keep ``tensor`` where it is mapped if it is one of theirs; whether it is.

        Raises:
            ModelError: It is a bias of a layer that has none, and not all zeros, which some checkpoints have there.
        """
        if name in self._of_tensor:
            matrix, kind = self._of_tensor[name]
            matrix.tensors[kind] = tensor
            return True
        if name in self._spare_biases:
            if bool(tensor.any()):
                raise ModelError(f"tensor {name} is the bias of a layer that has none by config.json")
            return True
        return name.endswith(_CACHE_SCALES)

    def finish(self) -> list[str]:
        """Give every layer its matrix, or return the names of the tensors that there must be and are not.

        Raises:
            ModelError: A tensor is of another shape or type; names both.
        """
        missing = [
            f"{each.module}.{name}"
            for each in self._matrices
            for name in each.storage.needed
            if name not in each.tensors
        ]
        if missing:
            return missing
        pieces: dict[Linear, list[Piece]] = {}
        for matrix in self._matrices:
            pieces.setdefault(matrix.layer, []).extend(_pieces_of(matrix))
        for layer, own in pieces.items():
            layer.take(QuantizedWeight(own))
        return []


def _matrices_of(
    layer: Linear, path: str, quantization: CheckpointQuantization, stored: Collection[str]
) -> list[_Matrix]:
    """Those that make up a layer, in the order of its rows; none where nothing of it is quantized."""
    storage = quantization.storage_of(path, stored)
    if storage is not None:
        return [_Matrix(layer, path, None, storage)]
    parent = path.rpartition(".")[0]
    modules = {shard: f"{parent}.{shard}" for shard in layer.shards}
    storages = {shard: quantization.storage_of(module, stored) for shard, module in modules.items()}
    if not any(storages.values()):
        return []
    return [_Matrix(layer, modules[shard], shard, each or PLAIN) for shard, each in storages.items()]


def _modules_of(matrix: _Matrix) -> list[str]:
    """It, and those that it stands for."""
    parent = matrix.module.rpartition(".")[0]
    return [matrix.module, *(f"{parent}.{shard}" for shard in matrix.layer.shards if matrix.shard is None)]


def _pieces_of(matrix: _Matrix) -> list[Piece]:
    """What the rank has of it."""
    layer, shard = matrix.layer, matrix.shard
    out_size, in_size = layer.full_shape(layer.weight.data, shard)
    stored = Stored(matrix.module, matrix.storage, out_size, in_size, matrix.tensors)
    stored.refuse_misshapen()
    if shard is not None or not layer.shards:
        return [_piece(stored, layer.cuts.get(shard), 0)]
    pieces, first = [], 0
    for each in layer.shards:
        pieces.append(_piece(stored, layer.cuts[each], first))
        first += layer.cuts[each].size
    return pieces


def _piece(stored: Stored, cut: Cut | None, first: int) -> Piece:
    """The part that ``cut`` says, None: all; ``first``: the row of the matrix that is the first of what is cut."""
    rows, columns = Span(0, stored.out_size), Span(0, stored.in_size)
    if cut is not None and cut.dim == 0:
        rows = Span(first + cut.start, first + cut.end)
    elif cut is not None:
        columns = Span(cut.start, cut.end)
    return Piece(stored, rows, columns)
