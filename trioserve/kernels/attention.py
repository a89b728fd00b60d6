"""Causal attention of a ragged batch over the paged KV cache, prefill chunks and decodes mixed."""

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trioserve._speedups import attention as native
from trioserve.kernels.cpu import is_native
from trioserve.kernels.shapes import ShapeError, Shapes

ISA: Final = native.available_isas()[-1]
"""The best instruction set that this processor has kernels of attention for."""
_MAX_NATIVE_QUERIES: Final = {torch.float32: 1 << 30, torch.bfloat16: 63}
"""Longer chunks go to torch, which multiplies bf16 matrices in tiles where the processor has them."""


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    bound: float | None = None,
) -> Tensor:
    """Attend from the last tokens of each sequence to all of its tokens up to themselves.

    The keys and values of the step's own tokens are in the cache already. Query head ``h`` reads KV head
    ``h // (num_heads / num_kv_heads)``. With a ``bound``, a scaled score s counts as bound * tanh(s / bound).

    Shapes:
        q, result: [num_tokens, num_heads, head_dim]
        k_cache, v_cache: [num_blocks, num_kv_heads, block_size, head_dim]
        cu_seqlens_q: [num_bounds] int32, cumulative query lengths; num_bounds = num_seqs + 1
        seq_lens: [num_seqs] int32, KV lengths, this step included
        block_tables: [num_seqs, max_blocks] int32
    Raises:
        ShapeError: They do not fit each other.
    Source:
        arXiv:2309.06180 (paged), arXiv:2205.14135 (the running softmax), arXiv:2305.13245 (grouped queries).
    """
    sizes = Shapes(
        q=(q, "num_tokens num_heads head_dim"),
        k_cache=(k_cache, "num_blocks num_kv_heads block_size head_dim"),
        v_cache=(v_cache, "num_blocks num_kv_heads block_size head_dim"),
        cu_seqlens_q=(cu_seqlens_q, "num_bounds"),
        seq_lens=(seq_lens, "num_seqs"),
        block_tables=(block_tables, "num_seqs max_blocks"),
    )
    sizes.expect("num_bounds", sizes["num_seqs"] + 1)
    if sizes["num_heads"] % sizes["num_kv_heads"]:
        raise ShapeError(
            f"num_heads {sizes['num_heads']} is no multiple of num_kv_heads {sizes['num_kv_heads']}"
        )
    tables = (cu_seqlens_q, seq_lens, block_tables)
    out = torch.empty(q.shape, dtype=q.dtype)
    max_queries = 0
    if is_native(q.dtype, sizes["head_dim"], sizes["block_size"]):
        max_queries = _MAX_NATIVE_QUERIES[q.dtype]
        _run_native(out, q, k_cache, v_cache, tables, scale, sliding_window, max_queries, bound=bound)
    if sizes["num_tokens"] - sizes["num_seqs"] >= max_queries:  # else none has so many, each having one
        _run_torch(out, q, k_cache, v_cache, tables, scale, sliding_window, max_queries, bound=bound)
    return out


def implementation(dtype: torch.dtype, head_dim: int, block_size: int) -> str:
    """Which implementation serves such a model, such as "cpu-avx512"."""
    return f"cpu-{ISA}" if is_native(dtype, head_dim, block_size) else "cpu-torch"


def _run_native(
    out: Tensor,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    tables: tuple[Tensor, Tensor, Tensor],
    scale: float,
    sliding_window: int | None,
    max_queries: int,
    *,
    bound: float | None = None,
    num_threads: int | None = None,
    isa: str = ISA,
) -> None:
    """Fill the rows of sequences with at most ``max_queries`` query tokens."""
    cu_seqlens_q, seq_lens, block_tables = (table.contiguous() for table in tables)
    num_kv_heads, block_size, head_dim = k_cache.shape[1:]
    assert q.stride(2) == 1 and q.stride(1) == head_dim, "the heads of q are not contiguous"
    assert k_cache.is_contiguous() and v_cache.is_contiguous(), "the cache is not contiguous"
    assert {table.dtype for table in tables} == {torch.int32}, "tables are int32"
    native.paged_attention(
        out.data_ptr(),
        q.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        cu_seqlens_q.data_ptr(),
        seq_lens.data_ptr(),
        block_tables.data_ptr(),
        q_stride=q.stride(0),
        num_seqs=len(seq_lens),
        num_heads=q.shape[1],
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        max_blocks=block_tables.shape[1],
        sliding_window=sliding_window or 0,
        max_queries=max_queries,
        scale=scale,
        bound=bound or 0.0,
        is_bf16=q.dtype == torch.bfloat16,
        num_threads=num_threads or torch.get_num_threads(),
        isa=isa,
    )


