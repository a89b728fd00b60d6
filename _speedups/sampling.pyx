# distutils: language = c++
# distutils: extra_compile_args = -O3 -std=c++17 -fno-math-errno -fno-trapping-math -Wno-psabi
# distutils: libraries = dl
# distutils: depends = _speedups/sampling.h _speedups/sampling_kernel.h _speedups/simd.h _speedups/isa.h _speedups/parallel.h
# cython: language_level = 3, boundscheck = False, wraparound = False, autotestdict = False
"""Logits under masks of allowed tokens, on the CPU; ``sampling.h`` says how."""

from libc.stdint cimport int32_t, int64_t


cdef extern from "sampling.h" namespace "trioserve" nogil:
    cdef enum class Isa(int):
        portable
        avx2
        avx512

    bint has_isa(Isa isa)
    bint mask "trioserve::mask_logits"(float*, const float*, const int32_t*, int, Isa)
    void argmax "trioserve::masked_argmax"(
        int64_t*, const float*, const int32_t*, const int64_t*, int, int, int, int, Isa) except +


cdef dict _ISAS = {"portable": Isa.portable, "avx2": Isa.avx2, "avx512": Isa.avx512}


def available_isas():
    """Names of the instruction sets that this processor has kernels for, the best one last."""
    return tuple(name for name, isa in _ISAS.items() if has_isa(<Isa><int>isa))


def mask_logits(float[::1] out, const float[::1] logits, const int32_t[::1] mask, *, str isa):
    """``out`` = ``logits`` where ``mask`` has a bit, else -inf; returns whether it has any.

    Shapes:
        out, logits: [vocab_size]; may be the same
        mask: [ceil(vocab_size / 32)]
    """
    cdef Py_ssize_t size = logits.shape[0]
    cdef Isa chosen = <Isa><int>_ISAS[isa]
    if out.shape[0] != size or mask.shape[0] != (size + 31) // 32:
        raise ValueError(f"{size} logits, room for {out.shape[0]}, {mask.shape[0]} words of mask")
    if size == 0:
        return False
    return bool(mask_row(&out[0], &logits[0], &mask[0], <int>size, chosen))


cdef bint mask_row(float* out, const float* logits, const int32_t* bits, int size, Isa isa) noexcept:
    with nogil:
        return mask(out, logits, bits, size, isa)


def masked_argmax(
    const float[:, ::1] logits, const int32_t[:, ::1] masks, const int64_t[::1] rows, int64_t[::1] found,
    *, int num_threads, str isa
):
    """``found[i]`` = the first of the largest logits of row ``rows[i]`` that row ``i`` of ``masks`` allows, or -1.

    Shapes:
        logits: [num_logits, vocab_size]
        masks: [num_rows, ceil(vocab_size / 32)], more rows do no harm
        rows, found: [num_rows]
    """
    cdef Py_ssize_t num_rows = rows.shape[0], size = logits.shape[1], i
    cdef Isa chosen = <Isa><int>_ISAS[isa]
    if masks.shape[1] != (size + 31) // 32 or masks.shape[0] < num_rows or found.shape[0] != num_rows:
        raise ValueError(
            f"{num_rows} rows of {size} logits, room for {found.shape[0]}, "
            f"{masks.shape[0]} rows of {masks.shape[1]} words of masks"
        )
    for i in range(num_rows):
        if not 0 <= rows[i] < logits.shape[0]:
            raise ValueError(f"row {rows[i]} of {logits.shape[0]}")
    if num_rows == 0 or size == 0:
        return
    with nogil:
        argmax(&found[0], &logits[0, 0], &masks[0, 0], &rows[0], <int>num_rows, <int>size, <int>masks.shape[1],
               num_threads, chosen)
