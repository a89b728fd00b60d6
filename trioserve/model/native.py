"""The decoder as one native call a step: what of a model is handed over, and which models can be."""

import mmap
import operator
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from trioserve._speedups import decoder as native
from trioserve._speedups.exchange import COMMON_OFFSET, Exchange
from trioserve.errors import ModelError
from trioserve.kernels.shapes import ShapeError, Shapes
from trioserve.model.batch import CacheLayout, ForwardBatch, LayerCache
from trioserve.model.config import DecoderConfig
from trioserve.model.layers import Linear, Norm
from trioserve.model.native_matrices import (
    PRODUCTS,
    Matrix,
    Quantization,
    head_format,
    layer_formats,
    matrix_format,
    matrix_of,
)
from trioserve.model.parts import Part

ISA: Final = native.available_isas()[-1]
"""The best instruction set that this processor has kernels for."""
_ALONE_WORK: Final = 32 << 20
"""Some 200 us on one core: two would gain half of that, and lose a time slice of milliseconds whenever something else
has the other core."""
_VECTOR: Final = 16
"""Heads and blocks of the KV cache are whole vectors of the widest instruction set."""


@dataclass(frozen=True, slots=True)
class NativeLayer:
    """What a layer consists of; norms are there or not."""

    qkv_proj: Linear
    o_proj: Linear
    gate_up_proj: Linear
    down_proj: Linear
    before_attention: Norm | None
    after_attention: Norm | None
    before_mlp: Norm | None
    after_mlp: Norm | None
    q_norm: Norm | None
    k_norm: Norm | None

    @property
    def products(self) -> dict[str, Linear]:
        """The four matrices by name."""
        return {name: getattr(self, name) for name in PRODUCTS}

    @property
    def norms(self) -> dict[str, Norm | None]:
        """The norms by name."""
        names = ("before_attention", "after_attention", "before_mlp", "after_mlp", "q_norm", "k_norm")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Crew:
    """Who computes a step."""

    num_threads: int
    cpus: Sequence[int] = ()
    """Where the threads sit while a step runs, one each; empty: wherever the system puts them."""
    isa: str = ISA
    alone_work: int = _ALONE_WORK
    """Multiplications in a step below which the caller works alone."""


def obstacle(config: DecoderConfig, dtype: torch.dtype, *, tp_size: int = 1) -> str | None:
    """Why such a decoder cannot be run natively, by so many ranks; None where it can."""
    if dtype != torch.bfloat16:
        return f"weights are {str(dtype).removeprefix('torch.')}, not bfloat16"
    if config.head_dim % _VECTOR:
        return f"head_dim {config.head_dim} is no multiple of {_VECTOR}"
    if config.qk_norm and config.norm.kind != "rms":
        return "heads are normalised by layer norms"
    if tp_size > 1 and config.qk_norm and config.norm.heads_together:
        return "all heads are normalised together, and each rank has some"
    if config.is_parallel and (
        config.norm.after_attention or config.norm.after_mlp or config.scales.residual != 1
    ):
        return "what attention and MLP add side by side is changed before"
    return None


def refuse_quantization(
    config: DecoderConfig, dtype: torch.dtype, quantization: str, *, tp_size: int = 1
) -> None:
    """See to it that ``quantization`` is obeyed where it is asked for.

    Raises:
        ModelError: Such a decoder cannot be run natively; says why and what to change.
    """
    why = None if quantization in ("auto", "none") else obstacle(config, dtype, tp_size=tp_size)
    if why is not None:
        change = "give dtype bfloat16 or leave it out" if dtype != torch.bfloat16 else "leave it out"
        raise ModelError(f"quantization {quantization} cannot be obeyed: {why}; {change}")


