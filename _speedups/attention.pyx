# distutils: language = c++
# cython: language_level = 3, boundscheck = False, wraparound = False, autotestdict = False
"""Paged attention on the CPU; ``attention.h`` says how.

The one caller, ``trioserve.kernels.attention``, has checked shapes, types and contiguity: addresses are taken as given.
"""

from libc.stdint cimport int64_t, uintptr_t


cdef extern from "attention.h" namespace "trioserve" nogil:
    cdef enum class Isa(int):
        portable
        avx2
        avx512
        avx512_bf16

    cppclass bf16:
        pass

    struct Arguments:
        void* out
        const void* q
        const void* k_cache
        const void* v_cache
        const int* cu_seqlens_q
        const int* seq_lens
        const int* block_tables
        int64_t q_stride
        int64_t out_stride
        int num_seqs
        int num_heads
        int num_kv_heads
        int head_dim
        int block_size
        int max_blocks
        int group
        int sliding_window
        int max_queries
        float scale
        float bound

    bint has_isa(Isa isa)
    void run "trioserve::paged_attention<float>"(const Arguments& a, int num_threads, Isa isa) except +
    void run_bf16 "trioserve::paged_attention<trioserve::bf16>"(
        const Arguments& a, int num_threads, Isa isa) except +


cdef dict _ISAS = {
    "portable": Isa.portable, "avx2": Isa.avx2, "avx512": Isa.avx512, "avx512_bf16": Isa.avx512_bf16
}


def available_isas():
    """Names of the instruction sets that this processor has kernels for, the best one last."""
    return tuple(name for name, isa in _ISAS.items() if has_isa(<Isa><int>isa))


def paged_attention(
    uintptr_t out, uintptr_t q, uintptr_t k_cache, uintptr_t v_cache,
    uintptr_t cu_seqlens_q, uintptr_t seq_lens, uintptr_t block_tables,
    *, int64_t q_stride, int num_seqs, int num_heads, int num_kv_heads, int head_dim, int block_size, int max_blocks,
    int sliding_window, int max_queries, float scale, float bound, bint is_bf16, int num_threads, str isa
):
    """Attend; the addresses are of the tensors that ``trioserve.kernels.attention.paged_attention`` describes."""
    cdef Arguments a
    cdef Isa chosen = <Isa><int>_ISAS[isa]
    a.out, a.q, a.k_cache, a.v_cache = <void*>out, <const void*>q, <const void*>k_cache, <const void*>v_cache
    a.cu_seqlens_q, a.seq_lens = <const int*>cu_seqlens_q, <const int*>seq_lens
    a.block_tables, a.q_stride, a.out_stride = <const int*>block_tables, q_stride, num_heads * head_dim
    a.num_seqs, a.num_heads, a.num_kv_heads, a.head_dim = num_seqs, num_heads, num_kv_heads, head_dim
    a.block_size, a.max_blocks, a.sliding_window, a.scale = block_size, max_blocks, sliding_window, scale
    a.max_queries, a.bound = max_queries, bound
    a.group = num_heads // num_kv_heads
    with nogil:
        if is_bf16:
            run_bf16(a, num_threads, chosen)
        else:
            run(a, num_threads, chosen)
