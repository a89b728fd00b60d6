// isa.h: the instruction sets that kernels are compiled for, and the best one this processor has.
//
// A kernel header is included once per set, each time in a namespace of its own, under `#pragma GCC target`, with
// TRIOSERVE_LANES the floats that a vector holds, TRIOSERVE_BF16_DOT whether it has dot products of bf16 and
// TRIOSERVE_BYTE_DOT whether of bytes, TRIOSERVE_TILES whether it has a matrix unit. Within such a header no function of the standard library's templates may be
// used: the linker keeps one copy of them, and were it the one compiled for AVX-512, an older processor would meet it in
// innocent code.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace trioserve {

struct bf16 {  // the upper half of a float
    uint16_t bits;
};

// Each has all of those before it; the last one is the matrix unit's kernels with the unit in plain C++, for tests.
enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2, avx512_vnni = 3, avx512_bf16 = 4, amx = 5, amx_emulated = 6 };

#if defined(__x86_64__)
// Whether the processor has the matrix unit, the system keeps its registers, and this process may use them, which it has
// to ask for once.
inline bool may_use_tiles() {
    static const bool may = [] {
        unsigned eax, ebx, ecx, edx;
        if (__get_cpuid_count(1, 0, &eax, &ebx, &ecx, &edx) == 0 || (ecx & bit_OSXSAVE) == 0) return false;
        if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
        constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24, kInt8 = 1u << 25, kKept = 3u << 17;
        if ((edx & kBf16) == 0 || (edx & kTiles) == 0 || (edx & kInt8) == 0) return false;
        unsigned lower, upper;
        asm("xgetbv" : "=a"(lower), "=d"(upper) : "c"(0));
        constexpr int kAskForComponent = 0x1023, kTileData = 18;
        return (lower & kKept) == kKept && syscall(SYS_arch_prctl, kAskForComponent, kTileData) == 0;
    }();
    return may;
}
#endif

inline bool has_isa(Isa isa) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (isa == Isa::amx_emulated) return has_isa(Isa::avx512);
    if (isa == Isa::amx) return has_isa(Isa::avx512_bf16) && may_use_tiles();
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