class Spare:
    """Memory for large tensors that come and go one after the other.

    Logits of 32 sequences and 150,000 tokens take 19 MB. From the C library they would be given back after every step
    and cleared page by page in the next, which costs a tenth of the step.
    """

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def empty(self, num_rows: int, num_columns: int) -> Tensor:
        """A float32 tensor of its own: memory is used again only when nobody holds a tensor on it any more."""
        count = num_rows * num_columns
        if count == 0:
            return torch.empty(num_rows, num_columns)
        is_held = sys.getrefcount(self._memory) > 2  # the attribute, the argument, and each storage on it
        if self._memory is None or is_held or len(self._memory) < count * 4:
            self._memory = mmap.mmap(-1, count * 4)
        return torch.frombuffer(self._memory, dtype=torch.float32, count=count).view(num_rows, num_columns)


class Common:
    """Memory for large tensors that all ranks write into together, one after the other."""

    def __init__(self, exchange: Exchange) -> None:
        self._fd = exchange.fd
        self._memory: mmap.mmap | None = None

    def empty(self, num_rows: int, num_columns: int) -> Tensor:
        """A float32 tensor, the same memory in every rank; of use until the next one."""
        count = num_rows * num_columns
        if count == 0:
            return torch.empty(num_rows, num_columns)
        if self._memory is None or len(self._memory) < count * 4:
            self._memory = mmap.mmap(self._fd, count * 4, offset=COMMON_OFFSET)
        return torch.frombuffer(self._memory, dtype=torch.float32, count=count).view(num_rows, num_columns)


