// isa.h: the instruction sets that kernels are compiled for, and the best one this processor has.
//
// A kernel header is included once per set, each time in a namespace of its own, under `#pragma GCC target`, with
// TRIOSERVE_LANES the floats that a vector holds, TRIOSERVE_BF16_DOT whether it has dot products of bf16 and
// TRIOSERVE_BYTE_DOT whether of bytes. Within such a header no function of the standard library's templates may be
// used: the linker keeps one copy of them, and were it the one compiled for AVX-512, an older processor would meet it in
// innocent code.
#pragma once

#include <cstdint>

namespace trioserve {

struct bf16 {  // the upper half of a float
    uint16_t bits;
};

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2, avx512_vnni = 3, avx512_bf16 = 4 };  // each has all of those before it

inline bool has_isa(Isa isa) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (isa == Isa::avx512_bf16) return has_isa(Isa::avx512_vnni) && __builtin_cpu_supports("avx512bf16");
    if (isa == Isa::avx512_vnni) return has_isa(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
    if (isa == Isa::avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return isa == Isa::portable;
}

}  // namespace trioserve
