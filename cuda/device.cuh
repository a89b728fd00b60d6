// device.cuh: what the kernels ask of the machine. The only file that holds inline PTX, and the only one that knows
// which compiler reads it: nvcc and NVRTC take the first half; any other compiler takes the emulator of the tests,
// tests/emu/cuemu.h, which gives the same functions on a CPU and checks each call. The rest builds on either.
//
// A new primitive is written twice: here in PTX, in the emulator in C++ with the checks that the hardware lacks.
// Kernels reach memory through load, store and shared arrays only, so that the emulator sees every access.
//
// NVRTC has no standard headers; nothing is included for it.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;

#if defined(__CUDACC__)

// One value of any type from global memory; p is aligned to V. 16 bytes at most travel in one instruction.
template <typename V>
__device__ __forceinline__ V load(const void* p) {
    return *static_cast<const V*>(p);
}

template <typename V>
__device__ __forceinline__ void store(void* p, const V& value) {
    *static_cast<V*>(p) = value;
}

// 16 bytes of global memory that nobody writes meanwhile and nobody will read again soon.
template <typename V>
__device__ __forceinline__ V load_once(const void* p) {
    static_assert(sizeof(V) == 16, "one instruction");
    uint4 bits;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
        : "l"(p));
    return reinterpret_cast<const V&>(bits);
}

// An array in shared memory: __shared__ SharedArray<float, 32> partial;
template <typename T, int kSize>
struct SharedArray {
    T data[kSize];
    __device__ __forceinline__ T& operator[](int i) { return data[i]; }
};

// The shared memory whose size the launch decides, from a byte on; aligned to 1024 bytes; of auto type in kernels.
template <typename T>
__device__ __forceinline__ T* dynamic_shared(int at_bytes = 0) {
    extern __shared__ __align__(1024) u8 dynamic_shared_bytes[];
    return reinterpret_cast<T*>(dynamic_shared_bytes + at_bytes);
}

__device__ __forceinline__ u32 shared_address(const void* p) {
    u32 at;
    asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(at) : "l"(p));
    return at;
}

// Start to copy 16 bytes of global memory to shared memory; zeros where they are not wanted, and p is not read then.
__device__ __forceinline__ void copy_async(void* to, const void* p, bool wanted) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(p),
                 "r"(wanted ? 16 : 0)
                 : "memory");
}

// The same at kTo bytes behind to and kFrom bytes behind p, which costs no instruction.
template <int kTo, int kFrom>
__device__ __forceinline__ void copy_async_at(void* to, const void* p, bool wanted) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0 + %3], [%1 + %4], 16, %2;" ::"r"(shared_address(to)), "l"(p),
                 "r"(wanted ? 16 : 0), "n"(kTo), "n"(kFrom)
                 : "memory");
}

// What this thread has started since the last call is a group.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all of this thread's groups but the last kGroups have arrived; others see them behind a barrier only.
template <int kGroups>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Four 8 x 8 matrices of 16 bits from shared memory; lane i gives row i % 8 of matrix i / 8, 16 bytes. Register m of
// lane i is elements 2 * (i % 4) and the next of row i / 4 of matrix m.
__device__ __forceinline__ void load_matrices(u32 (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row)));
}

// The same of the transposed matrices.
__device__ __forceinline__ void load_matrices_transposed(u32 (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row)));
}

// c += a b, of a warp: a [16, 16], b [16, 8], c [16, 8] float32; with g = lane / 4 and t = 2 * (lane % 4)
//   a   (g, t..t+1), (g + 8, t..t+1), (g, t+8..t+9), (g + 8, t+8..t+9)
//   b   (t..t+1, g), (t+8..t+9, g)
//   c   (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1)
__device__ __forceinline__ void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_fp16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 2^x; error 2 ulp, results below 2^-126 become 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// a / b; error 2 ulp, and 0 where b is above 2^126.
__device__ __forceinline__ float divide_fast(float a, float b) {
    float y;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

// 1 / sqrt(x); error 2 ulp.
__device__ __forceinline__ float rsqrt_fast(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float float_of_bits(u32 bits) { return __uint_as_float(bits); }
__device__ __forceinline__ u32 bits_of_float(float x) { return __float_as_uint(x); }

// The bits of the nearest bfloat16, ties to even.
__device__ __forceinline__ u16 bf16_bits_of(float x) {
    u16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

// The bits of the nearest float16, ties to even; infinite above 65504.
__device__ __forceinline__ u16 fp16_bits_of(float x) {
    u16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float float_of_fp16_bits(u16 bits) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
    return y;
}

// Two values rounded alike, the first in the lower half.
__device__ __forceinline__ u32 bf16_pair_bits_of(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

__device__ __forceinline__ u32 fp16_pair_bits_of(float low, float high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// x * y + -0, both halves, rounded once.
__device__ __forceinline__ u32 multiply_bf16_pair(u32 x, u32 y) {
    u32 z;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(z) : "r"(x), "r"(y), "r"(0x80008000u));
    return z;
}

__device__ __forceinline__ u32 multiply_fp16_pair(u32 x, u32 y) {
    u32 z;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(z) : "r"(x), "r"(y), "r"(0x80008000u));
    return z;
}

// The first lane of a mask that is not 0.
__device__ __forceinline__ int first_lane(u32 mask) { return __ffs(static_cast<int>(mask)) - 1; }

#else
#include "cuemu.h"
#endif

constexpr int kWarp = 32;                  // lanes
constexpr u32 kEveryLane = 0xffffffffu;
constexpr int kVectorBytes = 16;           // that one load or store instruction moves

__device__ __forceinline__ constexpr int smaller(int a, int b) { return a < b ? a : b; }

__device__ __forceinline__ float exp_fast(float x) { return exp2_fast(x * 1.44269504088896341f); }

// The sum over a warp, in every lane; one order, a tree.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kEveryLane, value, step);
    return value;
}

// The sum over a row of kThreads threads, along x, in every one of them; one order. Rows of more than a warp are
// alone in their block, and all of its threads call this.
template <int kThreads>
__device__ __forceinline__ float row_sum(float value) {
    constexpr int kWarps = kThreads / kWarp;
    static_assert(kThreads % kWarp == 0 && kWarps <= kWarp, "a row is 1 to 32 whole warps");
    value = warp_sum(value);
    if constexpr (kWarps > 1) {
        __shared__ SharedArray<float, kWarps> partial;
        const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
        if (lane == 0) partial[warp] = value;
        __syncthreads();
        value = lane < kWarps ? partial[lane] : 0.0f;
        __syncthreads();  // the next call may write partial
        value = warp_sum(value);
    }
    return value;
}
