# distutils: language = c++
# cython: language_level = 3, boundscheck = False, wraparound = False, autotestdict = False
"""What happens to each token between two matrix products on the CPU; ``elementwise.h`` says how.

The callers in ``trioserve.kernels`` have checked shapes, types and contiguity: addresses are taken as given.
"""

from libc.stdint cimport int64_t, uintptr_t


cdef extern from "elementwise.h" namespace "trioserve" nogil:
    cdef enum class Isa(int):
        portable
        avx2
        avx512

    struct Rows:
        int num_rows
        int inner
        int64_t stride

    bint has_isa(Isa isa)
    void norm "trioserve::rms_norm<float>"(
        void*, const void*, void*, const void*, const Rows&, int, float, int, Isa) except +
    void norm_bf16 "trioserve::rms_norm<trioserve::bf16>"(
        void*, const void*, void*, const void*, const Rows&, int, float, int, Isa) except +
    void turn "trioserve::rope<float>"(
        void*, const int64_t*, const float*, int, int64_t, int, int, bint, int, Isa) except +
    void turn_bf16 "trioserve::rope<trioserve::bf16>"(
        void*, const int64_t*, const float*, int, int64_t, int, int, bint, int, Isa) except +
    void gate "trioserve::silu_mul<float>"(void*, const void*, int, int, int, Isa) except +
    void gate_bf16 "trioserve::silu_mul<trioserve::bf16>"(void*, const void*, int, int, int, Isa) except +
    void store "trioserve::store"(
        char*, const char*, const int64_t*, int, int64_t, int, int, int64_t, int) except +


cdef dict _ISAS = {"portable": Isa.portable, "avx2": Isa.avx2, "avx512": Isa.avx512}


def available_isas():
    """Names of the instruction sets that this processor has kernels for, the best one last."""
    return tuple(name for name, isa in _ISAS.items() if has_isa(<Isa><int>isa))


def rms_norm(
    uintptr_t out, uintptr_t x, uintptr_t residual, uintptr_t weight,
    *, int num_rows, int inner, int64_t stride, int size, float eps, bint is_bf16, int num_threads, str isa
):
    """``out`` = norm of ``x``, or of ``residual += x`` where ``residual`` is not 0."""
    cdef Rows rows
    cdef Isa chosen = <Isa><int>_ISAS[isa]
    rows.num_rows, rows.inner, rows.stride = num_rows, inner, stride
    with nogil:
        if is_bf16:
            norm_bf16(<void*>out, <void*>x, <void*>residual, <void*>weight, rows, size, eps, num_threads, chosen)
        else:
            norm(<void*>out, <void*>x, <void*>residual, <void*>weight, rows, size, eps, num_threads, chosen)


def rope(
    uintptr_t x, uintptr_t positions, uintptr_t table,
    *, int num_tokens, int64_t stride, int num_heads, int half, bint interleaved, bint is_bf16, int num_threads, str isa
):
    """Rotate the heads of ``x`` in place."""
    cdef const int64_t* at = <const int64_t*>positions
    cdef const float* turns = <const float*>table
    cdef Isa chosen = <Isa><int>_ISAS[isa]
    with nogil:
        if is_bf16:
            turn_bf16(<void*>x, at, turns, num_tokens, stride, num_heads, half, interleaved, num_threads, chosen)
        else:
            turn(<void*>x, at, turns, num_tokens, stride, num_heads, half, interleaved, num_threads, chosen)


def silu_mul(
    uintptr_t out, uintptr_t gate_up, *, int num_tokens, int size, bint is_bf16, int num_threads, str isa
):
    """``out`` = silu(gate) * up."""
    cdef Isa chosen = <Isa><int>_ISAS[isa]
    with nogil:
        if is_bf16:
            gate_bf16(<void*>out, <void*>gate_up, num_tokens, size, num_threads, chosen)
        else:
            gate(<void*>out, <void*>gate_up, num_tokens, size, num_threads, chosen)


def store_kv(
    uintptr_t cache, uintptr_t states, uintptr_t slot_mapping,
    *, int num_tokens, int64_t stride_bytes, int num_heads, int block_size, int64_t head_bytes, int num_threads
):
    """Copy each token's keys, or values, to its place in ``cache``."""
    with nogil:
        store(<char*>cache, <const char*>states, <const int64_t*>slot_mapping, num_tokens, stride_bytes, num_heads,
              block_size, head_bytes, num_threads)
