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

// An array in shared memory: __shared__ SharedArray<float, 32> partial;
template <typename T, int kSize>
struct SharedArray {
    T data[kSize];
    __device__ __forceinline__ T& operator[](int i) { return data[i]; }
};

// The shared memory whose size the launch decides, aligned to 1024 bytes; of auto type in kernels.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
    extern __shared__ __align__(1024) u8 dynamic_shared_bytes[];
    return reinterpret_cast<T*>(dynamic_shared_bytes);
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
