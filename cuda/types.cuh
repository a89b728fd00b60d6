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

// 1 sign, 4 exponent bits with bias 7, 3 fraction bits: up to 448, no infinity.
struct e4m3 {
    u8 bits;
};

template <typename T>
constexpr bool kIsFp16 = false;
template <>
constexpr bool kIsFp16<fp16> = true;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return float_of_bits(static_cast<u32>(x.bits) << 16); }
__device__ __forceinline__ float to_float(fp16 x) { return float_of_fp16_bits(x.bits); }
__device__ __forceinline__ float to_float(e4m3 x) {  // as the fraction and exponent of a float32 of bias 7, made right
    const u32 bits = (x.bits & 0x80u) << 24 | (x.bits & 0x7fu) << 20;
    return float_of_bits(bits) * float_of_bits((127u + 120u) << 23);
}

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
// The nearest e4m3, ties to even; the largest where x is beyond it. By hand: sm_80 has no instruction for it.
template <>
__device__ __forceinline__ e4m3 from_float<e4m3>(float x) {
    const u32 bits = bits_of_float(x), sign = bits >> 24 & 0x80u, size = bits & 0x7fffffffu;
    const float magnitude = float_of_bits(size);
    u32 code;
    if (size > 0x7f800000u) code = 0x7f;  // no number
    else if (magnitude >= 448.0f) code = 0x7e;
    else if (magnitude < 0.015625f)  // subnormal: adding 2^14, whose last bit is theirs, rounds
        code = bits_of_float(magnitude + 16384.0f) - bits_of_float(16384.0f);
    else code = (size + 0x7ffffu + (size >> 20 & 1u) - (120u << 23)) >> 20;
    return {static_cast<u8>(sign | code)};
}

// Pairs of 16-bit values in one register, the first in the lower half.
template <typename T>
__device__ __forceinline__ u32 pair_of(float low, float high);
template <>
__device__ __forceinline__ u32 pair_of<bf16>(float low, float high) {
    return bf16_pair_bits_of(low, high);
}
template <>
__device__ __forceinline__ u32 pair_of<fp16>(float low, float high) {
    return fp16_pair_bits_of(low, high);
}

// Two of four e4m3, bytes 0 and 2 or bytes 1 and 3 of codes, as T, exactly: their bits in the places of those of T, and
// what the exponents' biases differ by multiplied.
template <typename T>
__device__ __forceinline__ u32 even_pair_of(u32 codes);
template <>
__device__ __forceinline__ u32 even_pair_of<bf16>(u32 codes) {
    return multiply_bf16_pair((codes << 8 & 0x80008000u) | (codes << 4 & 0x07f007f0u), 0x7b807b80u);  // 2^120
}
template <>
__device__ __forceinline__ u32 even_pair_of<fp16>(u32 codes) {
    return multiply_fp16_pair((codes << 8 & 0x80008000u) | (codes << 7 & 0x3f803f80u), 0x5c005c00u);  // 2^8
}

template <typename T>
__device__ __forceinline__ u32 odd_pair_of(u32 codes);
template <>
__device__ __forceinline__ u32 odd_pair_of<bf16>(u32 codes) {
    return multiply_bf16_pair((codes & 0x80008000u) | (codes >> 4 & 0x07f007f0u), 0x7b807b80u);
}
template <>
__device__ __forceinline__ u32 odd_pair_of<fp16>(u32 codes) {
    return multiply_fp16_pair((codes & 0x80008000u) | (codes >> 1 & 0x3f803f80u), 0x5c005c00u);
}

// c += a b, as mma_bf16 says.
template <typename T>
__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <>
__device__ __forceinline__ void mma<bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    mma_bf16(c, a, b0, b1);
}
template <>
__device__ __forceinline__ void mma<fp16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    mma_fp16(c, a, b0, b1);
}

// The same of a warpgroup, as multiply_group_bf16 says.
template <typename T, bool kByRows, int kTiles>
__device__ __forceinline__ void multiply_group(float (&c)[kTiles][4], const u32 (&a)[4], u64 matrix, bool is_added) {
    if constexpr (kIsFp16<T>) multiply_group_fp16<kByRows>(c, a, matrix, is_added);
    else multiply_group_bf16<kByRows>(c, a, matrix, is_added);
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