def _run_torch(
    out: Tensor,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    tables: tuple[Tensor, Tensor, Tensor],
    scale: float,
    sliding_window: int | None,
    max_queries: int,
    *,
    bound: float | None = None,
) -> None:
    """Fill the rows of sequences with more than ``max_queries`` query tokens, one sequence after the other."""
    cu_seqlens_q, seq_lens, block_tables = tables
    bounds = cu_seqlens_q.tolist()
    for row, seq_len in enumerate(seq_lens.tolist()):
        num_queries = bounds[row + 1] - bounds[row]
        if num_queries <= max_queries:
            continue
        queries = slice(bounds[row], bounds[row + 1])
        keys, values = (gather_blocks(cache, block_tables[row], seq_len) for cache in (k_cache, v_cache))
        if bound is not None:
            visible = visible_mask(num_queries, seq_len, sliding_window)
            out[queries] = _attend_ref(q[queries], keys, values, visible, scale, bound)
            continue
        whole = num_queries == seq_len and (sliding_window is None or sliding_window >= seq_len)
        seen = scaled_dot_product_attention(
            q[queries].transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=None if whole else visible_mask(num_queries, seq_len, sliding_window),
            is_causal=whole,
            scale=scale,
            enable_gqa=True,
        )
        out[queries] = seen[0].transpose(0, 1)


def paged_attention_ref(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    bound: float | None = None,
) -> Tensor:
    """The truth for ``paged_attention``: float32, one sequence after the other."""
    out = torch.empty_like(q)
    bounds = cu_seqlens_q.tolist()
    for row, seq_len in enumerate(seq_lens.tolist()):
        queries = slice(bounds[row], bounds[row + 1])
        keys, values = (gather_blocks(cache, block_tables[row], seq_len) for cache in (k_cache, v_cache))
        visible = visible_mask(queries.stop - queries.start, seq_len, sliding_window)
        out[queries] = _attend_ref(q[queries], keys, values, visible, scale, bound)
    return out


def _attend_ref(
    q: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float, bound: float | None
) -> Tensor:
    """One sequence in float32, rounded once.

    Shapes:
        q, result: [num_queries, num_heads, head_dim]
        keys, values: [num_kv_heads, seq_len, head_dim]
        visible: [num_queries, seq_len] bool
    """
    group = q.shape[1] // keys.shape[0]
    keys, values = (x.float().repeat_interleave(group, 0) for x in (keys, values))
    scores = torch.einsum("qhd,hkd->hqk", q.float(), keys) * scale
    if bound is not None:
        scores = bound * (scores / bound).tanh()
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hqk,hkd->qhd", weights, values).to(q.dtype)


def gather_blocks(cache: Tensor, block_table: Tensor, seq_len: int) -> Tensor:
    """The first ``seq_len`` tokens of a sequence, copied together.

    Shapes:
        cache: [num_blocks, num_kv_heads, block_size, head_dim]
        block_table: [max_blocks] int32
        result: [num_kv_heads, seq_len, head_dim]
    """
    _, num_kv_heads, block_size, head_dim = cache.shape
    block_ids = block_table[: -(-seq_len // block_size)]
    blocks = cache.index_select(0, block_ids).transpose(0, 1)
    return blocks.reshape(num_kv_heads, -1, head_dim)[:, :seq_len]


def visible_mask(num_queries: int, seq_len: int, sliding_window: int | None) -> Tensor:
    """Which keys the last ``num_queries`` tokens of a sequence see.

    Shapes:
        result: [num_queries, seq_len] bool
    """
    positions = torch.arange(seq_len - num_queries, seq_len)[:, None]
    keys = torch.arange(seq_len)
    visible = keys <= positions
    if sliding_window is not None:
        visible &= keys > positions - sliding_window
    return visible