class NativeDecoder:
    """A decoder whose weights are packed for one instruction set; runs one step at a time."""

    def __init__(
        self,
        config: DecoderConfig,
        crew: Crew,
        *,
        embeddings: Tensor | None,
        rope_tables: Sequence[Tensor | None],
        num_positions: int,
        quantization: Quantization,
        layout: CacheLayout,
        part: Part,
        exchange: Exchange | None,
    ) -> None:
        """Begin one; ``add_layer`` for each layer, ``add_head`` and ``pack`` complete it.

        Where ranks share the model, ``exchange`` is how they meet: in every layer after attention and after the MLP, to
        add up; before the first, for embeddings; and for logits, which every rank then has.

        Its KV cache is laid out as ``_speedups/kv_cache.h`` says, with the numbers or codes that ``layout`` names.

        Shapes:
            embeddings: [tokens of the part, hidden_size] bfloat16, read by every step; None: the head's matrix, packed
            rope_tables: of each layer [num_positions, 2, num_pairs] float32, read by every step; None: it has none
        """
        assert all(table is None or table.is_contiguous() for table in rope_tables), (
            "a table is not contiguous"
        )
        assert embeddings is None or embeddings.is_contiguous(), "the embeddings are not contiguous"
        assert (exchange is None) == (part.tp_size == 1), "ranks that share a model meet"
        config = part.shape(config)
        self._config = config
        self._quantization: Quantization = quantization
        self._embeddings, self._rope_tables = embeddings, rope_tables
        self._layout = layout
        self._exchange = exchange
        self._spare = Spare() if exchange is None else Common(exchange)
        self._waiting: list[Matrix] = []
        """Those that were added and are not packed yet."""
        self._brought: Counter[str] = Counter()
        """How many matrices of each kind in the checkpoint are of each format here."""
        self._caches: tuple[LayerCache, ...] = ()
        """Those of the last step, kept so that they are known again."""
        self._k_caches: list[int] = []
        self._v_caches: list[int] = []
        """Their addresses."""
        self._decoder = native.Decoder(
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            vocab_size=config.vocab_size,
            num_positions=num_positions,
            num_pairs=config.rope.num_pairs(config.head_dim),
            rms_norm_eps=config.rms_norm_eps,
            norm_kind=config.norm.kind,
            heads_together=config.norm.heads_together,
            activation=config.activation,
            is_interleaved=config.rope.style == "interleaved",
            is_parallel=config.is_parallel,
            scales=_scales(config),
            embeddings=0 if embeddings is None else embeddings.data_ptr(),
            num_threads=crew.num_threads,
            cpus=crew.cpus,
            alone_work=crew.alone_work,
            isa=crew.isa,
            kv_format=layout.name,
            exchange=0 if exchange is None else exchange.address,
            first_token=part.tokens(config.vocab_size).start,
        )

    @property
    def description(self) -> str:
        """Such as "native avx512, 2 threads", "native avx512 int8, 2 threads" or
        "native avx512, awq int4 kept as it is, 2 threads"."""
        count = self._decoder.num_threads
        form = "" if self._quantization in ("auto", "none") else f" {self._quantization}"
        those = (
            f"{number} of {name}" if len(self._brought) > 1 else name
            for name, number in self._brought.items()
        )
        brought = "".join(f", {each}" for each in those)
        own = f"native {self._decoder.isa}{form}{brought}, {count} thread{'s' if count > 1 else ''}"
        return own if self._exchange is None else f"{own} in each of {self._exchange.tp_size} ranks"

    @property
    def num_bytes(self) -> int:
        """Memory of all matrices as they are packed, and of embeddings that are not."""
        embeddings = self._embeddings
        return self._decoder.num_bytes + (0 if embeddings is None else embeddings.nbytes)

    def add_layer(self, number: int, layer: NativeLayer) -> None:
        """Take layer ``number``; the caller keeps its matrices until they are packed."""
        window = self._config.sliding_windows[number] or 0
        otherwise = layer_formats(self._quantization, number, self._config.num_hidden_layers)
        formats = {
            name: matrix_format(linear, self._quantization, otherwise[name])
            for name, linear in layer.products.items()
        }
        matrices = {name: self._take(linear, formats[name]) for name, linear in layer.products.items()}
        table = self._rope_tables[number]
        self._decoder.set_layer(
            number,
            **{name: matrix.pieces for name, matrix in matrices.items()},
            formats=formats,
            grids={name: matrix.address for name, matrix in matrices.items()},
            sliding_window=window,
            rope_table=0 if table is None else table.data_ptr(),
        )
        norms = {name: None if norm is None else norm.factors for name, norm in layer.norms.items()}
        norm_biases = {name: _wide(None if norm is None else norm.bias) for name, norm in layer.norms.items()}
        self._decoder.set_norms(number, weights=_addresses(norms), biases=_addresses(norm_biases))
        biases = {name: _wide(linear.bias) for name, linear in layer.products.items()}
        self._decoder.set_biases(number, **_addresses(biases))

    def add_head(self, norm: Norm, lm_head: Linear) -> None:
        """Take the head, as a layer."""
        weights, bias = norm.factors, _wide(norm.bias)
        form = matrix_format(lm_head, self._quantization, head_format(self._quantization))
        matrix = self._take(lm_head, form)
        self._decoder.set_head(
            norm=weights.data_ptr(),
            norm_bias=0 if bias is None else bias.data_ptr(),
            lm_head=matrix.pieces,
            head_format=form,
            grids=matrix.address,
        )

    def _take(self, linear: Linear, form: str) -> Matrix:
        matrix = matrix_of(linear, form)
        self._waiting.append(matrix)
        if linear.quantized is not None:
            self._brought[
                f"{linear.quantized.name} {'kept as it is' if matrix.grids is not None else f'as {form}'}"
            ] += 1
        return matrix

    def pack(self) -> None:
        """Pack what was added since the last time, as one call without the interpreter's lock; the matrices in rows are
        not needed after."""
        self._decoder.pack()
        self._waiting.clear()

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        """``Decoder.forward``.

        Raises:
            ShapeError: Tensors do not fit each other.
            IndexError: One of them points outside of what it indexes.
        """
        sizes = Shapes(
            token_ids=(batch.token_ids, "num_tokens"),
            positions=(batch.positions, "num_tokens"),
            slot_mapping=(batch.slot_mapping, "num_tokens"),
            cu_seqlens_q=(batch.cu_seqlens_q, "num_bounds"),
            seq_lens=(batch.seq_lens, "num_seqs"),
            block_tables=(batch.block_tables, "num_seqs max_blocks"),
            sample_rows=(batch.sample_rows, "num_samples"),
            k_cache=(caches[0].k, "num_blocks num_kv_heads block_size width"),
        )
        sizes.expect("num_bounds", sizes["num_seqs"] + 1)
        sizes.expect("num_kv_heads", self._config.num_kv_heads)
        sizes.expect("width", self._layout.width)
        if sizes["block_size"] % _VECTOR:
            raise ShapeError(f"block_size {sizes['block_size']} is no multiple of {_VECTOR}")
        if len(caches) != len(self._caches) or not all(map(operator.is_, caches, self._caches)):
            self._take_caches(caches)
        hidden = torch.empty((sizes["num_samples"], self._config.hidden_size), dtype=torch.bfloat16)
        tables = _tables(batch)
        self._decoder.forward(
            hidden.data_ptr(),
            **_addresses(tables),
            k_caches=self._k_caches,
            v_caches=self._v_caches,
            num_tokens=sizes["num_tokens"],
            num_seqs=sizes["num_seqs"],
            num_samples=sizes["num_samples"],
            max_blocks=sizes["max_blocks"],
            num_blocks=sizes["num_blocks"],
            block_size=sizes["block_size"],
        )
        return hidden

    def _take_caches(self, caches: Sequence[LayerCache]) -> None:
        """Look at caches for the first time: 60 tensors, and a step comes with the same ones as the last."""
        self._k_caches = [self._cache(cache.k, caches[0].k) for cache in caches]
        self._v_caches = [self._cache(cache.v, caches[0].k) for cache in caches]
        self._caches = tuple(caches)

    def _cache(self, cache: Tensor, first: Tensor) -> int:
        assert cache.is_contiguous() and cache.dtype == self._layout.dtype, (
            f"a cache is contiguous {self._layout}"
        )
        assert cache.shape == first.shape, "all caches are of one shape"
        return cache.data_ptr()

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[num_samples, hidden_size] -> [num_samples, vocab_size] float32; of use until the next call where ranks share
        the model."""
        Shapes(hidden=(hidden, "num_samples hidden_size")).expect("hidden_size", self._config.hidden_size)
        hidden = hidden.contiguous()
        logits = self._spare.empty(len(hidden), self._config.vocab_size)
        self._decoder.compute_logits(logits.data_ptr(), hidden.data_ptr(), num_rows=len(hidden))
        return logits

    def time_products(self, name: str, num_rows: int) -> float:
        """Seconds that all layers' products of so many rows with a matrix of this name take, for benchmarks."""
        return self._decoder.time_products(name, num_rows=num_rows)


def _scales(config: DecoderConfig) -> dict[str, float]:
    """All of them, those that are not there as the decoder knows them."""
    scales = config.scales
    return {
        "attention": config.attention_scale,
        "attention_bound": scales.attention_bound or 0.0,
        "embedding": float(torch.tensor(scales.embedding).bfloat16()),
        "residual": scales.residual,
        "logits": scales.logits,
        "logits_bound": scales.logits_bound or 0.0,
    }


def _tables(batch: ForwardBatch) -> dict[str, Tensor | None]:
    """The tensors of a step by name, contiguous and of the types they must have."""
    long = ("token_ids", "positions", "slot_mapping", "sample_rows")
    short = ("cu_seqlens_q", "seq_lens", "block_tables")
    tables = {name: getattr(batch, name).contiguous() for name in long + short}
    assert all(tables[name].dtype == torch.int64 for name in long), "tokens are int64"
    assert all(tables[name].dtype == torch.int32 for name in short), "tables are int32"
    return tables


def _wide(numbers: Tensor | None) -> Tensor | None:
    return None if numbers is None else numbers.float()


def _addresses(tensors: dict[str, Tensor | None]) -> dict[str, int]:
    """The caller keeps the tensors alive."""
    return {name: 0 if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}
