// types.cuh: the element types of tensors, vectors of them, and their way to float32 and back.
//
// bf16 and fp16 are bits in memory and nothing else: arithmetic is float32 throughout, each result rounded once. So
// neither cuda_bf16.h nor cuda_fp16.h, which NVRTC would have to find, is needed.
#pragma once

#include "device.cuh"

struct bf16 {
    u16 bits;
};

struct fp16 {
    u16 bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return float_of_bits(static_cast<u32>(x.bits) << 16); }
__device__ __forceinline__ float to_float(fp16 x) { return float_of_fp16_bits(x.bits); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return {bf16_bits_of(x)};
}
template <>
__device__ __forceinline__ fp16 from_float<fp16>(float x) {
    return {fp16_bits_of(x)};
}

// kSize neighbours, a power of two, as memory moves them: aligned to their size, to 16 bytes where they are more.
template <typename T, int kSize>
struct alignas(smaller(kVectorBytes, kSize * static_cast<int>(sizeof(T)))) Vector {
    static_assert((kSize & (kSize - 1)) == 0, "sizes of vectors are powers of two");
    T data[kSize];
    __device__ __forceinline__ T& operator[](int i) { return data[i]; }
    __device__ __forceinline__ const T& operator[](int i) const { return data[i]; }
};

template <typename T, int kSize>
__device__ __forceinline__ Vector<float, kSize> widen(const Vector<T, kSize>& x) {
    Vector<float, kSize> wide;
#pragma unroll
    for (int i = 0; i < kSize; ++i) wide[i] = to_float(x[i]);
    return wide;
}

template <typename T, int kSize>
__device__ __forceinline__ Vector<T, kSize> narrow(const Vector<float, kSize>& wide) {
    Vector<T, kSize> x;
#pragma unroll
    for (int i = 0; i < kSize; ++i) x[i] = from_float<T>(wide[i]);
    return x;
}

// From memory straight to float32, and back.
template <typename T, int kSize>
__device__ __forceinline__ Vector<float, kSize> load_wide(const T* p) {
    return widen(load<Vector<T, kSize>>(p));
}

template <typename T, int kSize>
__device__ __forceinline__ void store_narrow(T* p, const Vector<float, kSize>& wide) {
    store(p, narrow<T>(wide));
}
